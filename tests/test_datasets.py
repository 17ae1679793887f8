import hashlib
import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from gated_resnext import datasets
from gated_resnext.datasets import names

datasets.register()
MiniImagenet = tfds.builder_cls("mini_imagenet")

REAL_MANUAL_DIR = os.environ.get("GATED_RESNEXT_MINI_IMAGENET", "")


class TinyImagenet(MiniImagenet, skip_registration=True):
    """Two classes, named out of order."""

    wnids = ("n00000002", "n00000001")
    train_images_per_class = 3
    test_images_per_class = 2


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a data set builder connected to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def build(builder, manual_dir=None):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def read(builder, split, **kwargs):
    return [(e["image"], int(e["label"])) for e in tfds.as_numpy(builder.as_dataset(split=split, **kwargs))]


def read_jpegs(builder, split):
    return read(builder, split, decoders={"image": tfds.decode.SkipDecoding()})


def test_importing_the_package_imports_no_tensorflow():
    code = (
        f"import runpy, sys; runpy.run_path({datasets.__file__!r}); "
        "sys.exit(any(name.startswith('tensorflow') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["mini_imagenet", "optical_digits"])
def test_register_makes_the_name_known_and_may_be_called_again(name, tmp_path):
    datasets.register()
    assert tfds.builder(name, data_dir=tmp_path).info.full_name == f"{name}/1.0.0"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return build(tfds.builder("optical_digits", data_dir=tmp_path_factory.mktemp("digits")))


def test_digits_have_the_sizes_they_state(digits):
    train, test = read(digits, "train"), read(digits, "test")
    assert (len(train), len(test)) == (1437, 360)
    assert digits.info.splits["train"].num_examples == 1437
    assert {(image.shape, image.dtype.name) for image, _ in train + test} == {((8, 8, 1), "uint8")}
    assert {label for _, label in train} == {label for _, label in test} == set(range(10))
    assert (min(image.min() for image, _ in train), max(image.max() for image, _ in train)) == (0, 255)


def test_digits_equal_scikit_learns_copy_in_order_each_in_one_split(digits):
    sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, which ships the same file")
    original = sklearn_datasets.load_digits()
    images, labels = zip(*(read(digits, "train") + read(digits, "test")), strict=True)
    scaled = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)
    np.testing.assert_array_equal(np.stack(images)[..., 0], scaled[original.images.astype(int)])
    np.testing.assert_array_equal(labels, original.target)


def test_digits_load_as_image_label_pairs(digits):
    image, label = next(iter(digits.as_dataset(split="test", as_supervised=True)))
    assert image.shape == (8, 8, 1) and label.dtype == tf.int64


def test_digits_name_their_source_and_licence(digits):
    licence = Path(datasets.__file__).with_name("LICENSE-optical_digits.txt").read_text()
    for text in (licence, digits.info.description):
        for fact in ("Alpaydin", "Kaynak", "1998", "10.24432/C50P49", "CC BY 4.0"):
            assert fact in text


def test_classes_of_imagenet_have_names_and_their_licence():
    for name in ("imagenet2012", "mini_imagenet"):
        labels = datasets.labels(name)
        found = names.readable(labels)
        assert len(set(found)) == len(labels) and not any(label in found for label in labels)
    assert names.readable(["n02099601", "cat", "n03126707", "n02012849"]) == [
        "golden retriever", "cat", "crane (n03126707)", "crane (n02012849)"
    ]  # fmt: skip
    licence = Path(datasets.__file__).with_name("LICENSE-wordnet_names.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University." in licence


def random_jpeg(rng, side=84):
    return tf.io.encode_jpeg(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).numpy()


def tiny_files():
    """Path in the archives -> bytes, of a complete TinyImagenet."""
    rng = np.random.default_rng(0)
    counts = {"train": TinyImagenet.train_images_per_class, "val": TinyImagenet.test_images_per_class}
    return {
        f"mini_imagenet/{folder}/{wnid}/{wnid}{i:08d}.jpg": random_jpeg(rng)
        for folder, count in counts.items()
        for wnid in sorted(TinyImagenet.wnids)
        for i in range(count)
    }


def write_folders(manual_dir, files):
    for name, content in files.items():
        path = manual_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_archives(manual_dir, files):
    write_folders(manual_dir / "unpacked", files)
    for folder in ("train", "val"):
        with tarfile.open(manual_dir / f"mini_imagenet_{folder}.tar.gz", "w:gz") as archive:
            archive.add(manual_dir / "unpacked/mini_imagenet" / folder, f"mini_imagenet/{folder}")


WRITERS = {"archives": write_archives, "folders": write_folders}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Puts files into a manual_dir, as archives or as folders, and returns it."""

    def write_files(files):
        manual_dir = tmp_path / "manual"
        manual_dir.mkdir()
        WRITERS[request.param](manual_dir, files)
        return manual_dir

    return write_files


def assert_refused(data_dir, manual_dir, message):
    """Building raises one line, which `message` matches, and leaves no file behind."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        build(TinyImagenet(data_dir=data_dir), manual_dir)
    assert "\n" not in str(refusal.value)
    assert not [path for path in (data_dir / "tiny_imagenet").rglob("*") if path.is_file()]


def test_mini_imagenet_keeps_the_bytes_of_the_files(write, tmp_path):
    files = tiny_files()
    builder = build(TinyImagenet(data_dir=tmp_path / "data"), write(files))
    for split, folder in (("train", "train"), ("test", "val")):
        expected = {
            content: sorted(TinyImagenet.wnids).index(name.split("/")[2])
            for name, content in files.items()
            if name.split("/")[1] == folder
        }
        assert dict(read_jpegs(builder, split)) == expected
        assert builder.info.splits[split].num_examples == len(expected)


def test_mini_imagenet_pixels_are_those_of_the_files(write, tmp_path):
    builder = build(TinyImagenet(data_dir=tmp_path / "data"), write(tiny_files()))
    for (image, _), (jpeg, _) in zip(read(builder, "train"), read_jpegs(builder, "train"), strict=True):
        np.testing.assert_array_equal(image, tf.io.decode_jpeg(jpeg))


def test_archives_and_folders_give_the_same_records(tmp_path):
    records = []
    for form, write_form in WRITERS.items():
        (tmp_path / form).mkdir()
        write_form(tmp_path / form, tiny_files())
        builder = build(TinyImagenet(data_dir=tmp_path / "data" / form), tmp_path / form)
        records.append({path.name: path.read_bytes() for path in builder.data_path.glob("*.tfrecord*")})
    assert len(records[0]) == 2 and records[0] == records[1]


def test_archive_is_read_where_there_is_a_folder_too(tmp_path):
    write_archives(tmp_path, tiny_files())
    write_folders(tmp_path, {"mini_imagenet/train/n00000001/alone.jpg": b"", "mini_imagenet/val/n00000001/a.jpg": b""})
    assert len(read_jpegs(build(TinyImagenet(data_dir=tmp_path / "data"), tmp_path), "train")) == 6


def test_hidden_and_foreign_files_are_passed_over(write, tmp_path):
    files = tiny_files()
    for name in ("README.txt", "n00000001/._a.jpg", "n00000001/a.txt", "n00000001/deeper/a.jpg"):
        files[f"mini_imagenet/train/{name}"] = b"not an image"
    assert len(read_jpegs(build(TinyImagenet(data_dir=tmp_path / "data"), write(files)), "train")) == 6


@pytest.mark.parametrize("folder, images_per_class", [("train", 3), ("val", 2)])
@pytest.mark.parametrize("found", [0, 1, 4])
def test_wrong_number_of_images_is_refused(write, tmp_path, folder, images_per_class, found):
    prefix = f"mini_imagenet/{folder}/n00000002/"
    files = {name: content for name, content in tiny_files().items() if not name.startswith(prefix)}
    rng = np.random.default_rng(1)
    files |= {f"{prefix}{i}.jpg": random_jpeg(rng) for i in range(found)}
    message = f"Expected {images_per_class} images .*{folder}/.* each of 2 classes .* Received: n00000002 has {found}$"
    assert_refused(tmp_path / "data", write(files), message)


def test_long_lists_of_wrong_classes_are_cut(write, tmp_path, monkeypatch):
    manual_dir = write(tiny_files())
    monkeypatch.setattr(TinyImagenet, "wnids", tuple(f"n{i:08d}" for i in range(1, 8)))
    assert_refused(tmp_path / "data", manual_dir, "n00000003 has 0, .*n00000005 has 0 and 2 more classes$")


def test_unknown_class_is_refused(write, tmp_path):
    files = tiny_files() | {"mini_imagenet/train/n00000009/a.jpg": random_jpeg(np.random.default_rng(1))}
    assert_refused(tmp_path / "data", write(files), "Expected the 2 classes .* Received: n00000009/a.jpg$")


@pytest.mark.parametrize("found", ["32x32", "no JPEG"])
def test_other_images_are_refused(write, tmp_path, found):
    content = random_jpeg(np.random.default_rng(1), side=32) if found == "32x32" else b"GIF89a"
    files = tiny_files() | {"mini_imagenet/train/n00000001/a.jpg": content}
    message = f"Expected JPEG images of 84x84.* Received: {found}, n00000001/a.jpg"
    assert_refused(tmp_path / "data", write(files), message)


def test_missing_archive_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "mini_imagenet_train.tar.gz").write_bytes(b"never read")
    message = "Expected mini_imagenet_val.tar.gz or the folder mini_imagenet/val .* Received: manual_dir="
    assert_refused(tmp_path / "data", tmp_path, message + re.escape(str(tmp_path)))


def test_missing_manual_dir_names_the_archives(tmp_path):
    with pytest.raises(AssertionError, match=r"mini_imagenet_train\.tar\.gz and mini_imagenet_val\.tar\.gz"):
        build(TinyImagenet(data_dir=tmp_path / "data"), tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_damaged_archive_is_refused(tmp_path, kept):
    write_archives(tmp_path, tiny_files())
    path = tmp_path / "mini_imagenet_train.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert_refused(tmp_path / "data", tmp_path, f"Expected .*; fetch .*again. Received: .*{path.name if kept else ''}")


def test_mini_imagenet_names_100_classes_in_order(tmp_path):
    label = MiniImagenet(data_dir=tmp_path).info.features["label"]
    assert label.num_classes == len(set(label.names)) == 100
    assert label.names == sorted(label.names)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in label.names)


@pytest.mark.skipif(
    not REAL_MANUAL_DIR,
    reason="needs the Mini-ImageNet archives: set GATED_RESNEXT_MINI_IMAGENET to the folder that holds them",
)
def test_real_mini_imagenet_keeps_every_image(tmp_path):
    builder = build(MiniImagenet(data_dir=tmp_path), REAL_MANUAL_DIR)
    names = builder.info.features["label"].names
    for split, folder, count in (("train", "train", 50_000), ("test", "val", 10_000)):
        with tarfile.open(Path(REAL_MANUAL_DIR) / f"mini_imagenet_{folder}.tar.gz", "r|gz") as archive:
            expected = sorted(
                (member.name.split("/")[2], hashlib.sha256(archive.extractfile(member).read()).hexdigest())
                for member in archive
                if member.isfile()
            )
        found = sorted((names[label], hashlib.sha256(jpeg).hexdigest()) for jpeg, label in read_jpegs(builder, split))
        assert len(found) == count and found == expected
    image, _ = read(builder, "test[:1]")[0]
    assert image.shape == (84, 84, 3)
