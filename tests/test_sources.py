"""Folders of images and data sets of tensorflow-datasets, as rows of encoded images and labels."""

import io
import os
import pathlib
import re
import shutil
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from gated_resnext import augmentation, datasets, sources
from gated_resnext.data import Images
from gated_resnext.datasets.table import FOLDER
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES
from gated_resnext.sources import FolderSource, open_source

SMALL = PIL.Image.new("RGB", (3, 2), (200, 10, 10))


def content(form="png", image=SMALL, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def filled(folder, *names):
    """The folder with a small image in each of these files."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content())
    return folder


def of_class(label, count):
    return [f"{label}/{number:02}.png" for number in range(count)]


def listed(source):
    """The rows as (path below the folder, class) of each split."""
    return {
        split: [(str(path.relative_to(source.path)), source.labels[label]) for path, label in rows]
        for split, rows in source.files.items()
    }


# Folders


def test_one_image_of_ten_of_each_class_is_for_testing(tmp_path):
    source = FolderSource(filled(tmp_path, *of_class("dog", 25), *of_class("cat", 5), *of_class("Ant", 4)))
    assert source.labels == ["Ant", "cat", "dog"]
    tests = [("cat/04.png", "cat"), ("dog/04.png", "dog"), ("dog/14.png", "dog"), ("dog/24.png", "dog")]
    assert listed(source)["test"] == tests
    names = [*of_class("Ant", 4), *of_class("cat", 5), *of_class("dog", 25)]
    assert listed(source)["train"] == [
        row for row in ((name, name.split("/")[0]) for name in names) if row not in tests
    ]
    assert source.sizes == {"train": 30, "test": 4}
    assert source.info.name == f"{FOLDER}{tmp_path}" and source.info.classes == 3


@pytest.mark.parametrize(
    "train, test",
    [("train", "test"), ("train", "val"), ("train", "validation"), ("Training", "Testing"), ("TRAIN", "valid")],
)
def test_folders_of_its_own_for_testing(tmp_path, train, test):
    names = [f"{train}/{name}" for name in (*of_class("a", 2), *of_class("b", 11))]
    source = FolderSource(filled(tmp_path, *names, f"{test}/a/7.png", f"{test}/b/8.png", f"{test}/b/9.png"))
    assert source.labels == ["a", "b"]
    assert listed(source) == {
        "train": [(name, name.split("/")[1]) for name in names],
        "test": [(f"{test}/a/7.png", "a"), (f"{test}/b/8.png", "b"), (f"{test}/b/9.png", "b")],
    }


def test_test_comes_before_validation_and_a_class_may_lack_test_images(tmp_path):
    filled(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/2.png", "val/a/3.png", "validation/a/4.png")
    assert listed(FolderSource(tmp_path))["test"] == [("test/b/2.png", "b")]


def test_classes_that_are_called_train_or_test_are_classes_without_the_other(tmp_path):
    source = FolderSource(filled(tmp_path, *of_class("test", 5), *of_class("exam", 5)))
    assert source.labels == ["exam", "test"] and source.sizes == {"train": 8, "test": 2}


def test_train_may_be_a_class(tmp_path):
    assert FolderSource(filled(tmp_path, *of_class("train", 5), *of_class("car", 5))).labels == ["car", "train"]


def test_what_is_no_image_or_hidden_is_left_out(tmp_path):
    images = ["a/1.PNG", "a/2.Jpg", "a/3.jpeg", "a/4.gif", "a/5.bmp", "a/deep/er.v2/6.png", "b/1.png"]
    others = ["a/.1.png", "a/._2.png", "a/x.txt", "a/x.png.txt", "a/png", "a/x.tiff", "a/x.webp", "0.png", ".git/x.png"]
    filled(tmp_path, *images, *others)
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / ".hidden").mkdir()
    source = FolderSource(tmp_path)
    assert source.labels == ["a", "b"]
    assert sorted(name for rows in listed(source).values() for name, _ in rows) == images
    assert source.left_alone == "2 .txt, 1 without an ending, 1 .tiff, 1 .webp"


def test_a_third_folder_is_left_alone_and_told(tmp_path):
    classes = [*of_class("train/a", 3), *of_class("train/b", 3)]
    for name in ("test", "val"):
        classes += [*of_class(f"{name}/a", 1), *of_class(f"{name}/b", 1)]
    source = FolderSource(filled(tmp_path, *classes, ".git/x"))
    assert source.left_alone == "the folder val" and source.sizes == {"train": 6, "test": 2}


def test_nothing_is_left_alone_where_all_are_images(tmp_path):
    assert FolderSource(filled(tmp_path, *of_class("a", 5), *of_class("b", 5), "a/.DS_Store")).left_alone == ""


def test_images_of_several_sizes_want_one_and_come_prepared_alone(tmp_path):
    filled(tmp_path, *of_class("a", 90), *of_class("b", 9))
    with pytest.raises(UserError, match=r"of several sizes: give input_shape=\(height, width, channels\)"):
        Images(f"folder:{tmp_path}", RECIPES["photos"])
    with pytest.raises(UserError, match="Images.train and .test_batch give them prepared"):
        Images(f"folder:{tmp_path}", RECIPES["photos"], input_shape=(8, 8, 3)).arrays("train")


def test_hidden_folders_within_a_class_are_left_out(tmp_path):
    filled(tmp_path, *of_class("a", 5), *of_class("b", 2), "a/.ipynb_checkpoints/00-checkpoint.png")
    assert FolderSource(tmp_path).sizes == {"train": 6, "test": 1}


def test_links_are_followed(tmp_path):
    filled(tmp_path / "store", *of_class("x", 5))
    folder = filled(tmp_path / "folder", "b/1.png")
    (folder / "a").symlink_to(tmp_path / "store" / "x", target_is_directory=True)
    (folder / "b" / "2.png").symlink_to(tmp_path / "store" / "x" / "00.png")
    (folder / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = FolderSource(folder)
    assert listed(source)["train"][-2:] == [("b/1.png", "b"), ("b/2.png", "b")]
    assert source.sizes == {"train": 6, "test": 1}
    source.check()


ODD = [
    "with space.png",
    " .png",
    "größe.png",
    "雪.png",
    "new\nline.png",
    "tab\t.png",
    "quote'\".png",
    "*?[1].png",
    "%s%d.png",
]
ODD += ["a:b.png", "-x.png", "x" * 251 + ".png", "\\n.png", "$HOME.png", "#.png", "emoji 🌲.png"]


def test_any_name_a_file_can_have(tmp_path):
    folder = tmp_path / "my photos, größer\n"
    for number, name in enumerate([*map(os.fsencode, ODD), b"latin-1 \xe9.png", b"\xff\xfe.png"]):
        path = os.path.join(os.fsencode(folder), b"class \xc3\xa9" if number % 2 else b"b", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content(image=PIL.Image.new("RGB", (2, 2), (number, 0, 0))))
    source = FolderSource(folder)
    assert source.labels == ["b", "class é"] and sum(source.sizes.values()) == len(ODD) + 2
    source.check()
    seen = {}
    for split in ("train", "test"):
        for encoded, label in source.in_order(split).as_numpy_iterator():
            seen[int(augmentation.decode(tf.constant(encoded))[0, 0, 0])] = int(label)
    assert seen == {number: number % 2 for number in range(len(ODD) + 2)}


def folder_of_file(folder):
    (folder / "x").write_text("")
    return folder / "x"


WRONG_FOLDERS = {
    "missing": (lambda folder: folder / "nowhere", "must be a folder .*Received: .*nowhere$"),
    "a file": (folder_of_file, "must be a folder"),
    "empty": (lambda folder: folder, "two classes or more. Received: none$"),
    "images without classes": (lambda folder: filled(folder, "1.png", "2.png"), "two classes or more. Received: none$"),
    "one class": (lambda folder: filled(folder, *of_class("a", 9)), "two classes or more. Received: a$"),
    "only hidden classes": (lambda folder: filled(folder, ".a/1.png", ".b/1.png"), "Received: none$"),
    "no test image": (
        lambda folder: filled(folder, *of_class("a", 4), *of_class("b", 4)),
        "no image for testing in it; .*one of ten",
    ),
    "no image": (lambda folder: filled(folder, "a/x.txt", "b/x.txt"), "no image for training"),
    "an empty class": (
        lambda folder: filled(folder, *of_class("a", 9), *of_class("c", 9), "b/x.txt"),
        "no image for training in the class 'b'",
    ),
    "train without test": (
        lambda folder: filled(folder, "train/a/1.png", "train/b/1.png"),
        "train holds classes, and there is no folder beside it of the test images: name it one of test, testing, val, ",
    ),
    "train beside another name": (
        lambda folder: filled(folder, "train/a/1.png", "train/b/1.png", "held_out/a/2.png"),
        "train holds classes, and there is no folder beside it of the test images: name it one of test, testing, val, ",
    ),
    "train beside another name, deeper": (
        lambda folder: filled(folder, "train/a/1/1.png", "train/b/1/1.png", "held_out/a/1/2.png"),
        "train holds classes, and there is no folder beside it of the test images: name it one of test, testing, val, ",
    ),
    "an empty class in train": (
        lambda folder: filled(folder, "train/a/1.png", "train/b/x.txt", "test/a/1.png"),
        "no image for training in the class 'b'",
    ),
    "nothing in test": (
        lambda folder: filled(folder, "train/a/1.png", "train/b/1.png", "test/x.png"),
        "no image for testing in it; images are [^,]*(, [^,]*){4} files$",
    ),
    "other classes in test": (
        lambda folder: filled(folder, "train/a/1.png", "train/b/1.png", "test/c/1.png"),
        "no image for testing|'c'",
    ),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_folder_that_cannot_be_trained_on_says_why(tmp_path, name):
    make, message = WRONG_FOLDERS[name]
    with pytest.raises(UserError, match=message):
        FolderSource(make(tmp_path))


def test_a_class_that_only_the_test_images_have_is_refused(tmp_path):
    filled(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png")
    with pytest.raises(UserError, match="'c'"):
        FolderSource(tmp_path)


# Looking at every image first


def with_images(folder, contents):
    """A folder of two classes that can be trained on, and files of these contents in the first."""
    filled(folder, *of_class("a", 9), *of_class("b", 9))
    for name, bytes_ in contents.items():
        (folder / "a" / name).write_bytes(bytes_)
    return folder


RGB = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def unusual():
    """Files that are whole, however they are made."""
    sixteen = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (9, 9), dtype=np.uint16))
    yield from ((f"{mode}.png", content("png", RGB.convert(mode))) for mode in ("L", "LA", "RGBA", "P", "1"))
    yield from ((f"{mode}.jpg", content("jpeg", RGB.convert(mode))) for mode in ("L", "CMYK", "YCbCr"))
    yield "progressive.jpeg", content("jpeg", RGB, progressive=True, quality=20)
    yield "16 bit.png", content("png", sixteen)
    yield "animated.gif", content("gif", RGB, save_all=True, append_images=[RGB.rotate(90), RGB.rotate(180)])
    yield "png by another name.jpg", content("png", RGB)
    for form, suffix in (("png", "png"), ("jpeg", "jpg"), ("gif", "gif"), ("bmp", "bmp")):
        yield f"one.{suffix}", content(form, RGB.resize((1, 1)))
        yield f"plain.{suffix}", content(form, RGB)
        yield f"tall.{suffix}", content(form, RGB.resize((1, 700)))


def broken():
    for form, suffix in (("png", "png"), ("jpeg", "jpg"), ("gif", "gif"), ("bmp", "bmp")):
        whole = content(form, RGB)
        yield f"half.{suffix}", whole[: len(whole) // 2]
        yield f"head.{suffix}", whole[:10]
        yield f"zeros.{suffix}", bytes(len(whole))
    yield "last bytes.jpg", content("jpeg", RGB)[:-20]
    yield "last bytes.png", content("png", RGB)[:-20]
    whole = content("png", RGB)
    middle = len(whole) // 2
    yield "checksum.png", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    yield "empty.png", b""
    yield "text.jpg", b"not an image\n"
    yield "page.jpg", b"<html><body>404</body></html>"
    yield "tiff.png", content("tiff", RGB)
    yield "no pixels.png", picture_header(0)
    yield "pixels beyond all memory.png", picture_header(2**31 - 1)


def picture_header(side):
    """A PNG of side x side pixels whose pixels are missing."""

    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_unusual_images_are_no_broken_ones(tmp_path):
    source = FolderSource(with_images(tmp_path, dict(unusual())))
    assert len(source.files["train"]) + len(source.files["test"]) == 18 + len(dict(unusual()))
    source.check()


@pytest.mark.parametrize("name", dict(broken()))
def test_a_broken_image_is_named(tmp_path, name):
    source = FolderSource(with_images(tmp_path, {name: dict(broken())[name]}))
    with pytest.raises(UserError, match=f"^1 of 19 images cannot be decoded; .*: {tmp_path}/a/{re.escape(name)}$"):
        source.check()


def test_many_broken_images_are_counted_and_the_first_named(tmp_path):
    filled(tmp_path, *(f"{split}/{label}/0.png" for split in ("train", "test") for label in "ab"))
    for number in range(1, 5):
        (tmp_path / "train" / "b" / f"{number}.png").write_bytes(b"")
        (tmp_path / "test" / "a" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        FolderSource(tmp_path).check()
    names = [f"train/b/{number}.png" for number in range(1, 5)] + ["test/a/1.png"]
    some = ", ".join(str(tmp_path / name) for name in names)
    assert str(error.value) == f"8 of 12 images cannot be decoded; mend or remove them: {some}, ..."


def test_only_what_is_to_be_read_is_checked(tmp_path):
    filled(tmp_path, *(f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(4)))
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"")
    source = FolderSource(tmp_path)
    source.check("test")
    source.check("train", 2)  # of eight the third and the seventh
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"")
    for split, some in (("train", None), ("all", None)):
        with pytest.raises(UserError, match="^2 of "):
            source.check(split, some)
    with pytest.raises(UserError, match="^1 of 2 images"):
        source.check("train", 2)


def test_a_file_that_went_away_is_named(tmp_path):
    source = FolderSource(with_images(tmp_path, {}))
    (tmp_path / "b" / "03.png").unlink()
    with pytest.raises(UserError, match=r"1 of 18 images .*/b/03\.png$"):
        source.check()


def test_a_bmp_of_a_palette_is_named(tmp_path):
    image = RGB.resize((40, 40)).convert("P")
    source = FolderSource(with_images(tmp_path, {"palette.bmp": content("bmp", image)}))
    with pytest.raises(UserError, match=r"palette\.bmp"):
        source.check()


# The rows of a folder


def test_rows_in_order_are_the_files_and_their_classes(tmp_path):
    source = FolderSource(with_images(tmp_path, dict(unusual())))
    for split in ("train", "test"):
        rows = list(source.in_order(split).as_numpy_iterator())
        assert [(bytes_, label) for bytes_, label in rows] == [
            (path.read_bytes(), label) for path, label in source.files[split]
        ]
        assert rows[0][1].dtype == np.int32


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 30, 64, 1000])
def test_some_rows_lie_evenly_among_all(rows):
    for count in {1, 2, 3, rows // 2 or 1, rows, rows + 1}:
        numbers = sources.spread(count, rows)
        few = min(count, rows)
        assert sorted(numbers) == [(2 * place + 1) * rows // (2 * few) for place in range(few)]
    numbers = sources.spread(rows, rows)
    for first in (2, 4, 8, 16):
        if rows >= first:  # no gap is wider than twice the mean, and one row
            gaps = np.diff([-1, *sorted(numbers[:first]), rows])
            assert gaps.max() <= 2 * rows / first + 1


def test_some_rows_of_a_folder_are_of_every_class(tmp_path):
    source = FolderSource(filled(tmp_path, *of_class("a", 30), *of_class("b", 30), *of_class("c", 60)))
    for split in ("train", "test"):
        labels = [int(label) for _, label in source.some(split, 4).as_numpy_iterator()]
        assert sorted(labels) == [0, 1, 2, 2] and len(set(labels[:2])) == 2
    assert len(list(source.some("test", 1000))) == source.sizes["test"] == 12


# Data sets of tensorflow-datasets that no table knows


def store(folder, name, features, **splits):
    """Writes a data set as tensorflow-datasets does; each split is a list of rows."""
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: list(enumerate(rows)) for split, rows in splits.items()},
        data_dir=folder,
    )
    return folder


def features_of(*shape, **options):
    return {
        "image": tfds.features.Image(shape=shape, **options),
        "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
    }


def rows_of(count, *shape, first=0):
    """Images of one colour each, its number."""
    return [{"image": np.full(shape, first + n, np.uint8), "label": n % 3} for n in range(count)]


def numbers(source, split):
    """The colours of the images of a split, and that each has its label."""
    found = []
    for encoded, label in source.in_order(split).as_numpy_iterator():
        found.append(int(tf.io.decode_image(encoded)[0, 0, 0]))
        assert int(label) == found[-1] % 3
    return sorted(found)


def test_images_of_one_size_are_kept_in_memory(tmp_path):
    folder = store(
        tmp_path, "letters", features_of(6, 5, 1), train=rows_of(21, 6, 5, 1), test=rows_of(6, 6, 5, 1, first=60)
    )
    source = open_source("letters", folder)
    assert (source.streamed, source.image_shape, source.labels) == (False, (6, 5, 1), ["ant", "bee", "cat"])
    assert source.info[:3] == ("letters", 3, (6, 5, 1))
    assert source.sizes == {"train": 21, "test": 6}
    images, labels = source.arrays("train")
    assert (images.shape, images.dtype, labels.dtype) == ((21, 6, 5, 1), np.uint8, np.int32)
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(21))
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)
    assert sorted(source.arrays("test")[0][:, 5, 4, 0].tolist()) == list(range(60, 66))
    source.check()


def test_images_of_any_size_or_too_many_for_memory_are_streamed(tmp_path, monkeypatch):
    rows = [{"image": np.full((4 + n, 9, 3), n, np.uint8), "label": n % 3} for n in range(20)]
    store(tmp_path, "sizes", features_of(None, None, 3), train=rows, test=rows[:4])
    source = open_source("sizes", tmp_path)
    assert source.streamed and source.sizes == {"train": 20, "test": 4} and source.info.input_shape == (0, 0, 3)
    assert (numbers(source, "train"), numbers(source, "test")) == (list(range(20)), [0, 1, 2, 3])

    store(tmp_path, "letters", features_of(6, 5, 1), train=rows_of(21, 6, 5, 1), test=rows_of(6, 6, 5, 1))
    monkeypatch.setattr(sources, "IN_MEMORY", 21 * 6 * 5)
    assert not open_source("letters", tmp_path).streamed
    monkeypatch.setattr(sources, "IN_MEMORY", 21 * 6 * 5 - 1)
    source = open_source("letters", tmp_path)
    assert source.streamed and numbers(source, "train") == list(range(21))


def test_a_split_for_testing_is_found_or_cut_off(tmp_path):
    features, train, other = features_of(4, 4, 3), rows_of(40, 4, 4, 3), rows_of(5, 4, 4, 3, first=90)
    store(tmp_path, "with_validation", features, train=train, validation=other)
    store(tmp_path, "with_both", features, train=train, test=other[:3], validation=other)
    store(tmp_path, "with_none", features, train=train)
    assert numbers(open_source("with_validation", tmp_path), "test") == [90, 91, 92, 93, 94]
    assert numbers(open_source("with_both", tmp_path), "test") == [90, 91, 92]
    secret = [{**row, "label": -1} for row in other]
    store(tmp_path, "with_a_secret_test", features, train=train, test=secret, validation=other[:2])
    store(tmp_path, "with_a_secret_test_alone", features, train=train, test=secret)
    assert numbers(open_source("with_a_secret_test", tmp_path), "test") == [90, 91]
    assert open_source("with_a_secret_test_alone", tmp_path).sizes == {"train": 36, "test": 4}
    source = open_source("with_none", tmp_path)
    assert source.sizes == {"train": 36, "test": 4}
    assert sorted(numbers(source, "train") + numbers(source, "test")) == list(range(40))
    assert len(source.arrays("test")[1]) == 4


def strip(rows, *kept):
    return [{name: row[name] for name in kept} for row in rows]


def test_data_that_is_no_labelled_images_is_refused(tmp_path):
    features, rows = features_of(4, 4, 3), rows_of(9, 4, 4, 3)
    store(tmp_path, "no_label", {"image": features["image"]}, train=strip(rows, "image"))
    store(tmp_path, "no_image", {"label": features["label"]}, train=strip(rows, "label"))
    store(tmp_path, "a_number", {**features, "label": tfds.features.Scalar(np.int64)}, train=rows)
    store(tmp_path, "no_train", features, test=rows)
    deep = [{**row, "image": row["image"].astype(np.uint16) * 256} for row in rows]
    store(tmp_path, "sixteen_bits", features_of(4, 4, 3, dtype=np.uint16), train=deep)
    for name in ("no_label", "no_image", "a_number"):
        with pytest.raises(UserError, match=f"^{name} has no `image` with a class `label`. Received: "):
            open_source(name, tmp_path)
    with pytest.raises(UserError, match="^no_train has no split `train`. Received: test$"):
        open_source("no_train", tmp_path)
    with pytest.raises(UserError, match="uint16"):
        open_source("sixteen_bits", tmp_path)


@pytest.mark.parametrize(
    "name", ["", " ", "nope", "nope/config", "two words", "../x", "nope:1.0.0", "größe", "5", "x" * 300]
)
def test_a_name_that_nobody_knows_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="data set"):
        open_source(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_failure_made_goes_and_one_of_before_stays(tmp_path):
    (tmp_path / "kept").mkdir()
    for folder in (tmp_path / "new" / "folder", tmp_path / "kept"):
        with pytest.raises(UserError, match="mini_imagenet is not in .* and could not be prepared there"):
            open_source("mini_imagenet", folder)
    assert not (tmp_path / "new" / "folder").exists() and (tmp_path / "kept").is_dir()


def test_our_own_data_sets_need_no_special_name(digits_dir):
    datasets.register()
    assert open_source("optical_digits", digits_dir).sizes == {"train": 1437, "test": 360}
    assert open_source("optical_digits:1.0.0", digits_dir).sizes == {"train": 1437, "test": 360}
    with pytest.raises(UserError, match="optical_digits:9.9.9"):
        open_source("optical_digits:9.9.9", digits_dir)


# Where data sets are


def test_the_folder_of_tensorflow_datasets_is_the_users(digits_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    assert open_source("optical_digits").builder.data_path.parents[1] == digits_dir
    assert not list(tmp_path.iterdir())
    shutil.copytree(digits_dir / "optical_digits", tmp_path / "tensorflow_datasets" / "optical_digits")
    for of_user in (tmp_path / "empty", "gs://bucket"):  # where it was before the variable counted
        monkeypatch.setenv("TFDS_DATA_DIR", str(of_user))
        assert open_source("optical_digits").builder.data_path.parents[1] == tmp_path / "tensorflow_datasets"


def test_a_cloud_of_the_users_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket")
    with pytest.raises(UserError, match="Received: TFDS_DATA_DIR=gs://bucket; copy or mount it"):
        open_source("optical_digits")


def test_a_version_may_be_named(run_python, tmp_path):
    code = "import sys; from gated_resnext.sources import open_source; print(open_source(*sys.argv[1:]).sizes)"
    done = run_python("-c", code, "optical_digits:1.0.0", tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("{'train': 1437, 'test': 360}\n"), done.stderr[-2000:]


@pytest.mark.parametrize("folder", ["gs://bucket/tfds", "s3://bucket"])
def test_a_folder_of_a_cloud_is_refused(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"read from a folder of this machine. Received: {folder}; copy or mount it"):
        open_source("optical_digits", folder)
    assert not list(tmp_path.iterdir())


def test_without_a_home_folder_one_is_asked_for(monkeypatch):
    def nowhere(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(pathlib.Path, "expanduser", nowhere)
    with pytest.raises(UserError, match="there is no home folder here: say where data sets are, by --data_dir=FOLDER"):
        open_source("optical_digits")


def test_two_that_prepare_a_data_set_at_once_both_have_it(digits_dir, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from gated_resnext import datasets

    datasets.register()
    kind = type(tfds.builder("optical_digits", data_dir=digits_dir))

    def late(self, **options):
        shutil.copytree(digits_dir / "optical_digits", tmp_path / "optical_digits")  # the other one
        raise FileExistsError("Cannot rename: Destination already exists.")

    monkeypatch.setattr(kind, "download_and_prepare", late)
    assert open_source("optical_digits", tmp_path).sizes == {"train": 1437, "test": 360}


def test_a_builder_of_ones_own_may_have_the_name_of_another(run_python, digits_dir):
    code = """
import sys
import tensorflow_datasets as tfds
from gated_resnext.sources import open_source

class MiniImagenet(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self): ...
    def _split_generators(self, manager): ...
    def _generate_examples(self): ...

print(open_source("optical_digits", sys.argv[1]).sizes)
"""
    done = run_python("-c", code, digits_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "{'train': 1437, 'test': 360}\n"
