import importlib.util
import json
import os
import subprocess
import sys

import hypothesis
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from test_dense_wiring import wirings

import gated_resnext
from gated_resnext import gates
from gated_resnext.branches import GatedBranches
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.dense_pruning import freeze, prune
from gated_resnext.dense_wiring import DenseWiring
from gated_resnext.optimizer import GateConnectSGD

CHANNELS, GROWTH, LAYERS = 3, 2, 4
SHAPE = (2, 5, 6, CHANNELS)


def dense_block(weights, x, gate_rows, *, training=False):
    """DenseNet-BC in float64 from its definition, every map times its gate where a 1x1 convolution reads it."""
    weights = {name: np.float64(value) for name, value in weights.items()}

    def norm(x, name):
        mean, variance = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
        if training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def read(maps, name, row):
        z = oracle.relu(norm(np.concatenate(maps, axis=-1), f"{name}/norm"))
        factors = np.concatenate([np.full(some.shape[-1], gate) for some, gate in zip(maps, row, strict=True)])
        return oracle.convolve(z * factors, weights[f"{name}/kernel"])

    maps = [np.float64(x)]
    for layer in range(1, LAYERS + 1):
        h = oracle.relu(norm(read(maps, f"layer{layer}_narrow", gate_rows[layer - 1]), f"layer{layer}_norm"))
        maps.append(oracle.convolve(h, weights[f"layer{layer}_conv/kernel"], padding=1))
    if "transition/kernel" in weights:
        return read(maps, "transition", gate_rows[LAYERS])
    return np.concatenate(maps, axis=-1)


def named(block):
    """The block's weights by their name within it."""
    return {v.path.split("/", 1)[1]: keras.ops.convert_to_numpy(v) for v in block.variables}


def built(seed=0, **changes):
    """A block of random weights, statistics and gates."""
    fields = {"layers": LAYERS, "growth": GROWTH, "fan_in": 2, "transition": 5, "bottleneck": 3, **changes}
    block, rng = GatedDenseBlock(**fields, seed=1, name="block"), np.random.default_rng(seed)
    block.build((None, *SHAPE[1:]))
    for variable in block.variables:
        kind, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if kind == "kernel":
            variable.assign(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])))
        elif kind in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif kind in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.4, shape))
        elif kind == "real_gates":
            variable.assign(rng.dirichlet(np.ones(shape[0])))
    return block


def images(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def binary_rows(block, training):
    """The gates of every reader: what is drawn next, or the top K."""
    rows = []
    for number, reader in enumerate(block.readers, start=1):
        if not reader.learns:
            rows.append(np.ones(number))
        elif training:
            drawn = gates.draw(reader.real_gates, reader.fan_in, seed=reader.seed, step=int(reader.step))
            rows.append(np.float64(drawn))
        else:
            order = np.argsort(-reader.real_gates.numpy(), kind="stable")
            rows.append(np.float64(np.isin(np.arange(number), order[: reader.fan_in])))
    return rows


def trainable(block):
    return sum(int(np.prod(v.shape)) for v in block.trainable_variables if not v.path.endswith("/real_gates"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("transition", [None, 5])
def test_reading_everything_it_is_an_ordinary_dense_block(transition, training):
    block = built(fan_in=LAYERS, transition=transition)
    assert not [name for name in named(block) if name.endswith(("real_gates", "step"))]
    everything = [np.ones(number) for number in range(1, LAYERS + 2)]
    expected = dense_block(named(block), images(), everything, training=training)
    found = block(images(), training=training)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert block.wiring() == DenseWiring.full(LAYERS)
    assert trainable(block) == block.parameters()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("transition_fan_in", [None, 2])
def test_a_gate_keeps_maps_out(transition_fan_in, training):
    block = built(transition_fan_in=transition_fan_in)
    rows = binary_rows(block, training)
    assert [row.sum() for row in rows] == [1, 2, 2, 2, transition_fan_in or 5]
    expected = dense_block(named(block), images(), rows, training=training)
    found = block(images(), training=training)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert trainable(block) == block.parameters() == DenseWiring.full(LAYERS).parameters(CHANNELS, GROWTH, 3, 5)


def test_draws_change_with_the_step_alone():
    block, again = built(), built()
    drawn = [np.concatenate(binary_rows(block, True)) for _ in range(8) if block(images(), training=True) is not None]
    assert len({row.tobytes() for row in drawn}) > 3 and int(block.readers[2].step) == 8
    for reader in again.readers:
        if reader.learns:
            reader.step.assign(8)
    np.testing.assert_array_equal(np.concatenate(binary_rows(again, True)), drawn[-1])
    block(images())
    assert int(block.readers[2].step) == 8


@pytest.mark.parametrize("given", [True, False], ids=["when made", "later"])
def test_a_block_that_is_not_trainable_draws_nothing(given):
    block = built(trainable=not given)
    block.trainable = False
    again = GatedDenseBlock.from_config(block.get_config())
    again.build(SHAPE)
    again.set_weights(block.get_weights())
    for each in (block, again):
        before = each.get_weights()
        np.testing.assert_array_equal(each(images(), training=True), block(images()))
        for one, other in zip(each.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("training", [False, True])
def test_every_gate_has_its_gradient_drawn_or_not(training):
    """dL/dg_k = <dL/dh, W_k z_k>: by differences of the oracle, whose gates take any value."""
    block, upstream = built(transition_fan_in=2), np.random.default_rng(9).normal(size=(*SHAPE[:3], 5))
    rows, weights = binary_rows(block, training), named(block)
    readers = [reader for reader in block.readers if reader.learns]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(images(), training=training) * tf.constant(upstream, tf.float32))
    found = tape.gradient(loss, [reader.real_gates.value for reader in readers])
    active = DenseWiring(tuple(tuple(np.flatnonzero(row)) for row in rows)).active
    assert len(readers) == 3

    def loss_of(number, row):
        changed = [row if i == number else other for i, other in enumerate(rows)]
        return np.sum(upstream * dense_block(weights, images(), changed, training=training))

    for reader, gradient in zip(readers, found, strict=True):
        number, finite = block.readers.index(reader), np.zeros(len(gradient))
        for k in range(len(gradient)):
            step = 1e-6 * np.eye(len(gradient))[k]
            finite[k] = (loss_of(number, rows[number] + step) - loss_of(number, rows[number] - step)) / 2e-6
        np.testing.assert_allclose(gradient, finite, rtol=2e-3, atol=2e-3 * np.abs(finite).max())
        if number == LAYERS or number + 1 in active:
            assert np.abs(finite[rows[number] == 0]).min() > 1e-4
        else:  # whatever a layer reads that nobody reads
            assert not finite.any()


def test_the_gradient_of_a_gate_is_the_closed_form():
    block, upstream = built(layers=1, transition_fan_in=1), np.random.default_rng(9).normal(size=(*SHAPE[:3], 5))
    weights = named(block)
    maps = [images(), block.convs[0](keras.ops.relu(block.norms[0](block.readers[0]([images()]))))]
    x = np.float64(np.concatenate(maps, axis=-1))
    mean, variance = weights["transition/norm/moving_mean"], weights["transition/norm/moving_variance"]
    z = (x - mean) / np.sqrt(variance + 1e-5) * weights["transition/norm/gamma"] + weights["transition/norm/beta"]
    parts = np.split(np.maximum(z, 0), [CHANNELS], axis=-1), np.split(weights["transition/kernel"][0, 0], [CHANNELS])
    expected = [np.sum(upstream * (z_k @ kernel_k)) for z_k, kernel_k in zip(*parts, strict=True)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(images()) * tf.constant(upstream, tf.float32))
    found = tape.gradient(loss, block.readers[1].real_gates.value)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@hypothesis.settings(max_examples=12)
@hypothesis.given(wirings(layers=st.just(LAYERS)), st.integers(0, 2**32 - 1))
@hypothesis.example(((0,), (1,), (0, 1), (1, 2), (0,)), 0)
@hypothesis.example(((0,), (1,), (0, 1), (1, 2), (1, 3)), 1)
def test_pruned_is_the_same_function_and_as_small_as_it_says(sources, seed):
    block = built(seed, sources=sources)
    model = keras.Sequential([keras.Input(SHAPE[1:]), block])
    small = prune(model)
    expected = np.asarray(model(images()))
    np.testing.assert_allclose(small(images()), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    wiring, smaller = DenseWiring(sources), small.layers[0]
    assert smaller.wiring() == wiring.pruned() and smaller.layer_count == len(wiring.active)
    assert trainable(block) == block.parameters() == wiring.parameters(CHANNELS, GROWTH, 3, 5)
    assert trainable(smaller) == smaller.parameters() == wiring.pruned().parameters(CHANNELS, GROWTH, 3, 5)
    assert small.count_params() <= model.count_params()


def network(**changes):
    """Two blocks with a pool between; the second ends the network and returns all its maps."""
    x = inputs = keras.Input(SHAPE[1:])
    x = GatedDenseBlock(4, GROWTH, 1, transition=6, transition_fan_in=2, seed=2, name="first", **changes)(x)
    x = keras.layers.AveragePooling2D(2)(x)
    x = GatedDenseBlock(3, GROWTH, 2, seed=3, name="second")(x)
    first = keras.initializers.GlorotUniform(seed=0)  # with some others the first block's last layer gets no gradient
    classifier = keras.layers.Dense(4, kernel_initializer=first, name="classifier")
    return keras.Model(inputs, classifier(keras.layers.GlobalAveragePooling2D()(x)))


def test_the_blocks_of_nested_models_are_frozen_and_pruned_too():
    inputs = keras.Input(SHAPE[1:])
    first = GatedDenseBlock(4, GROWTH, 1, transition=6, transition_fan_in=2, seed=2)
    alone = keras.Sequential([keras.Input(SHAPE[1:]), first], name="nested")
    inner = keras.Input((*SHAPE[1:3], 6))
    both = keras.Model(inner, keras.layers.ReLU()(GatedDenseBlock(3, GROWTH, 2, transition=4, seed=3)(inner)))
    for model in (keras.Model(inputs, both(alone(inputs))), keras.Model(inputs, both(first(inputs)))):
        expected = np.asarray(model(images()))
        for smaller in (freeze(model), prune(model)):
            np.testing.assert_allclose(smaller(images()), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
            assert not [v.path for v in smaller.variables if v.path.endswith(("real_gates", "step"))]
        assert prune(model).count_params() < freeze(model).count_params() < model.count_params()


def test_a_network_learns_is_frozen_pruned_saved_and_learns_on(tmp_path):
    model, labels = network(), np.arange(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(GateConnectSGD(0.05, gate_learning_rate=0.5), loss, run_eagerly=True)
    first = model.train_on_batch(images(), labels)
    for _ in range(10):
        last = model.train_on_batch(images(), labels)
    assert last < first
    gate = model.get_layer("first").readers[3]
    assert np.abs(gate.real_gates.numpy() - 0.25).max() > 1e-3 and gate.real_gates.numpy().sum() == pytest.approx(1)
    expected = np.asarray(model(images()))
    for smaller in (freeze(model), prune(model), prune(freeze(model))):
        np.testing.assert_allclose(smaller(images()), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert not [v.path for v in smaller.variables if v.path.endswith(("real_gates", "step"))]
    for name in ("first", "second"):
        block, (still, small) = model.get_layer(name), (f(model).get_layer(name) for f in (freeze, prune))
        assert still.wiring() == block.wiring() and small.wiring() == block.wiring().pruned()
        assert [trainable(b) for b in (block, still, small)] == [b.parameters() for b in (block, still, small)]
    assert small.layer_count == 3, "what follows the second block reads all its layers"
    assert freeze(model).count_params() < model.count_params()
    small = prune(model)
    for saved in (model, small):
        saved.save(tmp_path / "network.keras")
        loaded = keras.saving.load_model(tmp_path / "network.keras")
        np.testing.assert_array_equal(loaded(images()), saved(images()))
        assert loaded.get_layer("first").wiring() == saved.get_layer("first").wiring()
    small.compile(GateConnectSGD(0.05), loss, run_eagerly=True)
    before = small.train_on_batch(images(), labels)
    assert small.train_on_batch(images(), labels) < before


def test_the_config_is_plain_json():
    block = built(sources=((0,), (1,), (0, 1), (1, 2), (1, 3)))
    again = GatedDenseBlock.from_config(json.loads(json.dumps(block.get_config())))
    assert again.sources == block.sources and again.seed == 1
    assert GatedDenseBlock.from_config(again.get_config()).get_config() == again.get_config()
    assert GatedDenseBlock(1, 1, 1).seed != GatedDenseBlock(1, 1, 1).seed


def test_mixed_precision_keeps_weights_in_float32():
    block = GatedDenseBlock(3, 2, 1, transition=4, transition_fan_in=1, seed=0, dtype="mixed_bfloat16")
    assert block(images(), training=True).dtype == tf.bfloat16
    assert {v.dtype for v in block.variables} == {"float32", "int64"}
    exact = GatedDenseBlock(3, 2, 1, transition=4, transition_fan_in=1, seed=0)
    exact(images())
    exact.set_weights(block.get_weights())
    gradients = []
    for each in (block, exact):
        with tf.GradientTape() as tape:
            y = tf.cast(each(images(), training=False), "float32")
            loss = tf.reduce_sum(tf.square(y))
        gates = [reader.real_gates.value for reader in each.readers if reader.learns]
        gradients.append((np.asarray(y), *map(np.asarray, tape.gradient(loss, gates))))
    assert len(gradients[0]) > 2
    for rounded, float32 in zip(*gradients, strict=True):
        np.testing.assert_allclose(rounded, float32, rtol=0.05, atol=0.03 * np.abs(float32).max())
    assert max(np.abs(gate).max() for gate in gradients[1][1:]) > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be a whole number of at least 1. Received: layers=0"),
        ({"growth": 2.0}, "growth must be a whole number.*Received: growth=2.0"),
        ({"fan_in": True}, "fan_in must be a whole number.*Received: fan_in=True"),
        ({"bottleneck": "4"}, "bottleneck must be a whole number.*Received: bottleneck='4'"),
        ({"transition": 0}, "transition must be a whole number.*Received: transition=0"),
        ({"transition": None, "transition_fan_in": 2}, "give transition=CHANNELS too. Received: transition_fan_in=2"),
        ({"sources": ((0,), (0,))}, "sources must be of 4 layers and the output. Received: 2 entries"),
        ({"sources": ((0,), (3,), (0,), (0,), (0,))}, "layer 2 must read one or more different maps out of the 2"),
        (
            {"transition": None, "sources": ((0,), (0,), (0,), (0,), (0, 2))},
            r"without a transition the output reads all 5 maps. Received: \[0, 2\]",
        ),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        built(**changes)


def test_what_is_no_image_and_what_has_no_block_is_said():
    with pytest.raises(ValueError, match=r"reads \(batch, height, width, channels\). Received: shape=\(2, 3\)"):
        GatedDenseBlock(2, 2, 1).build((2, 3))
    with pytest.raises(ValueError, match="no GatedDenseBlock among the layers of plain"):
        prune(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="plain"))


class OfOnesOwn(keras.layers.Conv2D):
    """A class that Keras has not been told of."""


def test_freeze_and_prune_take_blocks_and_branches_in_one_model():
    inputs = keras.Input(SHAPE[1:])
    x = GatedDenseBlock(3, GROWTH, 1, transition=4, transition_fan_in=1, seed=0, name="dense")(inputs)
    y = GatedBranches([keras.layers.Conv2D(4, 1) for _ in range(3)], name="one")(x)
    y = GatedBranches([OfOnesOwn(4, 1) for _ in range(2)], sources=((1,), (1,)), name="two")(y)
    model = keras.Model(inputs, keras.layers.Average()(y))
    for fixed, kept in ((gated_resnext.freeze(model), 3), (gated_resnext.prune(model), 1)):
        np.testing.assert_allclose(fixed(images()), model(images()), rtol=1e-5, atol=1e-6)
        assert fixed.get_layer("dense").sources is not None and len(fixed.get_layer("one").branches) == kept
    dense = keras.Model(inputs, x)
    assert gated_resnext.prune(dense).get_layer("dense").layer_count < 3
    with pytest.raises(ValueError, match="made of GatedBranches"):
        gated_resnext.prune(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))


def test_a_block_that_was_not_built_says_so():
    for sources in (None, ((0,), (0,), (0, 1, 2))):
        early = GatedDenseBlock(2, 2, 1, sources=sources, name="early")
        with pytest.raises(ValueError, match="early was not built: its weights are there once it has read something"):
            early.wiring()
        with pytest.raises(ValueError, match="or a Sequential one that was built. Received: .*built=False"):
            prune(keras.Sequential([early]))


def test_keras_summary_goes_into_the_block(capsys):
    model = keras.Sequential([keras.Input((4, 4, 2)), GatedDenseBlock(2, 2, 1, name="dense")])
    model.summary(expand_nested=True)
    assert "dense (GatedDenseBlock)" in capsys.readouterr().out


def test_what_stands_beside_the_block_keeps_what_it_was_adapted_to():
    bins = keras.layers.Discretization(num_bins=4)
    bins.adapt(np.linspace(0, 1, 100))
    x = np.random.default_rng(0).random((2, 4, 4, 2))
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), bins, keras.layers.Rescaling(0.3), GatedDenseBlock(2, 2, 1, transition=3, seed=0)]
    )
    assert len(np.unique(bins(x))) == 4
    np.testing.assert_allclose(prune(model)(x), model(x), atol=1e-6)


def test_a_loss_of_ones_own_is_no_hindrance():
    def of_ones_own(labels, outputs):
        return keras.ops.mean(keras.ops.square(outputs - labels))

    x = keras.Input((6, 6, 3))
    y = keras.layers.GlobalAveragePooling2D()(GatedDenseBlock(3, 2, 1, transition=4, seed=0)(x))
    model = keras.Model(x, y)
    model.compile("adam", of_ones_own)
    smaller = prune(model)
    given = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(smaller(given), model(given), rtol=1e-5, atol=1e-6)
    assert model.compiled and not smaller.compiled
    model.fit(given, np.zeros((2, 4)), verbose=0)


ON_JAX = """
import sys
import keras, numpy as np
from gated_resnext import dense_block, dense_pruning
from gated_resnext.optimizer import GateConnectSGD

assert keras.backend.backend() == "jax"
model, given = keras.saving.load_model(sys.argv[1]), np.load(sys.argv[2])
before, small = model.predict(given["images"]), dense_pruning.prune(model).predict(given["images"])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(GateConnectSGD(0.05, gate_learning_rate=0.5), loss)
model.fit(given["images"], given["labels"], epochs=3, verbose=0)
step = model.get_layer("first").readers[2].step
moved = np.asarray(model.get_layer("first").readers[4].real_gates)
np.savez(sys.argv[3], before=before, small=small, step=np.asarray(step), moved=moved)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_the_same_network_under_jax(tmp_path):
    model = network()
    model.save(tmp_path / "network.keras")
    np.savez(tmp_path / "given.npz", images=images(), labels=np.arange(2))
    files = [str(tmp_path / name) for name in ("network.keras", "given.npz", "found.npz")]
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ON_JAX, *files], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / "found.npz"), np.asarray(model(images()))
    for name in ("before", "small"):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert found["step"] == 3 and np.abs(found["moved"] - 0.2).max() > 1e-4
