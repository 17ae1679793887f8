import importlib.util
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf

import gated_resnext
from gated_resnext import gates
from gated_resnext.architecture import Architecture
from gated_resnext.branches import GatedBranches
from gated_resnext.connectivity import Connectivity
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD

# A module that projects for its channels, one that does not, and one that projects for its stride.
SMALL = Architecture(
    depth=11,
    width=2,
    cardinality=3,
    fan_in=2,
    classes=5,
    input_shape=(7, 8, 3),
    stem_filters=4,
    filters=6,
    stages=(2, 1),
)
WIRING = (2, (((0, 1), (1,), (0,), (0, 1)), ((0, 2), (3,), (1, 2, 3))))
TWO_MODULES = SMALL.replace(depth=8, stages=(1, 1))
LABELS = np.array([0, 3, 1, 4])
NETWORKS = {
    "learned": (SMALL, None),
    "sum": (SMALL.replace(aggregation="sum", fan_in=1), None),
    "real": (SMALL.replace(gates="real"), None),
    "weighted": (SMALL.replace(aggregation="weighted"), None),
    "fixed": (SMALL, WIRING),
    "fixed weighted": (SMALL.replace(aggregation="weighted"), WIRING),
    "fixed sum": (SMALL.replace(aggregation="sum"), WIRING),
    "shared": (SMALL.replace(aggregation="shared", fan_in=3), None),
    "conv3_pool": (SMALL.replace(stem="conv3_pool", input_shape=(9, 10, 1), stages=(1, 1, 1)), None),
    "conv7_pool": (SMALL.replace(stem="conv7_pool", input_shape=(19, 16, 3)), WIRING),
    "shared conv7_pool": (
        SMALL.replace(aggregation="shared", fan_in=3, stem="conv7_pool", input_shape=(16, 19, 3)),
        None,
    ),
    "one module": (SMALL.replace(depth=5, stages=(1,)), None),
}


def network(arch, wiring=None, *, seed=0, activation=None):
    """A network of random weights, statistics and gates."""
    model = GatedResNeXt(arch, wiring and Connectivity(*wiring), activation, seed=1)
    model.assign_by_name(oracle.random_weights(model.weights_by_name(), seed=seed))
    return model


def mixings_of(model, training):
    """The weights of every sum, as the paper has them; None for Eq. 1."""
    arch = model.architecture
    if arch.aggregation == "shared":
        return None
    if model.connectivity is not None:
        fixed = oracle.gate_matrices((model.connectivity.first, model.connectivity.sources))
        return [oracle.mixing(binary, *summed) for binary, summed in zip(fixed, sums_of(model), strict=True)]
    if arch.gates == "real":
        return [np.float64(real) for real in model.real_gates()]
    if training:
        binary = [gates.draw(g.real_gates, arch.fan_in, seed=g.seed, step=int(g.step)).numpy() for g in model.gates]
    else:
        binary = [(np.argsort(np.argsort(-real, axis=1), axis=1) < arch.fan_in) for real in model.real_gates()]
    return [oracle.mixing(b, *summed) for b, summed in zip(binary, sums_of(model), strict=True)]


def sums_of(model):
    """For each gate, how its blocks sum what they read, and with which weights."""
    aggregation = model.architecture.aggregation
    if aggregation == "weighted":
        return [(aggregation, gate.branch_weights.numpy()) for gate in model.gates]
    return [(aggregation,) for _ in model.gates]


def reference(model, weights, images, mixings, training=False):
    arch = model.architecture
    return oracle.forward(weights, images, mixings, stem=arch.stem, aggregation=arch.aggregation, training=training)


def assert_close(result, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_equals_the_oracle(name):
    model = network(*NETWORKS[name])
    images = oracle.random_images(model.architecture.input_shape, batch=3, seed=1)
    expected = reference(model, model.weights_by_name(), images, mixings_of(model, training=False)).logits
    assert_close(model(images, training=False), expected)
    assert expected.std(axis=0).max() > 0.01 * np.abs(expected).max()  # the images do matter


def test_the_head_gives_probabilities_unless_told_otherwise():
    model = GatedResNeXt(SMALL)
    images = oracle.random_images(SMALL.input_shape, batch=3, seed=14)
    expected = reference(model, model.weights_by_name(), images, mixings_of(model, training=False))
    np.testing.assert_allclose(model(images), expected.probabilities, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_equals_the_oracle_and_moves_every_statistic(name):
    model = network(*NETWORKS[name])
    images = oracle.random_images(model.architecture.input_shape, batch=4, seed=2)
    before, mixings = model.weights_by_name(), mixings_of(model, training=True)
    expected = reference(model, before, images, mixings, training=True)
    assert_close(model(images, training=True), expected.logits, 1e-3)
    after = model.weights_by_name()
    assert set(expected.moving) == {name for name in after if "/moving_" in name}
    for key, value in after.items():
        if key in expected.moving:
            assert_close(value, expected.moving[key])
        elif key.endswith("/step"):
            assert value == before[key] + (model.architecture.gates == "binary")
        else:
            np.testing.assert_array_equal(value, before[key])


def finite_difference(loss, value, direction, step=1e-6):
    return (loss(value + step * direction) - loss(value - step * direction)) / (2 * step)


def finite_gate_gradients(model, weights, images, labels, mixings):
    """dL/dg_jk of the loss in training for every gate, drawn or not, by differences of the oracle."""
    found = []
    for number, matrix in enumerate(mixings):

        def loss(changed, number=number):
            used = [changed if i == number else m for i, m in enumerate(mixings)]
            return oracle.cross_entropy(reference(model, weights, images, used, training=True).logits, labels)

        gradient = np.zeros(matrix.shape)
        for index in np.ndindex(matrix.shape):
            direction = np.zeros(matrix.shape)
            direction[index] = 1.0
            gradient[index] = finite_difference(loss, matrix, direction)
        found.append(gradient)
    return found


def gradients(model, images, labels):
    """Of the mean cross-entropy in training, by the name of the variable."""
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    values = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    return {v.path: g.numpy() for v, g in zip(model.trainable_variables, values, strict=True)}


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_gates_have_their_gradient_through_the_whole_network(aggregation):
    model = network(SMALL.replace(aggregation=aggregation))
    arch, images = model.architecture, oracle.random_images(SMALL.input_shape, batch=4, seed=3)
    mixings = mixings_of(model, training=True)
    expected = finite_gate_gradients(model, model.weights_by_name(), images, LABELS, mixings)
    found = gradients(model, images, LABELS)
    for gate, matrix, gradient in zip(model.gates, mixings, expected, strict=True):
        assert (matrix == 0).any() and np.abs(gradient[matrix == 0]).min() > 1e-5  # those not drawn learn too
        scale = arch.fan_in if arch.aggregation == "mean" else 1
        assert_close(found[gate.real_gates.path], gradient / scale, 2e-3)


def test_gates_and_weights_of_the_sum_have_their_gradients_through_the_whole_network():
    model = network(SMALL.replace(aggregation="weighted"))
    images = oracle.random_images(SMALL.input_shape, batch=4, seed=3)
    mixings = mixings_of(model, training=True)
    expected = finite_gate_gradients(model, model.weights_by_name(), images, LABELS, mixings)
    weights, found = [gate.branch_weights.numpy() for gate in model.gates], gradients(model, images, LABELS)
    for gate, factors, mixing, gradient in zip(model.gates, weights, mixings, expected, strict=True):
        assert_close(found[gate.real_gates.path], factors * gradient, 2e-3)
        assert_close(found[gate.branch_weights.path], (mixing != 0) * gradient, 2e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wiring", [None, Connectivity(*WIRING)])
def test_weights_that_have_not_moved_are_the_mean_to_the_bit(wiring, training):
    images = oracle.random_images(SMALL.input_shape, batch=4, seed=3)
    mean, weighted = (
        GatedResNeXt(SMALL.replace(aggregation=aggregation), wiring, None, seed=1)
        for aggregation in ("mean", "weighted")
    )
    np.testing.assert_array_equal(weighted(images, training=training), mean(images, training=training))


@pytest.mark.parametrize("name", ["learned", "shared", "fixed"])
def test_every_weight_has_its_gradient_through_the_whole_network(name):
    model = network(*NETWORKS[name])
    images = oracle.random_images(SMALL.input_shape, batch=4, seed=4)
    weights, mixings = model.weights_by_name(), mixings_of(model, training=True)
    rng = np.random.default_rng(5)
    found = gradients(model, images, LABELS)
    for key in (key for key in found if not key.endswith("/real_gates")):

        def loss(changed, key=key):
            result = reference(model, {**weights, key: changed}, images, mixings, training=True)
            return oracle.cross_entropy(result.logits, LABELS)

        # Along the gradient itself the difference is its norm; across it, no larger than the rounding.
        along = found[key] / np.linalg.norm(found[key])
        across = rng.normal(size=along.shape)
        across -= along * np.sum(along * across)
        np.testing.assert_allclose(
            finite_difference(loss, np.float64(weights[key]), along), np.linalg.norm(found[key]), rtol=2e-3, err_msg=key
        )
        difference = finite_difference(loss, np.float64(weights[key]), across)
        assert abs(difference) < 2e-3 * np.linalg.norm(found[key]) * np.linalg.norm(across) + 1e-6, key


@pytest.mark.parametrize("training", [False, True])
def test_all_ones_gates_under_the_mean_are_resnext(training):
    shared = network(SMALL.replace(aggregation="shared", fan_in=3))
    weights = shared.weights_by_name()
    for key in weights:
        if "/expand/norm/gamma" in key or "/expand/norm/beta" in key:
            weights[key] = weights[key] * SMALL.cardinality
    images = oracle.random_images(SMALL.input_shape, batch=4, seed=6)
    expected = reference(shared, shared.weights_by_name(), images, None, training).logits
    assert_close(shared(images, training=training), expected, 1e-3 if training else 1e-4)
    full = Connectivity.full(SMALL.modules, SMALL.cardinality)
    for wiring in (full, None):  # where gates are learned, K = C draws them all
        gated = GatedResNeXt(SMALL.replace(fan_in=3), wiring, None)
        gated.assign_by_name({**gated.weights_by_name(), **weights})
        assert_close(gated(images, training=training), expected, 1e-3 if training else 1e-4)


def test_resnext_begins_as_the_network_that_reads_all_blocks():
    arch = SMALL.replace(fan_in=3)
    gated = GatedResNeXt(arch, classifier_activation=None, seed=3)
    resnext = GatedResNeXt(arch.replace(aggregation="shared"), classifier_activation=None, seed=3)
    images = np.random.default_rng(0).integers(0, 256, (8, *arch.input_shape)).astype("uint8")
    for training in (False, True):
        np.testing.assert_allclose(
            resnext(images, training=training), gated(images, training=training), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("wiring", [Connectivity.full(SMALL.modules, SMALL.cardinality), None])
def test_the_network_that_reads_all_blocks_trains_as_resnext(wiring):
    arch = SMALL.replace(fan_in=3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, *arch.input_shape)).astype("uint8")
    labels = rng.integers(0, arch.classes, (5, 8))
    losses = []
    for network_, connectivity in ((arch, wiring), (arch.replace(aggregation="shared"), None)):
        model = GatedResNeXt(network_, connectivity, seed=3)
        model.compile(GateConnectSGD(0.05), "sparse_categorical_crossentropy", run_eagerly=True)
        losses.append([model.train_on_batch(*batch) for batch in zip(images, labels, strict=True)])
    gated, resnext = np.asarray(losses, float)
    assert resnext[0] - resnext[-1] > 0.1  # it moved
    np.testing.assert_allclose(gated, resnext, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "inner", "last"),
    [
        ({}, 4, 9),  # the mean of K = 2, the head's of C = 3
        ({"aggregation": "weighted"}, 4, 9),
        ({"gates": "real"}, 9, 9),
        ({"gates": "real", "aggregation": "sum"}, 9, 1),  # real gates sum to 1, the head's sum is one
        ({"aggregation": "sum"}, 1, 1),
        ({"aggregation": "shared", "fan_in": 3}, 1, 1),
    ],
)
def test_residuals_of_a_mean_learn_as_those_of_a_sum(changes, inner, last):
    check_factors(GatedResNeXt(SMALL.replace(**changes), seed=0), inner, last)


@pytest.mark.parametrize(
    ("sources", "last"), [(((0,), (2,), (1,)), 9), (((0, 1), (1, 2)), 4)], ids=["three blocks", "two blocks"]
)
def test_a_wiring_says_of_how_many_the_heads_mean_is(sources, last):
    wiring = Connectivity(3, (((0, 1), (1, 2), (0, 2)), sources))
    model = GatedResNeXt(SMALL, wiring, seed=0)
    factors = {v.path: getattr(v, "rate_factor", 1.0) for v in model.trainable_variables}
    names = [plan.name for plan in SMALL.plan()]
    assert [factors[f"{name}/expand/norm/gamma"] for name in names] == [4, 4, last]


def check_factors(model, inner, last):
    factors = {v.path: getattr(v, "rate_factor", 1.0) for v in model.trainable_variables}
    *before, end = (plan.name for plan in SMALL.plan())
    expected = {f"{name}/expand/norm/{kind}": inner for name in before for kind in ("gamma", "beta")}
    expected |= {f"{end}/expand/norm/{kind}": last for kind in ("gamma", "beta")}
    assert factors == {**dict.fromkeys(factors, 1.0), **expected}


OTHER_LAYOUT = """
import sys
import keras, numpy as np
keras.config.set_image_data_format("channels_first")
from export.compact import compact
from gated_resnext import Architecture, GatedDenseBlock, GatedResNeXt, zoo
images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
model = zoo.load("digits_11_4_4_k1", "published")
large = GatedResNeXt(
    Architecture(11, 2, 2, 1, input_shape=(20, 16, 3), stem="conv7_pool"), include_top=False, pooling="max", seed=0
)
pixels = np.random.default_rng(1).integers(0, 256, (2, 20, 16, 3), np.uint8)
dense = GatedDenseBlock(2, 2, 1, transition=3, seed=0)(np.random.default_rng(2).random((2, 6, 8, 3), np.float32))
np.savez(sys.argv[1], model=model(images), compact=compact(model)(images), large=large(pixels), dense=dense)
"""


@pytest.mark.slow
def test_the_layout_is_ours_whatever_keras_is_set_to(run_python, tmp_path):
    ours = OTHER_LAYOUT.replace("channels_first", "channels_last")
    for name, code in (("first", OTHER_LAYOUT), ("last", ours)):
        done = run_python("-c", code, tmp_path / f"{name}.npz")
        assert done.returncode == 0, done.stderr
    first, last = (np.load(tmp_path / f"{name}.npz") for name in ("first", "last"))
    assert sorted(last) == ["compact", "dense", "large", "model"] and last["large"].shape == (2, 256)
    for name in last:
        np.testing.assert_array_equal(first[name], last[name], err_msg=name)


def test_every_block_of_module_1_reads_the_stem():
    model = network(SMALL)
    before = [layer.name for layer in model.layers].index("stage1_module1")
    assert model.layers[before - 1].name == "stem_relu"
    assert [gate.name for gate in model.gates] == ["stage1_module2_gate", "stage2_module1_gate"]


def test_gates_begin_uniform():
    for real in GatedResNeXt(SMALL).real_gates():
        np.testing.assert_allclose(real, np.full((3, 3), 1 / 3), rtol=1e-7)


def test_no_convolution_has_a_bias():
    biases = [name for name in network(SMALL).weights_by_name() if "bias" in name]
    assert biases == ["classifier/bias"]


def test_every_module_draws_its_own():
    model = GatedResNeXt(Architecture(11, 2, 8, 4, filters=4, stem_filters=2), seed=0)
    first, second = (gates.draw(g.real_gates, 4, seed=g.seed, step=0).numpy() for g in model.gates)
    assert (first != second).any()


def test_the_seed_decides_weights_and_draws():
    one, same, other = (GatedResNeXt(SMALL, seed=seed) for seed in (4, 4, 5))
    weights = one.weights_by_name()
    for key, value in same.weights_by_name().items():
        np.testing.assert_array_equal(value, weights[key])
    different = [key for key, value in other.weights_by_name().items() if (value != weights[key]).any()]
    assert different == [key for key in weights if key.endswith("/kernel")]
    assert [g.seed for g in one.gates] == [g.seed for g in same.gates] != [g.seed for g in other.gates]
    assert GatedResNeXt(SMALL).seed != GatedResNeXt(SMALL).seed


def test_blocks_of_a_module_begin_differently():
    kernels = GatedResNeXt(SMALL, seed=0).weights_by_name()["stage1_module1/conv/kernel"]
    assert len({kernel.tobytes() for kernel in kernels}) == SMALL.cardinality


@pytest.mark.parametrize("name", ["learned", "fixed", "shared", "real"])
def test_the_wiring_it_evaluates_with(name):
    model = network(*NETWORKS[name])
    if name == "learned":
        mixings = mixings_of(model, training=False)
        assert [model.wiring().binary_gates(i + 2).tolist() for i in range(2)] == [(m > 0).tolist() for m in mixings]
    else:
        assert model.wiring() == (Connectivity(*WIRING) if name == "fixed" else Connectivity.full(3, 3))


def test_images_may_be_bytes_or_floats():
    model = network(SMALL)
    images = oracle.random_images(SMALL.input_shape, batch=2, seed=7)
    np.testing.assert_array_equal(model(images), model(images.astype(np.float32)))


def test_mixed_precision_keeps_the_head_and_all_variables_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(SMALL, activation="softmax")
    finally:
        keras.config.set_dtype_policy(before)
    images = oracle.random_images(SMALL.input_shape, batch=3, seed=8)
    assert model.get_layer("stage2_module1").compute_dtype == "bfloat16"
    assert {v.dtype for v in model.variables} == {"float32", "int64"}  # TensorFlow keeps no int32 on a GPU
    result = model(images)
    assert result.dtype == tf.float32
    expected = reference(model, model.weights_by_name(), images, mixings_of(model, training=False)).probabilities
    assert 0 < np.abs(result - expected).max() < 0.1


ROUND_TRIPS = {
    **{name: NETWORKS[name] for name in ("learned", "weighted", "fixed weighted", "fixed", "shared", "real")},
    "pruned": (SMALL, WIRING),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_keras_files_round_trip(name, tmp_path):
    arch, wiring = ROUND_TRIPS[name]
    if name == "pruned":
        wiring = Connectivity(*wiring).pruned()
        wiring = (wiring.first, wiring.sources)
    model = network(arch, wiring, activation="softmax")
    for gate in model.gates:
        if gate.sources is None:
            gate.step.assign(5)
    model.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert isinstance(loaded, GatedResNeXt)
    assert (loaded.architecture, loaded.connectivity, loaded.seed) == (arch, model.connectivity, model.seed)
    assert loaded.wiring() == model.wiring()
    weights = model.weights_by_name()
    assert set(loaded.weights_by_name()) == set(weights)
    for key, value in loaded.weights_by_name().items():
        np.testing.assert_array_equal(value, weights[key], err_msg=key)
    images = oracle.random_images(arch.input_shape, batch=2, seed=9)
    np.testing.assert_array_equal(loaded(images), model(images))
    # And the next draw is the one that would have come.
    np.testing.assert_array_equal(loaded(images, training=True), model(images, training=True))


def test_the_config_is_plain_json():
    model = network(SMALL, WIRING)
    assert GatedResNeXt.from_config(model.get_config()).get_config() == model.get_config()
    assert keras.saving.serialize_keras_object(model.get_config())["connectivity"]["first"] == WIRING[0]


def test_weights_go_from_one_network_to_another_by_name():
    one, other = network(SMALL), GatedResNeXt(SMALL, None, None, seed=3)
    other.assign_by_name(one.weights_by_name())
    images = oracle.random_images(SMALL.input_shape, batch=2, seed=10)
    np.testing.assert_array_equal(other(images), one(images))


@pytest.mark.parametrize("broken", ["unknown", "missing", "shape"])
def test_weights_of_another_network_are_refused_whole(broken):
    model = network(SMALL)
    values = oracle.random_weights(model.weights_by_name(), seed=11)
    message = "the weights are of another network: .*classifier/"
    if broken == "unknown":
        values["classifier/kernels"] = np.zeros(3)
    elif broken == "missing":
        del values["classifier/bias"]
    else:
        values["classifier/bias"] = np.zeros(6)
        message = r"classifier/bias has the shape \(5,\). Received: \(6,\)"
    before = model.weights_by_name()
    with pytest.raises(ValueError, match=message):
        model.assign_by_name(values)
    for key, value in model.weights_by_name().items():
        np.testing.assert_array_equal(value, before[key])


def test_real_gates_take_no_wiring():
    with pytest.raises(ValueError, match="of gates='real' every block reads every other; it takes no connectivity"):
        GatedResNeXt(SMALL.replace(gates="real"), Connectivity.full(3, 3))


def test_a_wiring_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="the architecture has 3 modules. Received: a wiring of 4"):
        GatedResNeXt(SMALL, Connectivity.full(4, 3))


def test_resnext_takes_no_wiring():
    with pytest.raises(ValueError, match="aggregation='shared' is wired fully; it takes no connectivity"):
        GatedResNeXt(NETWORKS["shared"][0], Connectivity.full(3, 3))


def in_another_process(code, *arguments, **environment):
    """Runs the code with the arguments, and shows what it wrote should it fail."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


TWO_REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.saving.load_model(sys.argv[1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(GateConnectSGD(0.01, gate_learning_rate=0.02, l2=0.1), loss, jit_compile=False)
given = np.load(sys.argv[2])
batches = tf.data.Dataset.from_tensor_slices((given["images"], given["labels"])).batch(8)
model.fit(batches, shuffle=False, verbose=0)
after_one = model.weights_by_name()
model.fit(batches.repeat(2), shuffle=False, verbose=0)
copies = {
    name: [copy.numpy() for copy in strategy.experimental_local_results(getattr(model.gates[0], name).value)]
    for name in ("real_gates", "step")
}
np.savez(sys.argv[3], **copies, **after_one)
"""


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory):
    """A network, a batch of two halves, and what one step and then two more made of it on two devices."""
    folder = tmp_path_factory.mktemp("two_replicas")
    model = network(TWO_MODULES)
    model.save(folder / "network.keras")
    images, labels = oracle.random_images(SMALL.input_shape, batch=8, seed=12), np.tile(LABELS, 2)
    np.savez(folder / "given.npz", images=images, labels=labels)
    in_another_process(TWO_REPLICAS, folder / "network.keras", folder / "given.npz", folder / "found.npz")
    return model, np.split(images, 2), np.split(labels, 2), dict(np.load(folder / "found.npz"))


def test_two_replicas_count_a_step_once_and_keep_the_same_gates(two_replicas):
    model, _, _, found = two_replicas
    assert found["stage2_module1_gate/step"] == 1
    assert found["step"].tolist() == [3, 3]
    one, other = found["real_gates"]
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - model.real_gates()[0]).max() > 1e-4


def test_two_replicas_step_along_the_mean_gradient_of_the_same_draw(two_replicas):
    model, images, labels, found = two_replicas
    before, halves = model.weights_by_name(), []
    for half, half_labels in zip(images, labels, strict=True):
        model.gates[0].step.assign(0)
        halves.append(gradients(model, half, half_labels))
    model.assign_by_name(before)
    for key in halves[0]:
        value, gradient = before[key], (halves[0][key] + halves[1][key]) / 2
        read_by = {"stage1_module1": TWO_MODULES.fan_in, "stage2_module1": TWO_MODULES.cardinality}
        factor = read_by[key.split("/")[0]] ** 2 if "/expand/norm/" in key else 1
        expected = value - 0.01 * factor * (gradient + (0.1 * value if key.endswith("/kernel") else 0))
        if key.endswith("/real_gates"):
            clipped = np.clip(value - 0.02 * gradient, 0, 1)
            expected = clipped / clipped.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)


def test_two_replicas_keep_the_mean_of_their_statistics(two_replicas):
    model, images, _, found = two_replicas
    mixings = mixings_of(model, training=True)
    one, other = (reference(model, model.weights_by_name(), half, mixings, training=True).moving for half in images)
    assert len(one) == 2 * (1 + 2 * 4)  # of the stem, and of the three layers and the projection of two modules
    for key in one:
        np.testing.assert_allclose(found[key], (one[key] + other[key]) / 2, rtol=1e-3, atol=1e-4, err_msg=key)


ON_JAX = """
import sys
import keras, numpy as np
from gated_resnext import gates, model as _
from gated_resnext.optimizer import GateConnectSGD

assert keras.backend.backend() == "jax"
model = keras.saving.load_model(sys.argv[1])
given = np.load(sys.argv[2])
before = model.predict(given["images"], verbose=0)
(gate,) = model.gates
drawn = np.asarray(gates.draw(gate.real_gates.value, gate.fan_in, seed=gate.seed, step=0))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(GateConnectSGD(0.01, gate_learning_rate=0.02, l2=0.1), loss)
model.fit(given["images"], given["labels"], batch_size=4, verbose=0)
np.savez(sys.argv[3], before=before, drawn=drawn, **model.weights_by_name())
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("aggregation", ["mean", pytest.param("weighted", marks=pytest.mark.slow)])
def test_the_same_network_under_jax(aggregation, tmp_path):
    model = network(TWO_MODULES.replace(aggregation=aggregation))
    model.save(tmp_path / "network.keras")
    images = oracle.random_images(SMALL.input_shape, batch=4, seed=13)
    np.savez(tmp_path / "given.npz", images=images, labels=LABELS)
    in_another_process(
        ON_JAX,
        *(tmp_path / name for name in ("network.keras", "given.npz", "found.npz")),
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
    )
    found, weights = np.load(tmp_path / "found.npz"), model.weights_by_name()
    assert_close(found["before"], reference(model, weights, images, mixings_of(model, training=False)).logits)
    np.testing.assert_array_equal(found["drawn"].sum(axis=1), SMALL.fan_in)
    mixings = [oracle.mixing(found["drawn"], *sums_of(model)[0])]
    expected = reference(model, weights, images, mixings, training=True)
    for key, value in expected.moving.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    (gradient,) = finite_gate_gradients(model, weights, images, LABELS, mixings)
    factors = 1 / SMALL.fan_in
    if aggregation == "weighted":
        factors = weights["stage2_module1_gate/branch_weights"]
        moved = factors - 0.01 * found["drawn"] * gradient
        np.testing.assert_allclose(found["stage2_module1_gate/branch_weights"], moved, rtol=1e-4, atol=1e-5)
        assert np.abs(moved - factors).max() > 1e-4
    clipped = np.clip(model.real_gates()[0] - 0.02 * gradient * factors, 0, 1)
    projected = clipped / clipped.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["stage2_module1_gate/real_gates"], projected, rtol=1e-4, atol=1e-5)
    assert found["stage2_module1_gate/step"] == 1


# Within other people's programs


def learned_branches():
    images = keras.Input(SMALL.input_shape, dtype="uint8")
    y = [keras.layers.Conv2D(4, 3, padding="same") for _ in range(3)]
    z = [keras.layers.Conv2D(4, 3, padding="same") for _ in range(3)]
    y = GatedBranches(z, fan_in=1, seed=1)(GatedBranches(y)(keras.layers.Rescaling(1 / 255)(images)))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Average()(y))
    return keras.Model(images, keras.layers.Dense(SMALL.classes)(x))


def learned_dense():
    images = keras.Input(SMALL.input_shape, dtype="uint8")
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(images))
    x = GatedDenseBlock(2, 4, 1, transition=4, transition_fan_in=2, seed=1)(x)
    return keras.Model(images, keras.layers.Dense(SMALL.classes)(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: network(TWO_MODULES),
        pytest.param(lambda: GatedResNeXt(TWO_MODULES, None, None, remat=True, seed=3), marks=pytest.mark.slow),
        pytest.param(
            lambda: GatedResNeXt(TWO_MODULES, None, None, precision="mixed_bfloat16", seed=3), marks=pytest.mark.slow
        ),
        pytest.param(learned_branches, marks=pytest.mark.slow),
        pytest.param(learned_dense, marks=pytest.mark.slow),
    ],
    ids=["network", "remat", "mixed_bfloat16", "branches", "dense block"],
)
def test_it_learns_where_xla_compiles_the_step(make):
    """As Keras' `fit` does on a GPU unless it is told otherwise. The draws are XLA's own."""
    model = make()
    real_gates = [v for v in model.variables if v.path.endswith("real_gates")]
    before = [np.array(gates) for gates in real_gates]
    assert before
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(GateConnectSGD(0.1, gate_learning_rate=2.0), loss, jit_compile=True)
    images = oracle.random_images(SMALL.input_shape, batch=16, seed=13)
    found = model.fit(images, np.arange(16) % SMALL.classes, batch_size=8, epochs=16, shuffle=False, verbose=0)
    assert found.history["loss"][-1] < found.history["loss"][0]
    for gates_, old in zip(real_gates, before, strict=True):
        assert np.abs(np.asarray(gates_) - old).max() > 1e-4
        np.testing.assert_allclose(np.asarray(gates_).sum(-1), 1, atol=1e-5)
    assert {int(v) for v in model.variables if v.path.endswith("/step")} == {32}


def test_names_are_the_same_wherever_it_was_made():
    plain = network(TWO_MODULES)

    class Mine(keras.Model):
        def build(self, shape):
            self.trunk = GatedResNeXt(TWO_MODULES, None, None, seed=3)
            self.small = gated_resnext.prune(gated_resnext.freeze(self.trunk))

        def call(self, images):
            return self.small(images)

    mine = Mine()
    mine(oracle.random_images(SMALL.input_shape, batch=1, seed=0))
    assert list(mine.trunk.weights_by_name()) == list(plain.weights_by_name())
    assert mine.trunk.variables[-1].path not in plain.weights_by_name(), "Keras has another name for it"
    mine.trunk.assign_by_name(plain.weights_by_name())
    images = oracle.random_images(SMALL.input_shape, batch=3, seed=1)
    np.testing.assert_array_equal(mine.trunk(images), plain(images))
    pruned = gated_resnext.prune(gated_resnext.freeze(mine.trunk))
    np.testing.assert_allclose(pruned(images), plain(images), atol=1e-6)


def test_it_is_quantised_by_the_export():
    with pytest.raises(ValueError, match="is quantised as it is exported: python -m export.prune_and_save --formats"):
        network(TWO_MODULES).quantize("int8")


@pytest.mark.slow
def test_a_compiled_network_opens_where_the_networks_class_alone_was_imported(run_python, tmp_path):
    model = network(TWO_MODULES)
    model.compile(GateConnectSGD(0.1), "sparse_categorical_crossentropy")
    model.save(tmp_path / "compiled.keras")
    (tmp_path / "pickled").write_bytes(pickle.dumps(model))
    code = """
import sys, keras
from gated_resnext import GatedResNeXt
print(type(keras.saving.load_model(sys.argv[1]).optimizer).__name__)
"""
    done = run_python("-c", code, tmp_path / "compiled.keras")
    assert (done.returncode, done.stdout) == (0, "GateConnectSGD\n"), done.stderr[-2000:]
    done = run_python("-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", tmp_path / "pickled")
    assert done.returncode == 0, done.stderr[-2000:]
