"""From a picture file to the network's pixels: the test images' own way, for pictures of any size."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from gated_resnext import datasets
from gated_resnext.data import Images
from gated_resnext.datasets.table import DATASETS
from gated_resnext.preprocessing import LONGEST, Preprocessing, central_crop, grey
from gated_resnext.recipes import RECIPES

EXPECTED = {
    "optical_digits": Preprocessing((8, 8, 1), 8),
    "fashion_mnist": Preprocessing((28, 28, 1), 28),
    "cifar10": Preprocessing((32, 32, 3), 32),
    "cifar100": Preprocessing((32, 32, 3), 32),
    "mini_imagenet": Preprocessing((64, 64, 3), 84),
    "imagenet2012": Preprocessing((224, 224, 3), 256),
}


def of(name):
    info = DATASETS[name]
    return Preprocessing.of(info.input_shape, RECIPES[info.recipe], info)


def picture(height, width, channels=3, seed=0):
    """Smooth, so that one pixel of it says something of its neighbours, and with detail."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, channels), np.uint8)
    resized = tf.image.resize(coarse, (height, width), "bilinear").numpy() + rng.normal(0, 6, (height, width, channels))
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def png(image):
    return tf.io.encode_png(image).numpy()


def pixels(preprocessing, *images):
    return preprocessing.pixels(tf.constant([png(image) for image in images], tf.string)).numpy()


def test_every_data_set_has_its_own():
    assert {name: of(name) for name in DATASETS} == EXPECTED


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if not info.streamed])
def test_its_size_is_that_of_the_data_sets_pictures(name, tmp_path):
    datasets.register()
    shape = tfds.builder(DATASETS[name].name, data_dir=tmp_path, try_gcs=False).info.features["image"].shape
    assert min(shape[:2]) == of(name).resize and shape[2] == of(name).shape[2]


def test_a_picture_of_the_networks_size_goes_through_unchanged():
    for name in ("optical_digits", "fashion_mnist", "cifar10"):
        images = [picture(*of(name).shape, seed=seed) for seed in range(3)]
        np.testing.assert_array_equal(pixels(of(name), *images), images)


def test_pictures_of_mini_imagenets_size_are_cropped_only():
    image = picture(84, 84)
    np.testing.assert_array_equal(pixels(of("mini_imagenet"), image)[0], image[10:74, 10:74])


def test_pictures_of_the_test_images_become_the_test_images(digits_dir):
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    found = of("optical_digits").pixels(tf.constant(images.pictures(360))).numpy()
    np.testing.assert_array_equal(found, images.test_batch(360)[0])


@pytest.mark.parametrize("name", ["cifar10", "mini_imagenet", "imagenet2012"])
@pytest.mark.parametrize("height, width", [(300, 400), (131, 97), (40, 33), (256, 256)])
def test_other_sizes_are_resized_and_cropped_as_pillow_does(name, height, width):
    image, (rows, columns, _), side = picture(height, width), of(name).shape, of(name).resize
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BILINEAR)).astype(int)
    top, left = (size[1] - rows) // 2, (size[0] - columns) // 2
    expected = resized[top : top + rows, left : left + columns]
    assert np.abs(pixels(of(name), image)[0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("shape", "resize"), [((48, 48, 3), 32), ((24, 48, 3), 30), ((48, 24, 3), None), ((20, 24, 3), None)]
)
def test_a_crop_that_would_not_fit_keeps_the_pictures_proportions(shape, resize):
    image = picture(40, 60)
    scale = max((resize or min(shape[:2])) / 40, shape[0] / 40, shape[1] / 60)
    whole = Preprocessing((round(40 * scale), round(60 * scale), 3), round(40 * scale))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    expected = pixels(whole, image)[0][top : top + shape[0], left : left + shape[1]]
    found = central_crop(tf.constant(image), shape[:2], resize).numpy()
    np.testing.assert_array_equal(found, expected)


def test_grey_is_pillows():
    image = picture(50, 70)
    expected = np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None]
    np.testing.assert_array_equal(grey(tf.constant(image)).numpy(), expected)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    np.testing.assert_array_equal(grey(tf.constant(ramp)).numpy()[:, 0, 0], np.arange(256))


@pytest.mark.parametrize("length", [5000, 4999])
@pytest.mark.parametrize("upright", [False, True])
def test_of_a_very_long_picture_the_middle_counts(length, upright):
    image = picture(3, length)
    kept = 3 * LONGEST + (length - 3 * LONGEST) % 2
    middle = image[:, (length - kept) // 2 :][:, :kept]
    if upright:
        image, middle = image.transpose(1, 0, 2), middle.transpose(1, 0, 2)
    found, expected = (central_crop(tf.constant(part), (64, 64), 84).numpy() for part in (image, middle))
    np.testing.assert_array_equal(found, expected)
    # The picture without this rule: the resize of the whole needs every pixel, but gives the same to rounding.
    height, width = (round(side * 84 / 3) for side in image.shape[:2])
    whole = tf.image.resize(image, (height, width), antialias=True).numpy()
    top, left = (height - 64) // 2, (width - 64) // 2
    assert np.abs(found - whole[top : top + 64, left : left + 64]).max() <= 0.51


def test_its_memory_does_not_grow_with_the_length():
    # Resized as it is, this one would take 256 x 51,200,000 pixels.
    image = np.tile(picture(1, 1000), (1, 200, 1))
    assert pixels(of("imagenet2012"), image).shape == (1, 224, 224, 3)
