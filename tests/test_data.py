import collections
import csv
import dataclasses
import gzip
import importlib.resources
import io
import socket

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from gated_resnext import data
from gated_resnext.data import Images
from gated_resnext.datasets.table import DATASETS, DatasetInfo
from gated_resnext.errors import UserError
from gated_resnext.preprocessing import Preprocessing
from gated_resnext.recipes import RECIPES, Phase, Recipe

PLAIN = Recipe("plain", (Phase(1, 0.1),), batch_size=64, weight_decay=0, flip=False)


def of_batch(batch_size, **changes):
    return dataclasses.replace(PLAIN, batch_size=batch_size, **changes)


def listed(batches):
    return [(images.numpy(), labels.numpy()) for images, labels in batches]


def assert_same_batches(found, expected):
    assert len(found) == len(expected)
    for (images, labels), (other_images, other_labels) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def counted(images):
    return collections.Counter(image.tobytes() for image in images)


@pytest.fixture(scope="module")
def digits():
    """The 1,797 images and labels, read from the file of the package without tensorflow-datasets."""
    path = importlib.resources.files("gated_resnext.datasets") / "optical_digits.csv.gz"
    with path.open("rb") as compressed, gzip.open(compressed, "rt") as text:
        rows = np.array([[int(field) for field in row] for row in csv.reader(text)])
    # v * 255 / 16 is never half way between two whole numbers but at v = 8: 127.5, which goes to the even 128.
    pixels = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)[rows[:, :64]]
    return pixels.reshape(-1, 8, 8, 1), rows[:, 64]


# What is trained on


def test_train_batches_are_a_function_of_seed_and_step(digits_dir):
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    whole = listed(images.train(seed=3, first_step=0, steps=50))  # 22 steps an epoch: over two epochs' ends
    assert len(whole) == 50
    assert {(x.shape, x.dtype.name, y.shape, y.dtype.name) for x, y in whole} == {
        ((64, 8, 8, 1), "uint8", (64,), "int32")
    }
    again = Images("optical_digits", RECIPES["digits"], digits_dir)
    for first in (1, 22, 37):
        assert_same_batches(listed(again.train(seed=3, first_step=first, steps=50 - first)), whole[first:])
    (other, _), (first, _), (second, _) = (*listed(images.train(seed=4, first_step=0, steps=1)), whole[0], whole[22])
    assert counted(other) != counted(first) != counted(second)


def test_training_twice_over_the_same_dataset_gives_the_same(digits_dir):
    batches = Images("optical_digits", RECIPES["digits"], digits_dir).train(seed=0, first_step=20, steps=5)
    assert_same_batches(listed(batches), listed(batches))


@pytest.mark.parametrize("batch_size, steps", [(479, 3), (64, 22), (1437, 1), (1000, 1)])
def test_an_epoch_sees_each_image_at_most_once_and_all_where_the_batch_divides(digits_dir, digits, batch_size, steps):
    images = Images("optical_digits", of_batch(batch_size), digits_dir)
    assert images.steps_per_epoch == steps
    pool = counted(digits[0][:1437])
    epochs = [listed(images.train(seed=1, first_step=e * steps, steps=steps)) for e in range(3)]
    for epoch in epochs:
        seen = counted(image for batch, _ in epoch for image in batch)
        assert seen <= pool and seen.total() == batch_size * steps
        assert (seen == pool) == (1437 % batch_size == 0)
    orders = {b"".join(batch.tobytes() for batch, _ in epoch) for epoch in epochs}
    assert len(orders) == 3, "epochs in the same order"


def test_labels_stay_with_their_images(digits_dir, digits):
    label_of = {image.tobytes(): label for image, label in zip(*digits, strict=True)}
    images = Images("optical_digits", of_batch(479), digits_dir)
    for batch, labels in listed(images.train(seed=1, first_step=0, steps=3)):
        assert [label_of[image.tobytes()] for image in batch] == labels.tolist()
    assert images.labels == [str(digit) for digit in range(10)]


# Random crops


def numpy_augment(images, recipe, height, width, fill, seed):
    """`augment` image by image, from the same draws."""
    draws = tf.random.stateless_uniform((3, len(images)), seed).numpy()
    pad, (rows, columns, channels) = recipe.pad, images.shape[1:]
    result = np.empty((len(images), height, width, channels), np.uint8)
    for i, image in enumerate(images):
        padded = np.empty((rows + 2 * pad, columns + 2 * pad, channels), np.uint8)
        padded[:] = np.asarray(fill, np.uint8)
        padded[pad : pad + rows, pad : pad + columns] = image
        top = int(draws[0, i] * np.float32(rows + 2 * pad - height + 1))
        left = int(draws[1, i] * np.float32(columns + 2 * pad - width + 1))
        crop = padded[top : top + height, left : left + width]
        result[i] = crop[:, ::-1] if recipe.flip and draws[2, i] >= 0.5 else crop
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "size, shape, pad",
    [
        ((32, 32, 3), (32, 32, 3), 4),
        ((84, 84, 3), (64, 64, 3), 0),
        ((8, 8, 1), (8, 8, 1), 0),
        ((9, 7, 2), (6, 5, 2), 1),
    ],
)
def test_augment_is_pad_crop_and_mirror(size, shape, pad, flip):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, *size), dtype=np.uint8)
    recipe, fill = of_batch(200, pad=pad, flip=flip), rng.integers(0, 256, size[2]).astype(np.float32)
    for seed in ((0, 0), (5, 123_456)):
        found = data.augment(tf.constant(images), recipe, shape, fill, seed=seed)
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, numpy_augment(images, recipe, *shape[:2], fill, seed))


def test_every_window_and_both_directions_are_as_likely_as_each_other():
    # Pixel (r, c) is 16 r + c + 1: the first pixel of a crop tells its place, the second its direction.
    image = (np.arange(10)[:, None] * 16 + np.arange(10) + 1).astype(np.uint8)[None, ..., None]
    crops = data.augment(
        tf.constant(np.repeat(image, 18_000, 0)), of_batch(1, flip=True), (8, 8, 1), np.zeros(1), seed=(0, 1)
    ).numpy()[..., 0]
    mirrored = crops[:, 0, 0] > crops[:, 0, 1]
    corner = np.where(mirrored, crops[:, 0, 7], crops[:, 0, 0]).astype(int) - 1
    counts = collections.Counter(zip((corner // 16).tolist(), (corner % 16).tolist(), mirrored.tolist(), strict=True))
    assert set(counts) == {(r, c, m) for r in range(3) for c in range(3) for m in (False, True)}
    # 18,000 draws over 18 cells: 1,000 each, a standard deviation of 31.
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 31


def test_train_pads_with_the_mean_pixel(digits_dir, digits):
    recipe = of_batch(479, pad=1)
    images = Images("optical_digits", recipe, digits_dir)
    fill = np.rint(digits[0][:1437].mean((0, 1, 2), dtype=np.float64))
    plain = Images("optical_digits", of_batch(479), digits_dir)
    for step, ((batch, labels), (whole, same)) in enumerate(
        zip(
            listed(images.train(seed=7, first_step=0, steps=4)),
            listed(plain.train(seed=7, first_step=0, steps=4)),
            strict=True,
        )
    ):
        np.testing.assert_array_equal(labels, same)
        np.testing.assert_array_equal(batch, numpy_augment(whole, recipe, 8, 8, fill, (7, step)))


def test_the_crop_a_recipe_asks_for_is_done_or_refused(digits_dir, digits):
    try:
        batches = Images("optical_digits", of_batch(479, crop="resized"), digits_dir).train(
            seed=0, first_step=0, steps=1
        )
    except UserError as error:
        assert "resized" in str(error)
    else:
        # Crops of 8 to 100 % of the area, resized, are not the digits themselves.
        crops = counted(listed(batches)[0][0])
        assert (crops & counted(digits[0])).total() < 240


# What is tested on


def test_the_test_split_is_whole_and_in_order(digits_dir, digits):
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    batches = listed(images.test())
    assert [len(labels) for _, labels in batches] == [64] * 5 + [40]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), digits[0][1437:])
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), digits[1][1437:])
    assert [len(labels) for _, labels in listed(images.test(100))] == [100, 100, 100, 60]
    first, labels = images.test_batch(7)
    np.testing.assert_array_equal(first, digits[0][1437:1444])
    np.testing.assert_array_equal(labels, digits[1][1437:1444])


def test_arrays_are_the_data_sets_own(digits_dir, digits):
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    for split, rows in (("train", slice(1437)), ("test", slice(1437, None))):
        found, labels = images.arrays(split)
        np.testing.assert_array_equal(found, digits[0][rows])
        np.testing.assert_array_equal(labels, digits[1][rows])


def test_mean_image_is_numpys_in_float64(digits_dir, digits):
    mean = Images("optical_digits", RECIPES["digits"], digits_dir).mean_image()
    assert (mean.shape, mean.dtype) == ((8, 8, 1), np.float32)
    np.testing.assert_allclose(mean, digits[0][:1437].astype(np.float64).mean(0), rtol=1e-6)


def test_images_larger_than_the_network_are_cropped_at_the_centre(digits_dir, digits, monkeypatch):
    monkeypatch.setitem(DATASETS, "middle", DatasetInfo("optical_digits", 10, (6, 3, 1), "digits"))
    images = Images("middle", of_batch(64), digits_dir)
    middle = digits[0][:, 1:7, 2:5]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in listed(images.test())]), middle[1437:])
    np.testing.assert_allclose(images.mean_image(), middle[:1437].mean(0, dtype=np.float64), rtol=1e-6)
    assert listed(images.train(seed=0, first_step=0, steps=1))[0][0].shape == (64, 6, 3, 1)


# What cannot be had


@pytest.fixture
def offline(monkeypatch):
    """A proxy that is not there, and one attempt instead of ten: a machine without a network, in no time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tensorflow_datasets.core.download.downloader.MAX_RETRIES", 0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mini_imagenet", "imagenet2012"])
def test_data_that_is_not_there_is_one_line_that_says_where_and_how(offline, tmp_path, name):
    folder = tmp_path / "nowhere"
    with pytest.raises(UserError) as error:
        Images(name, RECIPES[DATASETS[name].recipe], folder)
    message = str(error.value)
    assert message.startswith(f"the data set {name} is not in {folder} ")
    assert DATASETS[name].how in message and "--data_dir=FOLDER" in message
    assert not folder.exists(), "left behind"


def test_a_data_dir_of_the_users_is_left_standing(offline, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="is not in"):
        Images("cifar100", RECIPES["cifar"], tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_data_that_can_be_made_is_made(tmp_path, digits):
    images = Images("optical_digits", RECIPES["digits"], tmp_path / "new")
    assert (tmp_path / "new" / "optical_digits").is_dir()
    assert (images.size, images.steps_per_epoch) == (1437, 22)


def test_an_unknown_data_set_names_the_known_ones(digits_dir):
    with pytest.raises(UserError, match="one of optical_digits, .*imagenet2012. Received: 'cifar'"):
        Images("cifar", RECIPES["cifar"], digits_dir)


def test_a_batch_larger_than_the_data_set_is_refused(digits_dir):
    with pytest.raises(UserError, match="optical_digits has 1437 training images, fewer than the batch of 1438"):
        Images("optical_digits", of_batch(1438), digits_dir)


# Photographs: cropped at the centre, or at random, and resized


def photograph(rng, height, width):
    """Smooth colours, as a photograph has: each channel a plane and a slow wave."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    channels = []
    for _ in range(3):
        a, b, phase = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, 6)
        channels.append(
            128 + 50 * (a * rows / height + b * columns / width) + 40 * np.sin(rows / 9 + columns / 7 + phase)
        )
    return np.clip(np.rint(np.stack(channels, -1)), 0, 255).astype(np.uint8)


def encoded(image, form="jpeg"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, form, **({"quality": 95} if form == "jpeg" else {}))
    return buffer.getvalue()


def pil_central_crop(image, size, resize):
    """The same by Pillow, whose bilinear filter widens in the same way where it shrinks."""
    height, width = image.shape[:2]
    factor = resize / min(height, width)
    shape = [max(round(side * factor), wanted) for side, wanted in zip((height, width), size, strict=True)]
    resized = np.asarray(PIL.Image.fromarray(image).resize(shape[::-1], PIL.Image.Resampling.BILINEAR))
    top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
    return resized[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (40, 40), (40, 61), (41, 40)])
def test_central_crop_without_resizing_is_the_middle(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = (height - 32) // 2, (width - 32) // 2
    found = data.central_crop(tf.constant(image), (32, 32), min(height, width))
    np.testing.assert_array_equal(found, image[top : top + 32, left : left + 32])


@pytest.mark.parametrize(
    "height, width, size, resize",
    [
        (100, 150, (32, 32), 40),
        (150, 100, (32, 32), 40),
        (50, 333, (32, 32), 40),
        (20, 30, (32, 32), 40),
        (90, 70, (32, 24), 36),
    ],
)
def test_central_crop_is_pillows(height, width, size, resize):
    image = photograph(np.random.default_rng(1), height, width)
    found = data.central_crop(tf.constant(image), size, resize).numpy()
    assert (found.shape, found.dtype) == ((*size, 3), np.uint8)
    assert np.abs(found.astype(int) - pil_central_crop(image, size, resize)).max() <= 1


@pytest.mark.parametrize("height, width, size", [(100, 40, 32), (10, 200, 32), (31, 31, 32), (33, 70, 8)])
def test_central_crop_without_a_size_keeps_the_whole_shorter_side(height, width, size):
    # A ramp's middle stays in the middle: the mean of a symmetric crop is the mean of the image.
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 200 / height, columns * 200 / width, rows * 0 + 9], -1).round().astype(np.uint8)
    found = data.central_crop(tf.constant(image), (size, size), None).numpy()
    assert found.shape == (size, size, 3)
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), atol=200 / size)
    np.testing.assert_array_equal(found[..., 2], 9)
    kept = np.ptp(found, (0, 1))[:2] / np.ptp(image, (0, 1))[:2]
    shorter = min(height, width)
    np.testing.assert_allclose(kept, [shorter / height, shorter / width], atol=2 / size)


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decode_gives_three_channels(form, mode):
    image = np.asarray(PIL.Image.fromarray(photograph(np.random.default_rng(2), 30, 50)).convert(mode))
    found = data.decode(tf.constant(encoded(image, form))).numpy()
    expected = image if mode == "RGB" else np.repeat(image[..., None], 3, -1)
    assert (found.shape, found.dtype) == ((30, 50, 3), np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= (0 if form == "png" else 12)


def test_random_resized_crops_cover_the_areas_and_ratios_they_may():
    # Red tells the column and green the row, so that a crop tells its place: 256 x 256, one level a pixel.
    rows, columns = np.mgrid[:256, :256]
    picture = tf.constant(encoded(np.stack([columns, rows, rows * 0], -1).astype(np.uint8), "png"))
    seeds = tf.stack([tf.zeros(400, tf.int64), tf.range(400, dtype=tf.int64)], 1)
    crop = tf.function(lambda seed: data.random_resized_crop(picture, (32, 32, 3), seed=(seed[0], seed[1])))
    crops = np.stack([crop(seed).numpy() for seed in seeds]).astype(np.float64)
    assert crops.shape == (400, 32, 32, 3)
    np.testing.assert_array_equal(crops[0], data.random_resized_crop(picture, (32, 32, 3), seed=(0, 0)))

    # Between the centres of the first and the last pixel of a row lie 31/32 of the crop's width.
    across = crops[:, :, -1, 0].mean(1) - crops[:, :, 0, 0].mean(1)
    width, height = np.abs(across) * 32 / 31, (crops[:, -1, :, 1].mean(1) - crops[:, 0, :, 1].mean(1)) * 32 / 31
    area, ratio = width * height / 256**2, width / height
    assert 0.07 < area.min() < 0.15 and 0.85 < area.max() < 1.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.37
    # 400 fair throws: 200 with a standard deviation of 10.
    assert abs((across < 0).sum() - 200) < 50
    left = np.where(across > 0, crops[:, 0, 0, 0], crops[:, 0, -1, 0])
    assert left.min() < 10 and (left + width).max() > 245


COUNT = {"train": 22, "validation": 7}
SIZES = [(48, 64), (64, 48), (100, 41), (40, 40), (57, 83)]


def photographs(split):
    """(JPEG file, label) of a split; every image has its own label."""
    rng = np.random.default_rng(COUNT[split])
    return [(encoded(photograph(rng, *SIZES[i % len(SIZES)])), i) for i in range(COUNT[split])]


def pil_crops(split):
    """By label, the central crops of 32 x 24 out of the images shrunk to 40."""
    return {
        label: pil_central_crop(np.asarray(PIL.Image.open(io.BytesIO(jpeg))), (32, 24), 40)
        for jpeg, label in photographs(split)
    }


class TinyPhotographs(tfds.core.GeneratorBasedBuilder):
    """In the format of imagenet2012: encoded JPEG files of any size, in the splits train and validation."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=COUNT["train"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNT}

    def _generate_examples(self, split):
        for jpeg, label in photographs(split):
            name = f"{label}.JPEG"
            yield name, {"image": io.BytesIO(jpeg), "label": label, "file_name": name}


RESIZED = of_batch(5, crop="resized", test_resize=40, flip=True)


@pytest.fixture(scope="module")
def photographs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    TinyPhotographs(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def streamed(photographs_dir, monkeypatch):
    info = DatasetInfo("tiny_photographs", 22, (32, 24, 3), "imagenet", test_split="validation", streamed=True)
    monkeypatch.setitem(DATASETS, "tiny", info)
    return lambda recipe=RESIZED: Images("tiny", recipe, photographs_dir)


def test_streamed_batches_are_a_function_of_seed_and_step(streamed):
    images = streamed()
    assert (images.size, images.steps_per_epoch) == (22, 4)
    whole = listed(images.train(seed=2, first_step=0, steps=11))
    assert len(whole) == 11
    assert {(x.shape, x.dtype.name, y.dtype.name) for x, y in whole} == {((5, 32, 24, 3), "uint8", "int32")}
    for first in (1, 4, 7):
        assert_same_batches(listed(streamed().train(seed=2, first_step=first, steps=11 - first)), whole[first:])
    other = listed(images.train(seed=3, first_step=0, steps=11))
    assert [y.tolist() for _, y in other] != [y.tolist() for _, y in whole]


def test_streamed_epochs_see_each_image_at_most_once(streamed):
    labels = np.concatenate([y for _, y in listed(streamed().train(seed=0, first_step=0, steps=12))]).reshape(3, 20)
    assert [len(set(epoch)) for epoch in labels.tolist()] == [20, 20, 20]
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 3, "epochs in the same order"
    pictures = [x for x, _ in listed(streamed().train(seed=0, first_step=0, steps=12))]
    assert len({picture.tobytes() for batch in pictures for picture in batch}) == 60, "an epoch's crops come again"


def test_streamed_test_images_are_pillows_central_crops(streamed):
    expected = pil_crops("validation")
    batches = listed(streamed().test(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert sorted(labels.tolist()) == list(range(7))
    for image, label in zip(images, labels, strict=True):
        # TensorFlow's decoder takes the fast transform: about one level darker. A place beside would be over four off.
        assert np.abs(image.astype(int) - expected[label]).mean() < 2
    assert_same_batches(listed(streamed().test(3)), batches)


def test_streamed_pictures_become_the_test_images(streamed):
    images = streamed()
    pictures = tf.constant(images.pictures(7), tf.string)
    found = Preprocessing.of(images.info, RESIZED).pixels(pictures).numpy()
    np.testing.assert_array_equal(found, images.test_batch(7)[0])


def test_streamed_mean_image_is_that_of_the_central_crops(streamed, monkeypatch):
    expected = np.mean(list(pil_crops("train").values()), 0)
    mean = streamed().mean_image()
    assert (mean.shape, mean.dtype) == ((32, 24, 3), np.float32)
    assert np.abs(mean - expected).mean() < 2  # as above
    monkeypatch.setattr(data, "MEAN_IMAGES", 1)
    only = streamed()
    first = listed(only._plain("train").take(1))[0][0]
    np.testing.assert_array_equal(only.mean_image(), first)


def test_streamed_images_are_mirrored_only_if_the_recipe_says_so(streamed):
    pair = [
        streamed(dataclasses.replace(RESIZED, flip=flip)).train(seed=0, first_step=0, steps=4) for flip in (True, False)
    ]
    mirrored = collections.Counter()
    for (with_flips, _), (without, _) in zip(*map(listed, pair), strict=True):
        for image, plain in zip(with_flips, without, strict=True):
            mirrored[np.array_equal(image, plain), np.array_equal(image, plain[:, ::-1])] += 1
    assert set(mirrored) == {(True, False), (False, True)}
