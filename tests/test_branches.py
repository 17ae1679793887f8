import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import gated_resnext
from gated_resnext import gates
from gated_resnext.branches import GatedBranches
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.optimizer import GateConnectSGD

C, J, FEATURES, OUT = 4, 3, 5, 2


def dense(count, units=OUT):
    return [keras.layers.Dense(units) for _ in range(count)]


def outputs_before(seed=0, count=C, batch=6):
    """y_1 to y_C, as numpy float64 and as what the layer is called with."""
    y = np.random.default_rng(seed).normal(size=(count, batch, FEATURES)).astype(np.float32)
    return np.float64(y), [tf.constant(each) for each in y]


def built(count=J, real_gates=None, **kwargs):
    """Linear branches with random weights, and these in float64."""
    layer = GatedBranches(dense(count), **{"fan_in": 2, "seed": 7, **kwargs})
    layer.build([(None, FEATURES)] * C)
    rng = np.random.default_rng(1)
    for branch in layer.branches:
        branch.set_weights([rng.normal(size=weight.shape) for weight in branch.get_weights()])
    if real_gates is not None:
        layer.gate.real_gates.assign(np.float32(real_gates))
    return layer, [[np.float64(weight) for weight in branch.get_weights()] for branch in layer.branches]


def random_gates(seed=2):
    return np.random.default_rng(seed).dirichlet(np.ones(C), J)


def top(real_gates, fan_in):
    """Zeros and ones: the K largest of every row, the lower index first among equals."""
    order = np.argsort(-np.float32(real_gates), axis=1, kind="stable")[:, :fan_in]
    return np.array([[float(k in row) for k in range(np.shape(real_gates)[1])] for row in order])


def forward(binary, y, weights, *, scale, relu=True):
    """Float64: what the branches read before the activation, and what they give."""
    total = np.einsum("jk,kbf->jbf", binary, y) * scale
    read = np.maximum(total, 0) if relu else total
    return total, np.stack([x @ kernel + bias for x, (kernel, bias) in zip(read, weights, strict=True)])


def close(result, expected):
    np.testing.assert_allclose(np.stack(result), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fan_in", [1, 2, 4])
@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize("activation", ["relu", None])
def test_evaluation_is_the_sum_of_the_top_k(fan_in, aggregation, activation):
    y, given = outputs_before()
    layer, weights = built(real_gates=random_gates(), fan_in=fan_in, aggregation=aggregation, activation=activation)
    scale = 1 / fan_in if aggregation == "mean" else 1
    _, expected = forward(top(random_gates(), fan_in), y, weights, scale=scale, relu=activation == "relu")
    close(layer(given), expected)
    close(layer(given, training=False), expected)


def test_with_k_equal_to_c_the_mean_is_the_plain_average():
    y, given = outputs_before()
    layer, weights = built(fan_in=C)
    x = np.maximum(y.mean(axis=0), 0)
    for training in (False, True):
        close(layer(given, training=training), [x @ kernel + bias for kernel, bias in weights])


def test_training_draws_by_seed_and_step():
    y, given = outputs_before()
    layer, weights = built(real_gates=random_gates())
    drawn = []
    for step in range(5):
        drawn.append(gates.draw(np.float32(random_gates()), 2, seed=7, step=step).numpy())
        close(layer(given, training=True), forward(drawn[-1], y, weights, scale=0.5)[1])
        assert int(layer.gate.step) == step + 1
    assert len({each.tobytes() for each in drawn}) > 1
    layer(given)
    assert int(layer.gate.step) == 5
    layer.gate.step.assign(3)
    close(layer(given, training=True), forward(drawn[3], y, weights, scale=0.5)[1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fan_in", [1, 2])
def test_every_gate_has_its_gradient_drawn_or_not(fan_in, training):
    y, given = outputs_before()
    upstream = np.random.default_rng(3).normal(size=(J, 6, OUT))
    layer, weights = built(real_gates=random_gates(), fan_in=fan_in)
    with tf.GradientTape() as tape:
        z = layer(given, training=training)
        loss = tf.reduce_sum(tf.stack(z) * np.float32(upstream))
    binary = gates.draw(np.float32(random_gates()), fan_in, seed=7, step=0).numpy()
    if not training:
        binary = top(random_gates(), fan_in)
    total, _ = forward(binary, y, weights, scale=1 / fan_in)
    of_read = np.stack([of_z @ kernel.T for of_z, (kernel, _) in zip(upstream, weights, strict=True)])
    closed_form = np.einsum("jbf,kbf->jk", of_read * (total > 0), y) / fan_in
    assert np.abs(closed_form).min() > 1e-3
    found = tape.gradient(loss, layer.gate.real_gates.value)
    np.testing.assert_allclose(found, closed_form, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_sources_fix_the_wiring(aggregation):
    y, given = outputs_before()
    layer, weights = built(sources=[(3, 0), (1,), (0, 3)], aggregation=aggregation)
    binary = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]])
    scale = 1 / binary.sum(axis=1)[:, None, None] if aggregation == "mean" else 1
    for training in (False, True):
        close(layer(given, training=training), forward(binary, y, weights, scale=scale)[1])
    assert layer.reads() == ((0, 3), (1,), (0, 3))
    assert not any("real_gates" in variable.path for variable in layer.variables)


def test_one_tensor_is_read_by_all_as_it_is():
    y, (given,) = outputs_before(count=1)
    layer = GatedBranches(dense(3))
    close(layer(given), [y[0] @ np.float64(kernel) for kernel, _ in (each.get_weights() for each in layer.branches)])
    assert layer.reads() is None and len(layer.variables) == 6


def blocks(shape=(8, 8, 6)):
    """Four kinds, one of them a model."""
    channels = shape[-1]
    x = keras.Input(shape)
    residual = keras.Model(x, layers.Add()([x, layers.Conv2D(channels, 5, padding="same")(x)]))
    pool = [layers.AveragePooling2D(3, 1, "same"), layers.Conv2D(channels, 1)]
    return [
        layers.Conv2D(channels, 3, padding="same"),
        layers.SeparableConv2D(channels, 3, padding="same"),
        residual,
        keras.Sequential([*pool, layers.BatchNormalization()]),
    ]


layers = keras.layers


def network(*, fan_in=2):
    images = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Conv2D(6, 3, padding="same")(layers.Rescaling(1 / 255)(images))
    y = GatedBranches(blocks(), name="first")(x)
    y = GatedBranches(blocks(), fan_in, seed=1, name="second")(y)
    y = GatedBranches(blocks()[:3], fan_in, seed=2, name="third")(y)
    return keras.Model(images, layers.Dense(4, activation="softmax")(layers.Flatten()(layers.Average()(y))))


IMAGES = np.random.default_rng(4).integers(0, 256, (16, 8, 8, 1), np.uint8)
LABELS = np.arange(16) % 4


def real_gates(model):
    return {v.path: np.asarray(v) for v in model.trainable_variables if v.path.endswith("real_gates")}


def test_the_optimizer_finds_gates_and_kernels_by_their_names():
    model, alone = network(), {}
    before = {variable.path: np.asarray(variable) for variable in model.trainable_variables}
    for rates in ({"learning_rate": 0.0}, {"gate_learning_rate": 0.0, "l2": 0.1}):
        model.compile(GateConnectSGD(**rates), "sparse_categorical_crossentropy", run_eagerly=True)
        model.train_on_batch(IMAGES, LABELS)
        alone[next(iter(rates))] = {
            # The projection of gates that stay may round.
            v.path
            for v in model.trainable_variables
            if np.abs(before[v.path] - np.asarray(v)).max() > 1e-6
        }
        before = {variable.path: np.asarray(variable) for variable in model.trainable_variables}
    assert alone["learning_rate"] == {"second/gate/real_gates", "third/gate/real_gates"}
    assert {path for path in alone["gate_learning_rate"] if "gate/" in path} == set()
    assert {path for path in before if "kernel" in path} <= alone["gate_learning_rate"]
    kinds = {path.rsplit("/", 1)[-1] for path in before}
    assert {"kernel", "depthwise_kernel", "pointwise_kernel", "real_gates"} < kinds


def test_keras_seed_decides_the_seeds_that_are_not_given():
    found = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        block = GatedDenseBlock(2, 2, 1)
        block.build((None, 2, 2, 3))
        found.append((GatedBranches(dense(2)).gate.seed, block.seed, np.asarray(block.convs[0].kernel).sum()))
    assert found[0] == found[1] and all(one != other for one, other in zip(found[0], found[2], strict=True))


def test_a_symbolic_call_draws_nothing():
    module = GatedBranches(dense(3), fan_in=1)
    model = keras.Model(read := [keras.Input((2,)) for _ in range(3)], module(read, training=True))
    assert int(module.gate.step) == 0
    model([np.ones((1, 2), np.float32)] * 3)
    assert int(module.gate.step) == 1


@pytest.mark.filterwarnings("ignore:.*this layer does not support masking")
def test_frozen_branches_see_no_mask_that_learned_ones_do_not():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(tokens)
    y = GatedBranches([layers.LSTM(4, return_sequences=True) for _ in range(2)])(x)
    y = GatedBranches([layers.LSTM(4) for _ in range(2)], aggregation="sum", activation=None, seed=0)(y)
    model = keras.Model(tokens, layers.Average()(y))
    padded = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]])
    close(gated_resnext.freeze(model)(padded), model(padded))
    close(gated_resnext.prune(model)(padded), model(padded))


TIES_ON_TORCH = """
import keras, numpy as np
import gated_resnext
from gated_resnext import GatedAggregation, GatedBranches, MultiBranchModule
inputs = keras.Input((3,))
y = GatedBranches([keras.layers.Dense(3) for _ in range(5)])(inputs)
y = GatedBranches([keras.layers.Dense(3) for _ in range(5)], fan_in=2, seed=0)(y)
model = keras.Model(inputs, keras.layers.Concatenate()(y))
x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
of = lambda model: np.asarray(model(x).detach())
print(float(np.abs(of(model) - of(gated_resnext.freeze(model))).max()))
wide = np.random.default_rng(1).normal(size=(4, 2, 2, 2, 8)).astype("float32")
gradients = []
for remat in (False, True):
    gate, module = GatedAggregation(2, remat=remat, seed=0), MultiBranchModule(4, 2, 8, seed=0)
    loss = keras.ops.sum(keras.ops.square(module(gate(keras.ops.convert_to_tensor(wide)))))
    loss.backward()
    gradients.append(gate.real_gates.value.grad.numpy())
print(float(np.abs(gradients[0]).max() > 0.1), float(np.abs(gradients[0] - gradients[1]).max()))
"""


@pytest.mark.slow
def test_equal_gates_and_remat_under_torch(run_python):
    pytest.importorskip("torch", reason="torch is not installed (extra: benchmark)")
    done = run_python("-c", TIES_ON_TORCH, env={"KERAS_BACKEND": "torch"})
    assert done.returncode == 0, done.stderr
    ties, moved, remat = map(float, done.stdout.split()[-3:])
    assert ties < 1e-6 and moved and remat < 1e-4


def test_what_is_not_trainable_from_the_start_draws_nothing():
    layer, y = built(trainable=False)[0], outputs_before()[1]
    close(layer(y, training=True), np.stack(layer(y)))
    assert int(layer.gate.step) == 0 and not layer.gate.trainable and not layer.branches[0].trainable


def test_every_kind_of_kernel_decays():
    layer = layers.SeparableConv2D(3, 3)
    layer.build((None, 8, 8, 2))
    optimizer = GateConnectSGD(0.1, l2=0.5)
    before = [np.asarray(variable) for variable in layer.trainable_variables]
    optimizer.apply([tf.zeros(variable.shape) for variable in layer.trainable_variables], layer.trainable_variables)
    for variable, value in zip(layer.trainable_variables, before, strict=True):
        np.testing.assert_allclose(variable, value * (0.95 if "kernel" in variable.path else 1), rtol=1e-6)


def test_another_optimizer_of_keras_keeps_the_gates_on_the_simplex():
    model = network()
    before = real_gates(model)
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=0)
    after = real_gates(model)
    assert set(after) == {"second/gate/real_gates", "third/gate/real_gates"}
    for path, value in after.items():
        assert value.shape == ((4, 4) if "second" in path else (3, 4))
        np.testing.assert_allclose(value.sum(axis=1), 1, rtol=1e-5)
        assert (value >= 0).all() and np.abs(value - before[path]).max() > 1e-3


def test_a_file_holds_branches_gates_and_the_step(tmp_path):
    model = network()
    model.compile(GateConnectSGD(0.01), "sparse_categorical_crossentropy")
    model.train_on_batch(IMAGES, LABELS)
    model.save(tmp_path / "own.keras")
    other = keras.saving.load_model(tmp_path / "own.keras")
    np.testing.assert_array_equal(other(IMAGES), model(IMAGES))
    for value, expected in zip(real_gates(other).values(), real_gates(model).values(), strict=True):
        np.testing.assert_array_equal(value, expected)
    second = other.get_layer("second")
    assert int(second.gate.step) == 1
    configs = [layer.get_config() for layer in (second, model.get_layer("second"))]
    for config in configs:
        assert len(config.pop("branches")) == 4
    assert configs[0] == configs[1]
    np.testing.assert_array_equal(other(IMAGES, training=True), model(IMAGES, training=True))


def test_the_gate_computes_in_the_precision_of_its_layer():
    """A layer of float32 stays one under another policy, also where a file that holds it is read."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = GatedBranches(dense(2), dtype="float32")
        read = GatedBranches.from_config(layer.get_config())
        assert layer.gate.compute_dtype == read.gate.compute_dtype == "float32"
        assert GatedBranches(dense(2)).gate.compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_mixed_precision_keeps_the_gates_in_float32():
    y, given = outputs_before()
    layer = GatedBranches(
        [keras.layers.Dense(OUT, dtype="mixed_bfloat16") for _ in range(J)], fan_in=2, seed=7, dtype="mixed_bfloat16"
    )
    with tf.GradientTape() as tape:
        z = layer(given, training=True)
        loss = tf.reduce_sum(tf.cast(tf.stack(z), tf.float32) ** 2)
    gradient = tape.gradient(loss, layer.gate.real_gates.value)
    assert z[0].dtype == tf.bfloat16 and gradient.dtype == tf.float32 and np.abs(gradient).min() > 0
    binary = gates.draw(np.full((J, C), 0.25, np.float32), 2, seed=7, step=0).numpy()
    weights = [[np.float64(weight) for weight in branch.get_weights()] for branch in layer.branches]
    _, expected = forward(binary, y, weights, scale=0.5)
    np.testing.assert_allclose(np.float32(np.stack(z)), expected, atol=0.05)


def test_a_sequential_model_of_branches():
    model = keras.Sequential(
        [keras.Input((FEATURES,)), GatedBranches(dense(3, 4)), GatedBranches(dense(2), fan_in=3), layers.Average()]
    )
    x = np.random.default_rng(5).normal(size=(3, FEATURES)).astype(np.float32)
    [one, two] = model.layers[:2]
    y = np.mean([x @ branch.kernel for branch in one.branches], axis=0)
    expected = np.mean([np.maximum(y, 0) @ branch.kernel for branch in two.branches], axis=0)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


ON_JAX = """
import sys
import keras, numpy as np
import gated_resnext
from gated_resnext import branches, gates, optimizer

assert keras.backend.backend() == "jax"
model = keras.saving.load_model(sys.argv[1])
given = np.load(sys.argv[2])
before = model.predict(given["images"], verbose=0)
model.compile(optimizer.GateConnectSGD(0.01), "sparse_categorical_crossentropy")
model.fit(given["images"], given["labels"], batch_size=16, verbose=0)
second = model.get_layer("second").gate
pruned = gated_resnext.prune(model)
np.savez(
    sys.argv[3],
    before=before,
    gates=second.real_gates,
    step=second.step,
    unpruned=model.predict(given["images"], verbose=0),
    pruned=pruned.predict(given["images"], verbose=0),
)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_the_same_model_learns_and_is_pruned_under_jax(tmp_path):
    model = network(fan_in=1)
    model.save(tmp_path / "own.keras")
    np.savez(tmp_path / "given.npz", images=IMAGES, labels=LABELS)
    paths = [tmp_path / name for name in ("own.keras", "given.npz", "found.npz")]
    path = os.pathsep.join(each for each in sys.path if each)
    env = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ON_JAX, *paths], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["before"], model(IMAGES), rtol=1e-4, atol=1e-5)
    assert found["step"] == 1 and np.abs(found["gates"] - 0.25).max() > 0
    np.testing.assert_allclose(found["gates"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["pruned"], found["unpruned"], rtol=1e-5, atol=1e-6)


def shared_block():
    block = layers.Dense(OUT)
    return [block, block]


def stacked(first, second):
    """Two GatedBranches, one after the other."""
    return second(first(keras.Input((FEATURES,))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GatedBranches([]), r"branches must be one or more layers.* Received: branches=\[\]"),
        (lambda: GatedBranches(shared_block()), "each given once. Received: branches="),
        (lambda: GatedBranches([tf.nn.relu]), "layers or models, each given once. Received: "),
        (lambda: GatedBranches(dense(2), aggregation="max"), "Received: aggregation='max'"),
        (lambda: GatedBranches(dense(2), aggregation="weighted"), r"one of \('mean', 'sum'\). Received: aggregation="),
        (
            lambda: GatedBranches(dense(2), fan_in=1.5),
            "fan_in must be a whole number of at least 1. Received: fan_in=1.5",
        ),
        (lambda: GatedBranches(dense(2), sources=[0, 1]), r"lists of whole numbers, one a block. Received: .*\[0, 1\]"),
        (
            lambda: GatedBranches(dense(2), sources=[(0.9,), (1,)]),
            r"lists of whole numbers.* Received: sources=\[\(0.9,",
        ),
        (lambda: GatedBranches(dense(2), name="early").reads(), "early was not built: it has gates once it has read"),
        (
            lambda: GatedBranches([layers.LSTM(4, return_state=True) for _ in range(2)])(keras.Input((3, 2))),
            "each branch must give one tensor. Received: outputs=",
        ),
        (
            lambda: GatedBranches(dense(2))([keras.Input((None, 4)), keras.Input((8, 4))]),
            r"must have one shape. Received: shapes=\[\(None, 8, 4\), \(None, None, 4\)\]",
        ),
        (
            lambda: stacked(GatedBranches(dense(2)), GatedBranches(dense(1), sources=[(1, 1)])),
            r"out of the 2 of module 1. Received: \[1, 1\]",
        ),
        (lambda: GatedBranches(dense(2), sources=[(0,)]), r"each of the 2 branches. Received: sources=\(\(0,\),\)"),
        (
            lambda: stacked(GatedBranches(dense(2)), GatedBranches(dense(2), fan_in=3)),
            "fan_in must be between 1 and the 2 branches. Received: fan_in=3",
        ),
        (
            lambda: stacked(GatedBranches(dense(2)), GatedBranches([*dense(1, 2), *dense(1, 3)])),
            r"the branches must give one shape. Received: shapes=\[\(None, 2\), \(None, 3\)\]",
        ),
        (
            lambda: GatedBranches(dense(2))([keras.Input((2,)), keras.Input((3,))]),
            r"the tensors to choose from must have one shape. Received: shapes=\[\(None, 2\), \(None, 3\)\]",
        ),
        (
            lambda: stacked(GatedBranches(dense(2)), GatedBranches(dense(1), sources=[(2,)])),
            r"out of the 2 of module 1. Received: \[2\]",
        ),
        (
            lambda: GatedBranches(dense(1), sources=[(0,)])(keras.Input((2,))),
            r"one tensor is read by all branches. Received: sources=\(\(0,\),\)",
        ),
    ],
)
def test_what_a_user_can_get_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_it_is_found_at_the_top():
    assert gated_resnext.GatedBranches is GatedBranches
