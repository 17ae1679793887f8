"""What users of Keras do with its models, done with these: larger models, copies, parts that rest, files."""

import copy
import pickle

import keras
import numpy as np
import oracle
import pytest

import gated_resnext
from gated_resnext import GatedBranches, GatedDenseBlock, freeze, predictions, prune, transfer, zoo
from gated_resnext.aggregation import GatedAggregation
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.errors import DivergedError
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD

K1 = "digits_11_4_4_k1"
SMALL = Architecture(11, 2, 3, 1, 5, (8, 8, 1), stem_filters=4, filters=6)
IMAGES = oracle.random_images(SMALL.input_shape, batch=6, seed=0)


def network(arch=SMALL, *args, cls=GatedResNeXt, **options):
    """A network of random weights, statistics and gates."""
    model = cls(arch, *args, seed=1, **options)
    model.assign_by_name(oracle.random_weights(model.weights_by_name(), seed=0))
    return model


def frozen_layers(model):
    return sorted(layer.name for layer in model.layers if not layer.trainable)


# Arguments


@pytest.mark.parametrize("unknown", [{"conectivity": None}, {"dtype": "mixed_bfloat16"}, {"classes": 5}])
def test_an_argument_that_there_is_not_is_refused(unknown):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(unknown))}'"):
        GatedResNeXt(SMALL, **unknown)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([K1], f"architecture must be an Architecture; a network of the zoo is zoo.load.name.. Received: '{K1}'"),
        ([SMALL, [[0], [1]]], "connectivity must be a Connectivity or None"),
    ],
)
def test_something_else_than_a_value_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedResNeXt(*arguments)


def test_the_optimizers_rates_are_named():
    with pytest.raises(TypeError, match="positional"):
        GateConnectSGD(0.1, 0.9)
    with pytest.raises(ValueError, match=r"weight_decay would decay gates.* Received: weight_decay=0.0005"):
        GateConnectSGD(0.1, weight_decay=5e-4)
    with pytest.raises(ValueError, match="gate_learning_rate must be a number. Received: gate_learning_rate=<"):
        GateConnectSGD(0.1, gate_learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 10))
    assert gated_resnext.GateConnectSGD is GateConnectSGD is gated_resnext.optimizer.GateConnectSGD


# Parts that rest


@pytest.mark.parametrize("again", ["file", "pickle", "deepcopy", "config", "prune", "freeze"])
def test_layers_that_rest_do_so_in_copies(tmp_path, again):
    model = network()
    for layer in model.layers:
        layer.trainable = layer.name == "classifier"
    expected = frozen_layers(model)
    if again == "file":
        model.save(tmp_path / "model.keras")
        found = keras.saving.load_model(tmp_path / "model.keras")
    else:
        found = {
            "pickle": lambda: pickle.loads(pickle.dumps(model)),
            "deepcopy": lambda: copy.deepcopy(model),
            "config": lambda: GatedResNeXt.from_config(model.get_config()),
            "prune": lambda: prune(model),
            "freeze": lambda: freeze(model),
        }[again]()
    assert frozen_layers(found) == expected and len(expected) > 5
    assert [variable.path for variable in found.trainable_variables] == ["classifier/kernel", "classifier/bias"]


def test_the_optimizers_state_of_a_trunk_that_rests_comes_back(tmp_path):
    model = network()
    for layer in model.layers:
        layer.trainable = layer.name == "classifier"
    model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    model.fit(IMAGES, np.arange(6) % 5, verbose=0)
    model.save(tmp_path / "best.keras")
    found = keras.saving.load_model(tmp_path / "best.keras")
    assert [v.shape for v in found.optimizer.variables] == [v.shape for v in model.optimizer.variables]
    for one, other in zip(found.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    before = found.weights_by_name()
    found.fit(IMAGES, np.arange(6) % 5, verbose=0)
    changed = {name for name, value in found.weights_by_name().items() if (value != before[name]).any()}
    assert changed == {"classifier/kernel", "classifier/bias"}


def test_a_new_classifier_learns_where_the_old_one_rested():
    model = network()
    model.trainable = False
    assert frozen_layers(transfer(model)) == frozen_layers(model)
    new = transfer(model, classes=2)
    assert {v.path for v in new.trainable_variables} == {"classifier/kernel", "classifier/bias"}
    assert transfer(model, include_top=False).trainable_variables == []


def test_a_network_made_to_rest_neither_learns_nor_draws():
    model = network(trainable=False)
    assert model.trainable_variables == [] and model.get_config()["frozen"]
    first, second = model(IMAGES, training=True), model(IMAGES)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    assert all(int(gate.step) == 0 for gate in model.gates)


# Larger models


@pytest.mark.parametrize("change", [freeze, prune])
def test_networks_in_a_larger_model_are_cut(change):
    images = keras.Input(SMALL.input_shape)
    one = network(include_top=False, pooling="avg", name="one")
    full = network(SMALL.replace(aggregation="shared", fan_in=3), include_top=False, pooling="avg", name="full")
    inner = keras.Sequential([keras.layers.Rescaling(0.5), network(include_top=False, pooling="max", name="two")])
    x = keras.layers.Concatenate()([one(images), full(images), inner(images)])
    model = keras.Model(images, keras.layers.Dense(5, activation="softmax")(x))
    found = change(model)
    np.testing.assert_allclose(found(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-6)
    assert found.get_layer("full") is not full
    for before, after in ((one, found.get_layer("one")), (inner.layers[1], found.get_layer(inner.name).layers[1])):
        wiring = before.wiring()
        assert after.connectivity == (wiring.pruned() if change is prune else wiring)
    assert (found.count_params() < freeze(model).count_params()) == (change is prune)
    with pytest.raises(ValueError, match="has no wiring of its own: ask its layer 'one' for its wiring"):
        gated_resnext.wiring(model)


def test_two_of_one_entry_stand_in_one_model():
    a, b = (zoo.load(K1, seed=seed, model_name=f"member{seed}") for seed in (0, 1))
    images = keras.Input((8, 8, 1))
    ensemble = keras.Model(images, keras.layers.Average()([a(images), b(images)]))
    np.testing.assert_allclose(ensemble(IMAGES), a(IMAGES), rtol=1e-5, atol=1e-7)


def test_what_stands_before_a_network_has_a_gradient():
    import tensorflow as tf

    model, images = network(), tf.Variable(IMAGES.astype(np.float32) + 0.25)
    with tf.GradientTape() as tape:
        outputs = model(images)[:, 0]
    assert np.abs(tape.gradient(outputs, images)).max() > 0
    assert np.abs(model(images) - model(IMAGES)).max() > 0  # a quarter is not cut off
    adapter = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Conv2D(1, 1), network()])
    adapter.compile("sgd", "sparse_categorical_crossentropy")
    before = adapter.get_weights()[0].copy()
    adapter.fit(np.repeat(IMAGES, 2, -1), np.arange(6) % 5, verbose=0)
    assert (adapter.get_weights()[0] != before).any()


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_pixels_are_the_same_as_floats(precision):
    model = network(precision=precision)
    np.testing.assert_array_equal(model(IMAGES), model(IMAGES.astype(np.float32)))
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), model.predict(IMAGES.astype("float32"), verbose=0))


@pytest.mark.parametrize("changes", [{}, {"aggregation": "sum"}, {"aggregation": "shared", "fan_in": 3}])
def test_features_of_every_stage(changes):
    arch = SMALL.replace(stages=(2, 1), **changes)
    model = network(arch, include_top=False)
    stages = model.stages()
    assert stages.output_shape == [(None, 8, 8, 6), (None, 4, 4, 12)]
    first, last = stages(IMAGES)
    np.testing.assert_array_equal(last, model(IMAGES))
    y = np.asarray(keras.Model(model.input, model.get_layer("stage1_module2").output)(IMAGES))
    kinds = {"sum": lambda y: y.sum(0), "shared": lambda y: y}
    expected = kinds.get(arch.aggregation, lambda y: y.mean(0))(y)
    np.testing.assert_allclose(first, np.maximum(expected, 0), rtol=1e-5, atol=1e-6)
    assert len(stages.predict(IMAGES, batch_size=2, verbose=0)[0]) == len(IMAGES)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_features_are_of_the_branches_that_were_trained_in_the_networks_precision(precision, tmp_path):
    wiring = Connectivity(3, (((1,), (1,), (2,)), ((0,), (0,), (2,))))
    assert wiring.active_blocks == (2, 2, 3)
    model = network(SMALL, wiring, include_top=False, precision=precision)
    found, smaller = (one.stages()(IMAGES) for one in (model, prune(model)))
    for one, other in zip(found, smaller, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=0.05, atol=0.05 * np.abs(other).max())
    np.testing.assert_array_equal(np.float32(found[-1]), np.float32(model(IMAGES)))
    assert {np.asarray(one).dtype.name for one in found} == {precision.removeprefix("mixed_")}
    model.stages().save(tmp_path / "detector.keras")
    opened = gated_resnext.load(tmp_path / "detector.keras")
    np.testing.assert_allclose(np.float32(opened(IMAGES)[0]), np.float32(found[0]), rtol=1e-5)
    with pytest.raises(ValueError, match="stages.. made of a GatedResNeXt is one no longer: prune it before"):
        prune(opened)


def test_a_subclassed_model_is_not_taken_apart():
    class Around(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def call(self, images):
            return self.inner(images)

    model = Around()
    model(IMAGES)
    with pytest.raises(ValueError, match="expected a functional model, or a Sequential one that was built"):
        prune(model)


def test_layers_of_a_function_of_ones_own_stay_in_what_is_cut():
    images = keras.Input((8,))
    y = GatedBranches([keras.layers.Dense(3), keras.layers.Dense(3)])(keras.layers.Lambda(lambda x: x / 2)(images))
    y = GatedBranches([keras.layers.Dense(3), keras.layers.Dense(3)], sources=((0,), (0,)))(y)
    model, x = keras.Model(images, keras.layers.Average()(y)), np.ones((2, 8), np.float32)
    np.testing.assert_allclose(prune(model)(x), model(x), rtol=1e-5)
    scaled = keras.Sequential([keras.Input(SMALL.input_shape), keras.layers.Lambda(lambda x: x / 2)])
    x = keras.Input(SMALL.input_shape)
    whole = keras.Model(x, network()(scaled(x)))
    np.testing.assert_allclose(prune(whole)(IMAGES), whole(IMAGES), rtol=1e-4, atol=1e-6)
    maps = keras.Input((4, 4, 2))
    dense = keras.Model(maps, GatedDenseBlock(3, 2, 1)(keras.layers.Lambda(lambda x: x / 2)(maps)))
    x = np.ones((2, 4, 4, 2), np.float32)
    np.testing.assert_allclose(prune(dense)(x), dense(x), rtol=1e-5)


def test_a_dense_block_for_every_frame():
    frames = keras.Input((3, 4, 4, 2))
    model = keras.Model(frames, keras.layers.TimeDistributed(GatedDenseBlock(2, 2, 1))(frames))
    assert model.output_shape == (None, 3, 4, 4, 6)
    assert model(np.ones((1, 3, 4, 4, 2), np.float32)).shape == (1, 3, 4, 4, 6)


# Copies


class Mine(GatedResNeXt):
    """A class of one's own."""


def test_a_class_of_ones_own_stays_itself():
    model = network(cls=Mine)
    assert [type(change(model)) for change in (freeze, prune, transfer)] == [Mine] * 3


def test_a_clone_is_told_from_a_copy():
    clone = keras.models.clone_model(network())
    with pytest.raises(ValueError, match="clone_model or stages.. made of .* is one no longer.*copy.deepcopy$"):
        prune(clone)


@pytest.mark.parametrize("kind", ["branches", "dense", "network"])
def test_models_of_ones_own_are_opened_where_nothing_was_imported(kind, tmp_path, run_python):
    images = keras.Input(SMALL.input_shape)
    x = {
        "branches": lambda: keras.layers.Average()(
            GatedBranches([keras.layers.Conv2D(2, 1), keras.layers.Conv2D(2, 3, padding="same")])(images)
        ),
        "dense": lambda: GatedDenseBlock(2, 2, 1)(images),
        "network": lambda: network(include_top=False)(images),
    }[kind]()
    model = keras.Model(images, x)
    model.save(tmp_path / "own.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import sys, numpy, gated_resnext; folder = sys.argv[1]; "
        "model = gated_resnext.load(f'{folder}/own.keras'); "
        "numpy.save(f'{folder}/found.npy', model.predict(numpy.load(f'{folder}/images.npy'), verbose=0))"
    )
    run_python("-c", code, str(tmp_path))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), model.predict(IMAGES, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_classifier_that_is_kept_keeps_its_activation(activation):
    model = network(SMALL, None, activation)
    assert transfer(model, input_shape=(10, 10, 1)).classifier_activation == activation
    assert transfer(model, classes=2).classifier_activation == "softmax"
    assert transfer(model, classes=2, classifier_activation=None).classifier_activation is None


# Mistakes


def test_a_list_given_to_a_gated_sum_is_said():
    y = keras.ops.ones((1, 4, 4, 2))
    with pytest.raises(ValueError, match="expected one tensor .branches.*keras.ops.stack.list.. Received: shape="):
        GatedAggregation(1)([y, y])
    with pytest.raises(ValueError, match="expected one tensor .branches"):
        GatedAggregation(1)(keras.Input((4, 4, 2)))


def test_arrays_that_are_none_yet_are_said():
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensors(np.zeros((40, 30, 3), np.uint8))
    with pytest.raises(Exception, match=r"UserError: these are no .*central_crop\(image, \(8, 8\), 8\)"):  # AutoGraph's
        rows.map(lambda image: predictions.preprocess_input(image[None], K1))


def test_an_error_of_a_divergence_comes_out_of_a_process():
    found = pickle.loads(pickle.dumps(DivergedError("the loss is nan", 7)))
    assert (str(found), found.step) == ("the loss is nan", 7)


def test_the_wiring_of_a_dense_block_is_the_blocks():
    images = keras.Input((4, 4, 2))
    model = keras.Model(images, GatedDenseBlock(2, 2, 1, name="block")(images))
    with pytest.raises(ValueError, match="ask its layer 'block' for its wiring"):
        gated_resnext.wiring(model)
    assert model.get_layer("block").wiring().layers == 2
