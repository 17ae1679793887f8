"""A trained trunk under another head: the same features, a fresh classifier, and it learns."""

import keras
import numpy as np
import oracle
import pytest

import gated_resnext
from export import shipping
from export.compact import compact
from gated_resnext import heads, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt, load
from gated_resnext.optimizer import GateConnectSGD
from gated_resnext.pruning import freeze, prune, rebuild
from gated_resnext.recipes import RECIPES

K1 = "digits_11_4_4_k1"
SMALL = Architecture(11, 2, 3, 2, 5, (7, 8, 3), stem_filters=4, filters=6, stages=(2, 1))
WIRING = Connectivity(2, (((0, 1), (1,), (0,), (0, 1)), ((0, 2), (3,), (1, 2, 3))))
KINDS = {
    "learned": (SMALL, None),
    "fixed": (SMALL, WIRING),
    "pruned": (SMALL, WIRING.pruned()),
    "shared": (SMALL.replace(aggregation="shared", fan_in=3), None),
}


def network(arch=SMALL, wiring=None, **options):
    """A network of random weights, statistics and gates."""
    model = GatedResNeXt(arch, wiring, seed=1, **options)
    model.assign_by_name(oracle.random_weights(model.weights_by_name(), seed=0))
    return model


@pytest.fixture(scope="module")
def digits(digits_dir):
    """Training and test images, and which digits are odd."""
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    return [(pixels, labels % 2) for pixels, labels in map(images.arrays, ("train", "test"))]


# Features


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_classifier_reads(kind, tmp_path):
    whole = network(*KINDS[kind])
    images = oracle.random_images(SMALL.input_shape, batch=3, seed=1)
    maps = heads.transfer(whole, include_top=False)
    assert maps.output_shape == (None, 4, 4, 12)
    found = maps(images).numpy()
    weights = whole.weights_by_name()
    for pooling, reduced in (("avg", found.mean((1, 2))), ("max", found.max((1, 2)))):
        pooled = heads.transfer(whole, include_top=False, pooling=pooling)
        np.testing.assert_allclose(pooled(images), reduced, rtol=1e-5)
        if pooling == "avg":
            logits = reduced @ weights["classifier/kernel"] + weights["classifier/bias"]
            np.testing.assert_allclose(rebuild(whole, classifier_activation=None)(images), logits, rtol=1e-3, atol=1e-3)
        assert set(pooled.weights_by_name()) == {name for name in weights if not name.startswith("classifier/")}
        # It survives whatever the network with its classifier does.
        pooled.save(tmp_path / f"{pooling}.keras")
        for form in (load(tmp_path / f"{pooling}.keras"), freeze(pooled), prune(pooled), rebuild(pooled)):
            np.testing.assert_allclose(form(images), reduced, rtol=1e-5)
            assert (form.include_top, form.pooling) == (False, pooling)
            assert form.get_config()["pooling"] == pooling


def test_features_are_not_exported(tmp_path):
    features = heads.transfer(network(SMALL, WIRING), include_top=False, pooling="avg")
    probe = shipping.Probe(oracle.random_images(SMALL.input_shape, batch=2, seed=1), None, "noise")
    with pytest.raises(UserError, match="this network has no classifier"):
        shipping.ship(features, tmp_path / "out", probe)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="a network with include_top=False"):
        compact(features)


def test_a_part_of_a_larger_keras_model(tmp_path):
    features = heads.transfer(network(SMALL, WIRING), include_top=False, pooling="avg")
    features.trainable = False
    images = keras.Input(SMALL.input_shape, dtype="uint8")
    model = keras.Model(images, keras.layers.Dense(2, name="mine")(features(images, training=False)))
    assert [variable.path for variable in model.trainable_variables] == ["mine/kernel", "mine/bias"]
    model.save(tmp_path / "mine.keras")
    pixels = oracle.random_images(SMALL.input_shape, batch=3, seed=1)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "mine.keras")(pixels), model(pixels))


# Heads


def test_a_new_head_on_the_same_trunk():
    whole = network(SMALL, WIRING)
    one, same, other = (heads.transfer(whole, classes=4, seed=seed, name="mine") for seed in (1, 1, 2))
    weights = whole.weights_by_name()
    for name, value in one.weights_by_name().items():
        if name.startswith("classifier/"):
            np.testing.assert_array_equal(same.weights_by_name()[name], value)
            assert (other.weights_by_name()[name] != value).any() or name.endswith("/bias")
            assert value.shape[-1] == 4
        else:
            np.testing.assert_array_equal(value, weights[name])
    assert (one.name, one.connectivity, one.architecture) == ("mine", WIRING, SMALL.replace(classes=4))
    as_many = heads.transfer(whole, classes=5).weights_by_name()["classifier/kernel"]
    assert np.abs(as_many - weights["classifier/kernel"]).max() > 0.01
    kept = heads.transfer(whole)
    images = oracle.random_images(SMALL.input_shape, batch=3, seed=1)
    np.testing.assert_array_equal(kept(images), whole(images))


def test_images_of_another_size_have_the_mean_pixel_for_their_mean():
    whole = network(SMALL, WIRING)
    larger = heads.transfer(whole, input_shape=(12, 10, 3), classifier_activation=None)
    weights = whole.weights_by_name()
    mean = np.float64(weights["standardize/mean_image"]).mean((0, 1))
    weights["standardize/mean_image"] = np.tile(mean, (12, 10, 1))
    mixings = [oracle.mixing(b, "mean") for b in oracle.gate_matrices((WIRING.first, WIRING.sources))]
    images = oracle.random_images((12, 10, 3), batch=2, seed=1)
    expected = oracle.forward(weights, images, mixings, stem="conv3", aggregation="mean", training=False).logits
    np.testing.assert_allclose(larger(images), expected, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(UserError, match="for images of 3 channels, not 1"):
        heads.transfer(whole, input_shape=(7, 8, 1))


def test_what_does_not_go_together():
    features = heads.transfer(network(), include_top=False)
    for options, message in (
        ({"classes": 3, "include_top": False}, "features have no classes"),
        ({"pooling": "avg"}, "pooling is of features"),
        ({}, "has no classifier to keep: give one with classes=N"),
        ({"classes": 1}, "the softmax of one class is always 1: take classes=2"),
        ({"classes": 3, "classifier_activation": "sigmoid"}, "classifier_activation must be one of"),
    ):
        with pytest.raises(UserError, match=message):
            heads.transfer(features, **options)
    for options in ({"include_top": False, "pooling": "mean"}, {"pooling": "max"}, {"include_top": "no"}):
        with pytest.raises(ValueError, match="Received: (pooling|include_top)="):
            GatedResNeXt(SMALL, **options)
    with pytest.raises(ValueError, match="the softmax of one class"):
        GatedResNeXt(SMALL.replace(classes=1))
    assert GatedResNeXt(SMALL.replace(classes=1), classifier_activation=None).output_shape == (None, 1)


# Training on


@pytest.mark.parametrize("kind", ["learned", "fixed", "shared"])
def test_a_frozen_trunk_evaluates_in_training_and_keeps_every_weight(kind):
    model = network(*KINDS[kind])
    for layer in model.layers:
        layer.trainable = layer.name == "classifier"
    images, before = oracle.random_images(SMALL.input_shape, batch=4, seed=1), model.weights_by_name()
    np.testing.assert_allclose(model(images, training=True), model(images, training=False), rtol=1e-5)
    for name, value in model.weights_by_name().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert [variable.path for variable in model.trainable_variables] == ["classifier/kernel", "classifier/bias"]


@pytest.mark.filterwarnings("error::UserWarning")
def test_digits_become_odd_or_even_on_a_frozen_trunk(digits):
    model = zoo.load(K1, classes=2, seed=0)
    for layer in model.layers:
        layer.trainable = layer.name == "classifier"
    before = model.weights_by_name()
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    (images, odd), test = digits
    keras.utils.set_random_seed(0)
    model.fit(images, odd, batch_size=64, epochs=3, verbose=0)
    moved = {name for name, value in model.weights_by_name().items() if (value != before[name]).any()}
    assert moved == {"classifier/kernel", "classifier/bias"}
    assert model.evaluate(*test, verbose=0)[1] > 0.93


@pytest.mark.slow
def test_the_whole_network_is_tuned_and_learns_gates_too(digits):
    # Fresh gates on the trained trunk: the wiring is learned again.
    trained = zoo.load(K1)
    arch = trained.architecture.replace(classes=2)
    model = GatedResNeXt(arch, None, seed=0)
    model.assign_by_name({**model.weights_by_name(), **heads.fitted(trained.weights_by_name(), model, new_head=True)})
    model.compile(
        GateConnectSGD(0.02, gate_learning_rate=0.2),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    (images, odd), test = digits
    before = model.weights_by_name()
    keras.utils.set_random_seed(0)
    model.fit(images, odd, batch_size=64, epochs=3, verbose=0)
    assert all(
        (value != before[name]).any() for name, value in model.weights_by_name().items() if "mean_image" not in name
    )
    for real_gates in model.real_gates():
        np.testing.assert_allclose(real_gates.sum(1), 1, rtol=1e-5)
    assert model.evaluate(*test, verbose=0)[1] > 0.93
    smaller = prune(model)
    np.testing.assert_allclose(smaller.predict_on_batch(test[0]), model.predict_on_batch(test[0]), atol=1e-5)


def test_it_is_public():
    assert gated_resnext.transfer is heads.transfer
