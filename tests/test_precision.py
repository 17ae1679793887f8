"""Training in mixed precision follows float32; recomputing what the blocks read changes nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from runs import Photographed, assert_same_end, images_of, newest, small_run
from tensorflow.python.grappler import tf_optimizer

from gated_resnext import Architecture, Connectivity, GatedResNeXt, gates, pruning
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.loop import Loop, TensorFlowEngine
from gated_resnext.optimizer import GateConnectSGD, restart
from gated_resnext.phase_networks import Options
from gated_resnext.recipes import RECIPES, read
from gated_resnext.trainer import train
from gated_resnext.workdir import Run

SMALL = Architecture(depth=11, width=4, cardinality=4, fan_in=2, input_shape=(8, 8, 1))
RANDOM = Connectivity.random(3, 4, 2, seed=0)
STEPS = 50


def network(wiring=None, aggregation="mean", **options):
    return GatedResNeXt(SMALL.replace(aggregation=aggregation), wiring, None, seed=0, **options)


def losses(model, digits_dir, steps=STEPS):
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    optimizer = GateConnectSGD(0.03, gate_learning_rate=0.2)  # at 0.1 rounding soon makes another training of it
    if model.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    batch = images.recipe.batch_size
    loop = Loop(model, tf.distribute.get_strategy(), batch, optimizer)
    return loop.train(iter(images.train(seed=0, first_step=0, steps=steps)), steps)[:, 0] / batch


@pytest.fixture(scope="module")
def in_float32(digits_dir):
    return losses(network(), digits_dir)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_losses_of_mixed_precision_track_those_of_float32(in_float32, precision, digits_dir):
    model = network(precision=precision)
    found = losses(model, digits_dir)
    assert in_float32[:5].mean() > 2 and in_float32[-5:].mean() < 1.5  # there is something to follow
    assert not np.array_equal(found, in_float32)
    for window in np.arange(STEPS).reshape(5, 10):
        np.testing.assert_allclose(found[window].mean(), in_float32[window].mean(), rtol=0.06)
    for variable in model.variables:
        assert variable.dtype in ("float32", "int64"), variable.path


def test_the_network_of_a_precision_keeps_it_and_its_function():
    model = network(precision="mixed_bfloat16", remat=True)
    assert keras.config.dtype_policy().name == "float32"
    assert {layer.compute_dtype for layer in model.gates} == {"bfloat16"}
    assert model.get_layer("classifier").compute_dtype == "float32"
    copy = GatedResNeXt.from_config(model.get_config())
    assert (copy.precision, copy.remat) == ("mixed_bfloat16", True)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    pruned = pruning.prune(model)
    assert pruned.precision == "mixed_bfloat16"
    np.testing.assert_allclose(pruned(images), model(images), atol=0.05)
    full = pruning.rebuild(model, precision="float32")
    assert full.precision == "float32"
    assert 0 < np.abs(np.asarray(full(images)) - np.asarray(model(images))).max() < 0.05


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("wiring", "aggregation"),
    [(None, "mean"), (None, "weighted"), (RANDOM, "weighted"), (RANDOM.pruned(), "weighted")],
    ids=["mean", "weighted", "fixed, weighted", "pruned, weighted"],
)
def test_recomputing_gives_the_same_gradients(wiring, aggregation, precision):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)

    def gradients(remat):
        model = network(wiring, aggregation, precision=precision, remat=remat)

        @tf.function
        def of_loss():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(model(images, training=True)))
            return tape.gradient(loss, model.trainable_variables)

        return dict(zip([v.path for v in model.trainable_variables], of_loss(), strict=True))

    kept, recomputed = gradients(False), gradients(True)
    assert all(np.any(gradient) for gradient in kept.values())
    for path, gradient in kept.items():
        scale = np.abs(gradient).max()
        tolerance = 1e-5 if precision == "float32" else 0.05
        np.testing.assert_allclose(recomputed[path], gradient, atol=tolerance * scale, err_msg=path)


def test_recomputing_computes_again():
    """Also after TensorFlow's graph optimizer, which would merge equal products: then both would stay in memory."""

    def products(remat):
        model = network(remat=remat)
        images = tf.zeros((4, 8, 8, 1), tf.uint8)

        @tf.function
        def gradients():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(model(images, training=True)))
            return tape.gradient(loss, model.trainable_variables)

        graph = gradients.get_concrete_function().graph
        for output in graph.outputs:
            graph.add_to_collection("train_op", output)
        meta = tf.compat.v1.train.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
        optimized = tf_optimizer.OptimizeGraph(tf.compat.v1.ConfigProto(), meta)
        return sum("MatMul" in node.op for node in optimized.node)

    assert products(remat=True) == products(remat=False) + len(network().gates)


def test_loss_scale_begins_anew_and_momentum_at_zero():
    model = network(precision="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(GateConnectSGD())
    optimizer.build(model.trainable_variables)
    for variable in optimizer.variables:
        variable.assign(keras.ops.full_like(variable, 3))
    restart(optimizer)
    scales = [variable for variable in optimizer.variables if variable.path.endswith("dynamic_scale")]
    assert [float(scale) for scale in scales] == [optimizer.initial_scale]
    paths = {scale.path for scale in scales}
    assert not any(np.any(variable) for variable in optimizer.variables if variable.path not in paths)


def test_a_training_in_bfloat16_gives_a_network_in_float32(tmp_path, digits_dir):
    run = Run.of("digits_11_4_4_k2", read("digits", 0.005), seed=0)
    result = train(run, tmp_path, data_dir=digits_dir, precision="mixed_bfloat16", remat=True)
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert result["precision"] == "mixed_bfloat16"
    assert (model.precision, model.remat) == ("float32", False)


def test_an_unknown_precision_is_said(tmp_path):
    run = Run.of("digits_11_4_4_k2", read("digits", 0.005), seed=0)
    with pytest.raises(UserError, match="precision must be one of float32, mixed_bfloat16, mixed_float16. Rec.*'half'"):
        train(run, tmp_path, precision="half")


@pytest.mark.slow
def test_float16_goes_on_in_the_middle_of_a_phase_as_if_it_had_not_stopped(tmp_path, digits_dir):
    run, whole = small_run((0.5, 0.1, 0.2), (0.5, 0.1)), tmp_path / "whole"  # two phases of 6 steps
    options = Options(precision="mixed_float16")
    training = Photographed(run, whole, images_of(run, digits_dir), TensorFlowEngine(), options)
    training.within = (3, 8)
    training.run_phases()
    for step in training.within:
        part = tmp_path / f"within_step_{step}"
        assert newest(part)["place"]["steps"] > 0
        train(run, part, data_dir=digits_dir, precision="mixed_float16")
        assert_same_end(part, whole)


TWO_REPLICAS = """
import keras, numpy as np, tensorflow as tf
from gated_resnext.loop import finite_alike
from gated_resnext.optimizer import GateConnectSGD

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def after(alike, *gradients):
    with strategy.scope():
        kernel = keras.Variable(np.ones(2, np.float32), name="kernel")
        optimizer = keras.optimizers.LossScaleOptimizer(GateConnectSGD(1.0, l2=0.0, momentum=0.0), initial_scale=4.0)
        optimizer.build([kernel])

    @tf.function
    def step(each):
        def replica(gradient):
            optimizer.apply(alike([gradient]), [kernel])
        strategy.run(replica, args=(each,))

    gradients = [tf.constant(gradient, tf.float32) for gradient in gradients]
    context = strategy.experimental_distribute_values_from_function(
        lambda context: gradients[context.replica_id_in_sync_group]
    )
    step(context)
    return keras.ops.convert_to_numpy(kernel).tolist(), float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))

fine, endless = [0.4, 0.4], [0.4, float("inf")]
assert after(finite_alike, fine, fine) == ([np.float32(1) - np.float32(0.2)] * 2, 4.0), after(finite_alike, fine, fine)
for gradients in ((fine, endless), (endless, fine)):
    assert after(finite_alike, *gradients) == ([1.0, 1.0], 2.0), after(finite_alike, *gradients)
assert after(lambda gradients: gradients, fine, endless)[0][1] == float("-inf")  # else this were for nothing
"""


# Of the compiled loop, on images of which one is endless where a replica is to overflow
TWO_REPLICAS_OF_A_LOOP = """
import keras
import numpy as np
import tensorflow as tf
from gated_resnext.loop import Loop
from gated_resnext.optimizer import GateConnectSGD

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for endless in (None, 0, 3):
    images, labels = np.ones((4, 2, 3, 1), np.float32), np.arange(4, dtype=np.int32)
    if endless is not None:
        images[endless] = np.inf
    with strategy.scope():
        model = keras.Sequential([keras.Input((2, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
        optimizer = keras.optimizers.LossScaleOptimizer(GateConnectSGD(1.0, l2=0.0, momentum=0.0), initial_scale=4.0)
        optimizer.build(model.trainable_variables)
    before = model.get_weights()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    Loop(model, strategy, 4, optimizer).train(iter(strategy.experimental_distribute_dataset(data)), 1)
    same = all((old == new).all() for old, new in zip(before, model.get_weights()))
    scale = float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))
    assert (same, scale) == ((False, 4.0) if endless is None else (True, 2.0)), (endless, same, scale)
"""


def test_no_replica_of_a_loop_takes_a_step_that_overflows_on_another(run_python):
    done = run_python("-c", TWO_REPLICAS_OF_A_LOOP)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_replica_takes_a_step_that_overflows_on_another(run_python):
    done = run_python("-c", TWO_REPLICAS)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gates_gradient_is_rounded_once(dtype):
    """Its sums over 16,384 products are of 32 bits, and only what comes out has 8 or 11."""
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(1, 64, 8, 8, 4)), rng.normal(size=(4, 64, 8, 8, 4))
    y = tf.cast(common + 0.1 * own, dtype)
    of_x = tf.cast((common + 0.1 * rng.normal(size=y.shape)) / 64, dtype)
    real = tf.Variable(np.full((4, 4), 0.25), dtype="float32")
    with tf.GradientTape() as tape:
        x = gates.aggregate(real, y)
        total = tf.reduce_sum(tf.cast(x, "float32") * tf.cast(of_x, "float32"))
    found = tape.gradient(total, real)
    exact = np.einsum("jbhwc,kbhwc->jk", *(tensor.numpy().astype(np.float64) for tensor in (of_x, y)))
    bits = {"bfloat16": 8, "float16": 11}[dtype]
    error = np.abs(found.numpy() - exact) / np.abs(exact)
    assert found.dtype == "float32" and 0.1 * 2.0**-bits < error.max() < 1.1 * 2.0**-bits
