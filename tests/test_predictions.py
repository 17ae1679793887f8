"""Before a network and behind it."""

import re

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import gated_resnext
from gated_resnext import predictions, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.predictions import decode_predictions, preprocess_input
from gated_resnext.preprocessing import Preprocessing
from gated_resnext.recipes import RECIPES

K1 = "digits_11_4_4_k1"
RNG = np.random.default_rng(0)


def picture(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("name", [K1, "cifar10_20_4_8_k1", "mini_imagenet_20_4_8_k4", "imagenet_50_4_32_k16"])
def test_an_array_becomes_what_the_same_picture_file_does(name):
    info, whole = DATASETS[zoo.entry(name).dataset], [picture(40, 57, 3), picture(300, 290, 3)]
    preparation = Preprocessing.of(info.input_shape, RECIPES[info.recipe], info)
    expected = preparation.pixels(tf.constant([tf.io.encode_png(image).numpy() for image in whole]))
    found = preprocess_input(whole, name)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_images_of_the_networks_size_go_through_unchanged():
    images = picture(5, 8, 8, 1)
    for network in (K1, (8, 8, 1), GatedResNeXt(Architecture(5, 2, 2, 1, 3, (8, 8, 1), stages=(1,)))):
        for given in (images, images.astype(np.float32), images.astype(np.int64), list(images)):
            np.testing.assert_array_equal(preprocess_input(given, network), images)
    np.testing.assert_array_equal(preprocess_input(images + np.float64(0.4) * (images < 255), K1), images)


def test_a_network_with_a_head_of_ones_own_sees_the_whole_picture():
    """As an export of it does, whose pictures are scaled to fit; features are of the entry's pictures."""
    name, image = "mini_imagenet_20_4_8_k4", picture(1, 90, 120, 3)
    whole = preprocess_input(image, (64, 64, 3))
    assert not np.array_equal(preprocess_input(image, name), whole)
    own = zoo.load(name, classes=2, seed=0)
    np.testing.assert_array_equal(preprocess_input(image, own), whole)
    whole_network = zoo.load(name)
    maps = keras.Model(whole_network.input, whole_network.get_layer("mean").output, name=name)
    two = keras.Model(whole_network.input, {"probabilities": whole_network.output}, name=name)
    for network in (whole_network, zoo.load(name, include_top=False), maps, two):
        np.testing.assert_array_equal(preprocess_input(image, network), preprocess_input(image, name))


def test_the_middle_is_kept():
    image = np.zeros((1, 32, 64, 3), np.uint8)
    image[:, :, 16:48] = 200
    np.testing.assert_array_equal(preprocess_input(image, (32, 32, 3)), np.full((1, 32, 32, 3), 200))
    wide = preprocess_input(image, (16, 16, 3), resize=32)
    np.testing.assert_array_equal(wide, np.full((1, 16, 16, 3), 200))


def test_grey_colour_and_transparency():
    colour, grey = picture(1, 8, 8, 3), picture(1, 8, 8, 1)
    luma = np.asarray(PIL.Image.fromarray(colour[0]).convert("L"))[None, ..., None]
    np.testing.assert_array_equal(preprocess_input(colour, (8, 8, 1)), luma)
    np.testing.assert_array_equal(preprocess_input(grey, (8, 8, 3)), grey.repeat(3, 3))
    transparent = np.concatenate([colour, grey], -1)
    np.testing.assert_array_equal(preprocess_input(transparent, (8, 8, 3)), colour)
    with pytest.raises(UserError, match=r"takes images of 3 channels. Received: \(8, 8, 2\)"):
        preprocess_input(picture(1, 8, 8, 2), (8, 8, 3))


@pytest.mark.parametrize(
    "images, message",
    [
        (picture(2, 8, 8, 1) / 255.0, "these floats from 0 to 1: give the images before their division by 255"),
        (picture(2, 8, 8, 1) / 127.5 - 1, r"the network standardises them itself. Received: -\d.* to \d"),
        (picture(2, 8, 8, 1) * 2.0, "raw, from 0 to 255"),
        (np.full((1, 8, 8, 1), np.nan), "Received: nan to nan"),
        (np.full((1, 8, 8, 1), 300), "Received: 300 to 300"),
        (np.ones((1, 8, 8, 1), bool), "Received: bool"),
        (np.full((1, 8, 8, 1), "a"), "Received: <U1"),
        (picture(8, 8, 1), r"one image goes as image\[None\]"),
        (picture(2, 8, 8), r"grey ones as images\[..., None\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), r"Received: \[\]"),
        (np.zeros((1, 0, 8, 1), np.uint8), r"Received: \[\(0, 8, 1\)\]"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(UserError, match=message) as error:
        preprocess_input(images, K1)
    assert "\n" not in str(error.value)


def test_a_network_of_the_zoo_wants_what_its_name_does():
    images, name = picture(2, 84, 84, 3), "mini_imagenet_20_4_8_k4"
    model = zoo.load(name, weights=None)
    middle = images[:, 10:74, 10:74]
    np.testing.assert_array_equal(preprocess_input(images, name), middle)
    np.testing.assert_array_equal(preprocess_input(images, model), middle)
    larger = zoo.load(name, weights=None, input_shape=(84, 84, 3))  # that of no data set: just large enough
    np.testing.assert_array_equal(preprocess_input(images, larger), images)
    assert preprocess_input(images, (64, 64, 3)).shape == middle.shape


def test_any_keras_model_says_what_it_takes():
    import keras

    model = keras.Sequential([keras.Input((10, 8, 3)), keras.layers.Flatten()])
    assert preprocess_input([np.zeros((40, 30, 3), np.uint8)], model).shape == (1, 10, 8, 3)
    for other in (keras.Sequential([keras.Input((None, None, 3)), keras.layers.ReLU()]), 5):
        with pytest.raises(UserError, match="expected an entry's name, a network or"):
            preprocess_input([np.zeros((40, 30, 3), np.uint8)], other)


def test_black_is_black_and_a_network_is_named_or_given():
    assert preprocess_input(np.zeros((1, 9, 9, 1)), K1).max() == 0
    for network in ((8, 8), (8, 8, 0), (8.0, 8.0, 1.0)):
        with pytest.raises(UserError, match="expected an entry's name, a network or"):
            preprocess_input(picture(1, 8, 8, 1), network)
    with pytest.raises(UserError, match="the closest are"):
        preprocess_input(picture(1, 8, 8, 1), "digits")


def test_the_most_probable_come_first_with_their_names():
    rows = np.array([[0.1, 0.2, 0.4, 0.3], [0.25, 0.25, 0.25, 0.25]], np.float32)
    first, second = decode_predictions(rows, top=3, labels=["ant", "bee", "cat", "dog"])
    assert [(number, label) for number, label, _ in first] == [(2, "cat"), (3, "dog"), (1, "bee")]
    assert [one.probability for one in first] == pytest.approx([0.4, 0.3, 0.2])
    assert [one.number for one in second] == [0, 1, 2]
    assert [one.label for one in decode_predictions(rows)[0]] == ["2", "3", "1", "0"]


def test_names_are_those_of_the_card_or_the_data_set():
    cifar = decode_predictions(np.eye(10), 1, name="cifar10_20_4_8_k1")
    assert [one.label for [one] in cifar] == zoo.card("cifar10_20_4_8_k1")["labels"]
    fashion = decode_predictions(np.eye(10), 1, name="fashion_mnist_20_4_8_k4")
    assert fashion[9][0].label == "Ankle boot" and zoo.card("fashion_mnist_20_4_8_k4") is None


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([0.5, 0.5], {}, r"expected probabilities \(n, classes\)"),
        ([[2.0, -1.0]], {}, "logits go through softmax first"),
        ([[1, 0]], {}, "Received: int64"),
        ([[0.5, 0.5]], {"name": K1}, "of 2 classes and names of 10"),
        ([[0.5, 0.5]], {"name": K1, "labels": ["a", "b"]}, "give one of name and labels"),
        ([[0.5, 0.5]], {"top": 0}, "top must be at least 1"),
    ],
)
def test_what_are_no_probabilities_is_refused(rows, options, message):
    with pytest.raises(UserError, match=message):
        decode_predictions(rows, **options)


def test_a_digit_from_an_array_of_any_size_to_its_name(digits_dir):
    from gated_resnext.data import Images

    images, labels = Images("optical_digits", RECIPES["digits"], digits_dir).test_batch(100)
    model = zoo.load(K1)
    larger = np.kron(images, np.ones((1, 3, 3, 1), np.uint8))
    decoded = gated_resnext.decode_predictions(model.predict_on_batch(preprocess_input(larger, model)), 1, name=K1)
    assert np.mean([int(one.label) == label for [one], label in zip(decoded, labels, strict=True)]) > 0.9
    assert re.fullmatch(r"Prediction\(number=\d, label='\d', probability=[01]\.\d+\)", str(decoded[0][0]))
    assert gated_resnext.preprocess_input is predictions.preprocess_input


def test_classes_of_mini_imagenet_have_names():
    [[best]] = decode_predictions(np.eye(100)[14:15], top=1, name="mini_imagenet_20_4_8_k4")
    assert best == (14, "golden retriever", 1.0)
