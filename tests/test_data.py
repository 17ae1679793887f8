import collections
import csv
import dataclasses
import gzip
import importlib.resources
import io
import os
import pathlib
import socket
import tarfile

import hypothesis
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import strategies as st
from test_augmentation import encoded, numpy_augment, of_batch, photograph, pil_central_crop

from gated_resnext import data
from gated_resnext.data import Images, Shard
from gated_resnext.datasets.table import DATASETS, DatasetInfo
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES


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


def test_a_crop_that_images_in_memory_do_not_have_is_refused(digits_dir):
    with pytest.raises(UserError, match="resized"):
        Images("optical_digits", of_batch(479, crop="resized"), digits_dir).train(seed=0, first_step=0, steps=1)


# What is tested on


def test_the_test_split_is_whole_and_in_order(digits_dir, digits):
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    batches = listed(images.in_order())
    assert [len(labels) for _, labels in batches] == [64] * 5 + [40]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), digits[0][1437:])
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), digits[1][1437:])
    assert [len(labels) for _, labels in listed(images.in_order(batch_size=100))] == [100, 100, 100, 60]
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
    np.testing.assert_array_equal(np.concatenate([x for x, _ in listed(images.in_order())]), middle[1437:])
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
    known = f"'cifar' in {digits_dir} or tensorflow-datasets; well known here are optical_digits, .*, imagenet2012$"
    with pytest.raises(UserError, match=f"there is no data set {known}"):
        Images("cifar", RECIPES["cifar"], digits_dir)


def test_a_batch_larger_than_the_data_set_is_refused(digits_dir):
    with pytest.raises(UserError, match="optical_digits has 1437 training images, fewer than the batch of 1438"):
        Images("optical_digits", of_batch(1438), digits_dir)


# Photographs: cropped at the centre, or at random, and resized


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


# Limits


def test_a_limit_leaves_the_first_training_images_and_all_test_images(digits_dir):
    whole, some = (Images("optical_digits", RECIPES["digits"], digits_dir, limit=limit) for limit in (None, 200))
    for found, all_ in zip(some.arrays("train"), whole.arrays("train"), strict=True):
        np.testing.assert_array_equal(found, all_[:200])
    for found, expected in zip(some.arrays("test"), whole.arrays("test"), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (some.size, some.steps_per_epoch, len(some)) == (200, 3, len(whole))
    expected = whole.arrays("train")[0][:200].astype(np.float64).mean(0)
    np.testing.assert_allclose(some.mean_image(), expected, rtol=1e-6)
    assert some.source.digest() != whole.source.digest()
    seen = np.concatenate([y for _, y in listed(some.train(seed=0, first_step=0, steps=3))])
    counts = np.bincount(whole.arrays("train")[1][:200], minlength=10)
    assert (np.bincount(seen, minlength=10) <= counts).all() and len(seen) == 192


@pytest.mark.parametrize("limit", [0, -1, 1438])
def test_a_limit_beyond_the_training_images_is_refused(limit, digits_dir):
    with pytest.raises(UserError, match=rf"between 1 and the 1,437 training images .* Received: {limit}"):
        Images("optical_digits", RECIPES["digits"], digits_dir, limit=limit)


def test_a_limit_below_the_batch_or_of_a_folder_is_refused(digits_dir, tmp_path):
    with pytest.raises(UserError, match="63 training images, fewer than the batch of 64"):
        Images("optical_digits", RECIPES["digits"], digits_dir, limit=63)
    with pytest.raises(UserError, match="are all of one class"):
        Images(f"folder:{tmp_path}", RECIPES["photos"], None, (8, 8, 3), limit=5)


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


def test_a_limit_of_files_leaves_the_first_images(streamed, photographs_dir):
    first = [int(label) for _, label in streamed().source.in_order("train").as_numpy_iterator()][:10]
    images = Images("tiny", RESIZED, photographs_dir, limit=10)
    assert (images.size, images.steps_per_epoch, len(images)) == (10, 2, len(streamed()))
    epochs = np.concatenate([y for _, y in listed(images.train(seed=0, first_step=0, steps=4))]).reshape(2, 10)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [sorted(first)] * 2


def test_streamed_epochs_see_each_image_at_most_once(streamed):
    labels = np.concatenate([y for _, y in listed(streamed().train(seed=0, first_step=0, steps=12))]).reshape(3, 20)
    assert [len(set(epoch)) for epoch in labels.tolist()] == [20, 20, 20]
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 3, "epochs in the same order"
    pictures = [x for x, _ in listed(streamed().train(seed=0, first_step=0, steps=12))]
    assert len({picture.tobytes() for batch in pictures for picture in batch}) == 60, "an epoch's crops come again"


def test_streamed_test_images_are_pillows_central_crops(streamed):
    expected = pil_crops("validation")
    batches = listed(streamed().in_order(batch_size=3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert sorted(labels.tolist()) == list(range(7))
    for image, label in zip(images, labels, strict=True):
        # TensorFlow's decoder takes the fast transform: about one level darker. A place beside would be over four off.
        assert np.abs(image.astype(int) - expected[label]).mean() < 2
    assert_same_batches(listed(streamed().in_order(batch_size=3)), batches)


def test_streamed_pictures_become_the_test_images(streamed):
    images = streamed()
    pictures = tf.constant(images.pictures(7), tf.string)
    found = images.preprocessing.pixels(pictures).numpy()
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


# Of every source: a function of seed and step, whole epochs, and parts that are the whole

CLASSES, TRAIN, TEST, BATCH = 3, 41, 13, 12
KINDS = ["memory", "folder", "streamed"]


def of_one_colour(number):
    """An image that any crop leaves the same, so that the pixel tells which one it is."""
    return np.full((10 + number % 4, 14, 3), (number, 255 - number, 7), np.uint8)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """The same images in memory, in a folder and in files of tensorflow-datasets; those for testing from 100 on."""
    folder = tmp_path_factory.mktemp("colours")
    splits = {"train": range(TRAIN), "test": range(100, 100 + TEST)}
    for split, numbers in splits.items():
        for number in numbers:
            path = folder / "photos" / split / str(number % CLASSES) / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(of_one_colour(number), "png"))
    tfds.disable_progress_bar()
    for name, height in (("in_memory", 10), ("in_files", None)):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(height, 14, 3)),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            ),
            split_datasets={
                split: [(n, {"image": of_one_colour(n)[:height], "label": n % CLASSES}) for n in numbers]
                for split, numbers in splits.items()
            },
            data_dir=folder,
        )
    in_files = DatasetInfo("in_files", CLASSES, (8, 8, 3), "photos", streamed=True)
    in_memory = DatasetInfo("in_memory", CLASSES, (8, 8, 3), "cifar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "colours_in_files", in_files)
        patch.setitem(DATASETS, "colours_in_memory", in_memory)
        yield {
            "memory": Images("colours_in_memory", of_batch(BATCH), folder),
            "folder": Images(f"folder:{folder / 'photos'}", of_batch(BATCH, crop="resized"), None, (8, 8, 3)),
            "streamed": Images("colours_in_files", of_batch(BATCH, crop="resized"), folder),
        }


def numbers_of(batches):
    """Which images they are, batch by batch; that each is of one colour and has its label."""
    found = []
    for images, labels in listed(batches):
        assert (images == images[:, :1, :1]).all()
        numbers = images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(labels, numbers % CLASSES)
        found.append(numbers.tolist())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_whole_epochs_in_another_order_each(colours, kind):
    images = colours[kind]
    assert (images.size, len(images), images.steps_per_epoch) == (TRAIN, TEST, 3)
    epochs = np.reshape(numbers_of(images.train(seed=1, first_step=0, steps=30)), (10, 3 * BATCH)).tolist()
    for epoch in epochs:
        assert len(set(epoch)) == 3 * BATCH and set(epoch) <= set(range(TRAIN))
    assert len(set(map(tuple, epochs))) == 10
    left_out = {number for epoch in epochs for number in set(range(TRAIN)) - set(epoch)}
    assert len(left_out) > 10, "the same images are left out of every epoch"
    assert sorted(np.concatenate(numbers_of(images.in_order()))) == list(range(100, 100 + TEST))


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=6)
@hypothesis.given(seed=st.integers(0, 2**62), first=st.integers(0, 1000), steps=st.integers(1, 8))
def test_to_start_at_any_step_is_to_have_run_up_to_it(colours, kind, seed, first, steps):
    images = colours[kind]
    whole = listed(images.train(seed=seed, first_step=first, steps=steps))
    assert len(whole) == steps
    for begin in {0, steps // 2, steps - 1}:
        part = images.train(seed=seed, first_step=first + begin, steps=steps - begin)
        assert_same_batches(listed(part), whole[begin:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_pass_is_the_same(colours, kind):
    batches = colours[kind].train(seed=5, first_step=1, steps=5)
    assert_same_batches(listed(batches), listed(batches))


@pytest.mark.parametrize("kind", KINDS)
def test_tensorflows_global_seed_changes_nothing(colours, kind):
    expected = listed(colours[kind].train(seed=5, first_step=1, steps=5))
    try:
        tf.random.set_seed(99)
        assert_same_batches(listed(colours[kind].train(seed=5, first_step=1, steps=5)), expected)
    finally:
        tf.random.set_seed(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [2**63 - 1, 2**31, 10**5])
def test_seeds_of_any_size_differ(colours, kind, seed):
    """As --seed takes them, up to the largest of 64 bits."""
    first, second = (numbers_of(colours[kind].train(seed=s, first_step=0, steps=1)) for s in (seed, seed - 1))
    assert first != second


divisions = st.sampled_from([(p, r) for p in (1, 2, 3, 4, 6, 12) for r in (1, 2, 3, 4, 6, 12) if BATCH % (p * r) == 0])


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=8)
@hypothesis.example(division=(2, 1), first=2, steps=3)
@hypothesis.example(division=(2, 2), first=2, steps=3)
@hypothesis.example(division=(1, 2), first=0, steps=4)
@hypothesis.given(division=divisions, first=st.integers(0, 50), steps=st.integers(1, 5))
def test_the_shards_of_a_batch_are_the_whole_batch_in_order(colours, kind, division, first, steps):
    images, (parts, replicas) = colours[kind], division
    whole = listed(images.train(seed=3, first_step=first, steps=steps))
    shards = [listed(images.train(3, first, steps, Shard(part, parts, replicas))) for part in range(parts)]
    assert {len(shard) for shard in shards} == {steps * replicas}
    assert {len(labels) for shard in shards for _, labels in shard} == {BATCH // parts // replicas}
    together = []
    for step in range(steps):
        rows = [row for shard in shards for row in shard[step * replicas : (step + 1) * replicas]]
        together.append(tuple(np.concatenate(tensors) for tensors in zip(*rows, strict=True)))
    assert_same_batches(together, whole)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=5)
@hypothesis.example(division=(12, 1))
@hypothesis.example(division=(2, 3))
@hypothesis.given(division=divisions)
def test_the_shards_of_the_test_images_are_all_of_them_once(colours, kind, division):
    images, (parts, replicas) = colours[kind], division
    shards = [listed(images.test_shard(Shard(part, parts, replicas))) for part in range(parts)]
    # 13 images are two batches of 12, so two rounds of every replica.
    assert {len(shard) for shard in shards} == {2 * replicas}
    seen = []
    for pixels, labels in (row for shard in shards for row in shard):
        assert pixels.shape == (BATCH // parts // replicas, 8, 8, 3) and pixels.dtype == np.uint8
        real = labels >= 0
        assert (labels[~real] == -1).all() and not pixels[~real].any()
        numbers = pixels[real][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(labels[real], numbers % CLASSES)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(100, 100 + TEST))


def test_a_test_set_that_divides_has_no_empty_batch(colours):
    recipe = of_batch(TEST, crop="resized")
    rows = listed(Images(colours["folder"].info.name, recipe, None, (8, 8, 3)).test_shard(Shard()))
    assert [labels.min() >= 0 for _, labels in rows] == [True]


@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_samples_and_test_batches_are_the_first_images_in_order(colours, kind):
    images = colours[kind]
    in_order = np.concatenate([x for x, _ in listed(images.in_order(batch_size=5))])
    pixels, labels = images.test_batch(4)
    np.testing.assert_array_equal(pixels, in_order[:4])
    np.testing.assert_array_equal(labels, pixels[:, 0, 0, 0] % CLASSES)
    samples = images.samples(7)
    assert samples.shape == (7, 8, 8, 3) and len(set(samples[:, 0, 0, 0].tolist()) & set(range(TRAIN))) == 7


def test_samples_and_test_batches_of_a_folder_are_of_every_class(colours):
    """Its rows are in the order of their classes, so that the first are all of one."""
    images = colours["folder"]
    for count in range(CLASSES, TEST + 1):
        pixels, labels = images.test_batch(count)
        assert pixels.shape == (count, 8, 8, 3) and set(labels.tolist()) == set(range(CLASSES))
        np.testing.assert_array_equal(labels, pixels[:, 0, 0, 0] % CLASSES)
        assert len(np.unique(pixels[:, 0, 0, 0])) == count
        pictures = tf.constant(images.pictures(CLASSES + 1, count), tf.string)
        np.testing.assert_array_equal(images.preprocessing.pixels(pictures), pixels[: CLASSES + 1])
    found = images.samples(2 * CLASSES)[:, 0, 0, 0]
    assert np.bincount(found % CLASSES).tolist() == [2] * CLASSES and len(set(found.tolist())) == len(found)
    assert sorted(images.samples(TRAIN + 1)[:, 0, 0, 0].tolist()) == list(range(TRAIN))


@pytest.mark.parametrize("split", ["test", "train", "all"])
def test_some_images_of_a_folder_in_batches_are_of_every_class(colours, split):
    batches = [*colours["folder"].batches(split, 2 * CLASSES, 3)]
    found = np.concatenate([pixels for pixels, _ in batches])[:, 0, 0, 0]
    assert len(found) == 2 * CLASSES == len(set(found.tolist())) and set(found % CLASSES) == set(range(CLASSES))
    assert (found.max() >= 100) == (split != "train") and (found.min() < 100) == (split != "test")


def test_the_mean_image_of_a_folder_is_of_every_class(colours, monkeypatch):
    images = colours["folder"]
    monkeypatch.setattr(data, "MEAN_IMAGES", 2 * CLASSES)
    again = data.Images(images.name, images.recipe, None, images.input_shape)
    np.testing.assert_allclose(again.mean_image(), images.samples(2 * CLASSES).mean(0), rtol=1e-6)
    first = np.concatenate([pixels for pixels, _ in listed(images._plain("train").take(2 * CLASSES).batch(9))])
    assert np.abs(again.mean_image() - first.mean(0)).max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_images_than_there_are_cost_no_more(colours, kind, monkeypatch):
    """A batch of 10**9 takes TensorFlow hours where there are 13 images and it maps them in parallel."""
    images, asked = colours[kind], []
    batch = tf.data.Dataset.batch
    monkeypatch.setattr(
        tf.data.Dataset,
        "batch",
        lambda rows, size, *args, **options: asked.append(size) or batch(rows, min(size, TEST), *args, **options),
    )
    assert len(images.test_batch(10**9)[1]) == TEST
    assert asked == [TEST]


def test_the_mean_image_of_a_folder_is_that_of_its_training_images(colours):
    mean = sum(range(TRAIN)) / TRAIN
    np.testing.assert_allclose(colours["folder"].mean_image(), np.full((8, 8, 3), (mean, 255 - mean, 7)), atol=0.01)


@pytest.mark.parametrize("shape", [(8, 8, 2), (8, 8, 5)])
def test_channels_that_no_photograph_has_are_refused(colours, shape):
    with pytest.raises(UserError, match="channels"):
        images = colours["folder"]
        Images(images.info.name, images.recipe, None, shape).mean_image()


def test_a_folder_for_a_network_of_grey_images(colours, tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(10):
            (tmp_path / label / f"{number}.png").write_bytes(encoded(np.full((9, 9), number, np.uint8), "png"))
    grey = Images(f"folder:{tmp_path}", of_batch(2, crop="resized"), None, (8, 8, 1))
    assert {x.shape for x, _ in listed(grey.train(seed=0, first_step=0, steps=3))} == {(2, 8, 8, 1)}
    assert np.unique(grey.test_batch(10)[0]).tolist() == [4]


# Photographs in imagenet2012's format


@pytest.fixture(scope="module")
def real_photographs(tmp_path_factory):
    """A few hundred photographs as the data set imagenet2012 of tensorflow-datasets: its folder, and the JPEG files."""
    manual = os.environ.get("GATED_RESNEXT_MINI_IMAGENET")
    if not manual:
        pytest.skip("needs mini_imagenet_train.tar.gz and _val.tar.gz in the folder GATED_RESNEXT_MINI_IMAGENET")
    names = tfds.builder_cls("imagenet2012")(data_dir=tmp_path_factory.mktemp("none")).info.features["label"].names
    photographs = {}
    for split, part, count in (("train", "train", 256), ("validation", "val", 40)):
        rows = []
        with tarfile.open(pathlib.Path(manual) / f"mini_imagenet_{part}.tar.gz", "r|gz") as archive:
            for member in archive:
                if len(rows) == count:
                    break
                path = pathlib.PurePosixPath(member.name)
                if path.suffix == ".jpg" and not path.name.startswith("."):
                    rows.append((path.parent.name, path.name, archive.extractfile(member).read()))
        photographs[split] = rows
    folder = tmp_path_factory.mktemp("imagenet")
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version=str(tfds.builder_cls("imagenet2012").VERSION),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=names),
                "file_name": tfds.features.Text(),
            }
        ),
        split_datasets={
            split: [
                (name, {"image": io.BytesIO(jpeg), "label": label, "file_name": name}) for label, name, jpeg in rows
            ]
            for split, rows in photographs.items()
        },
        data_dir=folder,
    )
    return folder, photographs


def test_real_photographs_in_imagenets_format_are_streamed(real_photographs):
    folder, photographs = real_photographs
    recipe = dataclasses.replace(RECIPES["imagenet"], batch_size=32)
    images = Images("imagenet2012", recipe, folder)
    assert (images.size, len(images), len(images.labels), images.input_shape) == (256, 40, 1000, (224, 224, 3))
    whole = listed(images.train(seed=0, first_step=0, steps=16))
    assert {(x.shape, x.dtype.name, y.shape) for x, y in whole} == {((32, 224, 224, 3), "uint8", (32,))}
    wanted = collections.Counter(images.labels.index(label) for label, _, _ in photographs["train"])
    for epoch in (whole[:8], whole[8:]):
        assert collections.Counter(label for _, labels in epoch for label in labels.tolist()) == wanted
    crops = {image.tobytes() for batch, _ in whole for image in batch}
    assert len(crops) == 512, "an epoch's crops come again"
    assert_same_batches(listed(images.train(seed=0, first_step=11, steps=2)), whole[11:13])

    # The centre of an image whose shorter side is shrunk to 256: 224 of 256 of it.
    means = []
    for _, _, jpeg in photographs["train"]:
        pixels = np.asarray(PIL.Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(float)
        height, width = pixels.shape[:2]
        side = round(min(height, width) * 224 / 256)
        top, left = (height - side) // 2, (width - side) // 2
        means.append(pixels[top : top + side, left : left + side].mean((0, 1)))
    np.testing.assert_allclose(images.mean_image().mean((0, 1)), np.mean(means, 0), atol=2)
    tests = np.concatenate([labels for _, labels in listed(images.in_order())])
    assert sorted(tests.tolist()) == sorted(images.labels.index(label) for label, _, _ in photographs["validation"])


@pytest.mark.parametrize("shape", [(9, 8, 1), (8, 16, 1), (8, 8, 3)])
def test_a_network_of_larger_images_or_other_channels_is_refused(digits_dir, shape):
    with pytest.raises(
        UserError, match=r"the images of optical_digits are \(8, 8, 1\), too small or of other channels"
    ):
        Images("optical_digits", RECIPES["digits"], digits_dir, shape)
    assert Images("optical_digits", RECIPES["digits"], digits_dir, (7, 5, 1)).input_shape == (7, 5, 1)
