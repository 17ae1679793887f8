"""Where images come from: a data set of tensorflow-datasets, or a folder of one's own."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gated_resnext import datasets, preprocessing
from gated_resnext.datasets.table import DATASETS, FOLDER, DatasetInfo
from gated_resnext.errors import UserError, shortened

Mine = Callable[[tf.Tensor], tf.Tensor]
DEFAULT_DATA_DIR = "~/tensorflow_datasets"
SHUFFLE_BUFFER = 10_000
# Images of one size are kept in memory up to so many bytes.
IN_MEMORY = 4 << 30
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
# What the folders of training and of test images may be called, in any case of the letters.
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
# Where a folder has no test images of its own: of every ten of a class, in order, one is for testing.
TEST_OF_TEN = 4


def open_source(
    name: str, data_dir: str | os.PathLike[str] | None = None, limit: int | None = None
) -> TfdsSource | FolderSource:
    """The source of a name.

    Args:
        name: a key of `DATASETS`, any other name that tensorflow-datasets knows, or "folder:PATH".
        data_dir: folder of tensorflow-datasets; None for that of `TFDS_DATA_DIR`, or else `DEFAULT_DATA_DIR`.
        limit: of the training images, only the first so many; None for all. The test images are never cut.

    Raises:
        UserError: if it is not there, cannot be fetched, holds no labelled images, or fewer than `limit`.
    """
    if name.startswith(FOLDER):
        if limit is not None:
            raise UserError("the first images of a folder are all of one class: a limit needs a data set by name")
        return FolderSource(name.removeprefix(FOLDER))
    if name in DATASETS:
        source = TfdsSource(DATASETS[name], _builder(DATASETS[name], data_dir))
    else:
        info = DatasetInfo(name, 0, (0, 0, 0), "")
        source = TfdsSource.of_any(info, _builder(info, data_dir))
    if limit is not None:
        source.keep_first(limit)
    return source


def _builder(info: DatasetInfo, data_dir: str | os.PathLike[str] | None) -> Any:
    """The data set's tfds builder, prepared."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = min(downloader.MAX_RETRIES, 3)  # its 10 take 3.5 minutes to say that there is no network
    tfds.disable_progress_bar()
    datasets.register(info.name)
    folder = _folder(data_dir, re.split("[:/]", info.name)[0])
    existed = folder.exists()
    try:
        builder = tfds.builder(info.name, data_dir=folder, try_gcs=False)
        try:
            builder.download_and_prepare()
        except FileExistsError:  # another process prepared it meanwhile
            builder = tfds.builder(info.name, data_dir=folder, try_gcs=False)
            if not builder.data_path.exists():
                raise
    except tfds.core.load.registered.DatasetNotFoundError:
        known = ", ".join(DATASETS)
        raise UserError(
            f"there is no data set {info.name!r} in {folder} or tensorflow-datasets; well known here are {known}"
        ) from None
    except Exception as error:  # tfds raises whatever the network, the disk or a manual folder made it raise
        if not existed:
            _remove_empty(folder)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full and info.name == "optical_digits":
            raise
        reason = shortened(error)
        raise UserError(
            f"the data set {info.name} is not in {folder} and could not be prepared there ({reason}): "
            f"{info.how}, or give --data_dir=FOLDER, the folder that holds {info.name}/<version>"
        ) from error
    return builder


def _folder(data_dir: str | os.PathLike[str] | None, name: str) -> pathlib.Path:
    """The given one; else that of `TFDS_DATA_DIR`, or the one in the user's home, where the data set may be already."""
    of_user = os.environ.get("TFDS_DATA_DIR")
    chosen = data_dir or of_user or DEFAULT_DATA_DIR
    try:
        folder, at_home = pathlib.Path(chosen).expanduser(), pathlib.Path(DEFAULT_DATA_DIR).expanduser()
    except RuntimeError:
        if data_dir or of_user:
            return pathlib.Path(chosen)
        raise UserError("there is no home folder here: say where data sets are, by --data_dir=FOLDER") from None
    if not data_dir and (at_home / name).is_dir() and not (folder / name).is_dir():
        return at_home
    if "://" in str(chosen):
        told = "" if data_dir else "TFDS_DATA_DIR="
        raise UserError(f"data sets are read from a folder of this machine. Received: {told}{chosen}; copy or mount it")
    return folder


def _remove_empty(folder: pathlib.Path) -> None:
    """The folders in a folder, and itself, that hold no file; what was downloaded stays."""
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _labelled(builder: Any, split: str) -> bool:
    """Whether a split says the classes of its images: that of a competition gives all of them the label -1."""
    import tensorflow_datasets as tfds

    rows = builder.as_dataset(split=f"{split}[:1]", decoders={"image": tfds.decode.SkipDecoding()})
    return all(int(row["label"]) >= 0 for row in rows.as_numpy_iterator())


class TfdsSource:
    """A data set of tensorflow-datasets with `image` and `label`.

    Args:
        info: what is known of it; `info.streamed` tells whether memory holds it.
        builder: its tfds builder, prepared.
        splits: tfds' names of "train" and "test".
    """

    def __init__(self, info: DatasetInfo, builder: Any, splits: dict[str, str] | None = None) -> None:
        self.info, self.builder = info, builder
        self.left_alone = ""  # tensorflow-datasets' own files
        self.splits = splits or {"train": "train", "test": info.test_split}
        self.streamed = info.streamed
        self.labels: list[str] = list(builder.info.features["label"].names)
        self.image_shape: tuple[int, ...] = builder.info.features["image"].shape
        self.sizes = {split: int(builder.info.splits[name].num_examples) for split, name in self.splits.items()}

    def digest(self) -> str:
        """Tells other images apart, as far as tensorflow-datasets does."""
        return f"{self.builder.info.full_name}, {self.sizes}"

    def digests(self) -> tuple[str, ...]:
        """The digest alone: it has been the same in every version."""
        return (self.digest(),)

    @classmethod
    def of_any(cls, info: DatasetInfo, builder: Any) -> TfdsSource:
        """A data set that no table knows: its shape and splits are read off tfds' description."""
        import tensorflow_datasets as tfds

        features, splits = builder.info.features, builder.info.splits
        if not (
            isinstance(features, tfds.features.FeaturesDict)
            and {"image", "label"} <= set(features)
            and isinstance(features["image"], tfds.features.Image)
            and isinstance(features["label"], tfds.features.ClassLabel)
        ):
            raise UserError(
                f"{info.name} has no `image` with a class `label`. Received: {features!r}".replace("\n", " ")
            )
        if features["image"].np_dtype != np.uint8:
            raise UserError(f"the images of {info.name} must be uint8. Received: {features['image'].np_dtype}")
        if "train" not in splits:
            raise UserError(f"{info.name} has no split `train`. Received: {', '.join(splits)}")
        shape = features["image"].shape
        test = next((name for name in ("test", "validation") if name in splits and _labelled(builder, name)), None)
        names = {"train": "train", "test": test} if test else {"train": "train[:90%]", "test": "train[90%:]"}
        known = None not in shape
        size = splits["train"].num_examples * int(np.prod(shape)) if known else 0
        info = info._replace(
            classes=features["label"].num_classes,
            input_shape=(shape[0] or 0, shape[1] or 0, shape[2] or 0),
            streamed=not known or size > IN_MEMORY,
        )
        return cls(info, builder, names)

    def keep_first(self, limit: int) -> None:
        """Cuts the training images to the first so many, in the order that tensorflow-datasets numbers them in."""
        if not 1 <= limit <= self.sizes["train"]:
            raise UserError(
                f"limit must be between 1 and the {self.sizes['train']:,} training images of {self.info.name}. "
                f"Received: {limit}"
            )
        self.splits["train"] = f"{self.splits['train'].split('[')[0]}[:{limit}]"
        self.sizes["train"] = limit

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8, and labels, int32, of a split."""
        import tensorflow_datasets as tfds

        rows = tfds.as_numpy(self.builder.as_dataset(split=self.splits[split], batch_size=-1))
        return rows["image"], rows["label"].astype(np.int32)

    def in_order(self, split: str) -> tf.data.Dataset:
        """Encoded image and label of each row."""
        import tensorflow_datasets as tfds

        rows = self.builder.as_dataset(split=self.splits[split], decoders={"image": tfds.decode.SkipDecoding()})
        return rows.map(lambda row: (row["image"], tf.cast(row["label"], tf.int32)))

    def some(self, split: str, count: int) -> tf.data.Dataset:
        """Encoded image and label of `count` rows that stand for all: the first, as their order is mixed."""
        return self.in_order(split).take(count)

    def shuffled(self, seed: int, first: int, rows: int, per_epoch: int, mine: Mine) -> tf.data.Dataset:
        """Number, encoded image and label of rows `first` to `first + rows` of the endless shuffled sequence.

        Each epoch is `per_epoch` rows in another order; rows whose number is not `mine` are left out. To begin in the
        middle of an epoch is to read its rows before: seconds for what took training hours.
        """
        encoded = self.in_order("train")

        def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
            tf.random.set_seed(87654321)  # of this graph: else the program's own seed would be part of the order
            shuffled = encoded.shuffle(SHUFFLE_BUFFER, seed=tf.cast(seed, tf.int64) * 100_003 + epoch)
            return shuffled.take(per_epoch).enumerate(epoch * per_epoch)

        epoch, skipped = divmod(first, per_epoch)
        epochs = tf.data.Dataset.range(epoch, epoch + rows // per_epoch + 2)
        sequence = epochs.flat_map(epoch_of).skip(skipped).take(rows)
        sequence = sequence.filter(lambda number, row: mine(number))
        return sequence.map(lambda number, row: (number, *row))

    def check(self, split: str = "all", count: int | None = None) -> None:
        """Nothing to find: tensorflow-datasets checked it when it was prepared."""


class FolderSource:
    """Images in a folder with a sub-folder for each class, or with such folders in `train` and `test` (or `val`).

    Args:
        path: the folder.

    Raises:
        UserError: if it is not there, or has fewer than two classes, or no image for training or for testing.
    """

    streamed = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(
                f"the path of the images must be a folder with a sub-folder for each class. Received: {self.path}"
            )
        self.unread: list[str] = []
        roots = self._roots()
        self.labels = sorted(
            entry.name for entry in roots["train"].iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        if len(self.labels) < 2:
            raise UserError(
                f"{roots['train']} must have a sub-folder for each of two classes or more. Received: "
                f"{', '.join(self.labels) or 'none'}"
            )
        if "test" in roots:
            unknown = sorted(e.name for e in roots["test"].iterdir() if e.is_dir() and not e.name.startswith("."))
            unknown = [name for name in unknown if name not in self.labels]
            if unknown:
                raise UserError(f"{roots['test']} has a class that {roots['train']} has not: {unknown[0]!r}")
        self.others: collections.Counter[str] = collections.Counter()
        self.files = {split: self._rows(root) for split, root in roots.items()}
        if "test" not in self.files:
            self.files = self._divided(self.files["train"])
        self.sizes = {split: len(rows) for split, rows in self.files.items()}
        for split, rows in self.files.items():
            missing = set(range(len(self.labels))) - {label for _, label in rows}
            if not rows or (split == "train" and missing):
                empty = f"the class {self.labels[min(missing)]!r}" if rows else "it"
                raise UserError(
                    f"{self.path} has no image for {split}ing in {empty}; images are {', '.join(SUFFIXES)} files"
                    + ("" if "test" in roots else ", one of ten for testing")
                )
        self.image_shape: tuple[int, ...] = ()
        self.info = DatasetInfo(FOLDER + str(self.path), len(self.labels), (0, 0, 3), "photos", streamed=True)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Not to be had: the images are of any size.

        Raises:
            UserError: always.
        """
        raise UserError("the images of a folder are of any size: Images.train and .test_batch give them prepared")

    def _roots(self) -> dict[str, pathlib.Path]:
        """The folders of the classes, of training and of test images; of training alone where both are to be drawn."""
        found = {entry.name.lower(): entry for entry in sorted(self.path.iterdir()) if entry.is_dir()}
        train, test = (next((found[name] for name in names if name in found), None) for names in (TRAIN, TEST))
        if train is None:
            return {"train": self.path}
        if test is not None:
            unread = [path.name for path in found.values() if path not in (train, test)]
            self.unread = [name for name in unread if not name.startswith(".")]
            return {"train": train, "test": test}
        classes = {path.name for path in train.iterdir() if path.is_dir()}
        same = any((other / name).is_dir() for other in found.values() if other != train for name in classes)
        if same or any(path.suffix.lower() in SUFFIXES for path in train.glob("*/*")):
            raise UserError(
                f"{train} holds classes, and there is no folder beside it of the test images: name it one of "
                f"{', '.join(TEST)}, or take {train} alone, of which one image of ten is for testing"
            )
        return {"train": self.path}  # then it is a class of that name

    def _rows(self, root: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        """File and class of each image, in order; files that are none are counted by their endings."""
        rows = []
        for number, label in enumerate(self.labels):
            for path in walked(root / label):
                if is_picture(path):
                    rows.append((path, number))
                else:
                    self.others[path.suffix or "without an ending"] += 1
        return rows

    @property
    def left_alone(self) -> str:
        """What in it is not read: folders beside those of training and testing, and by their endings files."""
        folders = [f"the folder {name}" for name in self.unread]
        return ", ".join([*folders, *(f"{count:,} {ending}" for ending, count in self.others.most_common(4))])

    def _divided(self, rows: Sequence[tuple[pathlib.Path, int]]) -> dict[str, list[tuple[pathlib.Path, int]]]:
        """One image of ten of every class for testing."""
        parts: dict[str, list[tuple[pathlib.Path, int]]] = {"train": [], "test": []}
        seen = [0] * len(self.labels)
        for row in rows:
            parts["test" if seen[row[1]] % 10 == TEST_OF_TEN else "train"].append(row)
            seen[row[1]] += 1
        return parts

    def in_order(self, split: str) -> tf.data.Dataset:
        """Encoded image and label of each file."""
        return self._read(self.files[split])

    def some(self, split: str, count: int) -> tf.data.Dataset:
        """The same of `count` files that stand for all, which are in the order of their classes."""
        return self._read(self._chosen(split, count))

    def _chosen(self, split: str, count: int | None) -> list[tuple[pathlib.Path, int]]:
        rows = [*self.files["train"], *self.files["test"]] if split == "all" else self.files[split]
        return rows if count is None else [rows[number] for number in spread(count, len(rows))]

    def _read(self, files: Sequence[tuple[pathlib.Path, int]]) -> tf.data.Dataset:
        paths, labels = _tensors(files)
        rows = tf.data.Dataset.from_tensor_slices((paths, labels))
        return rows.map(lambda path, label: (tf.io.read_file(path), label), num_parallel_calls=tf.data.AUTOTUNE)

    def shuffled(self, seed: int, first: int, rows: int, per_epoch: int, mine: Mine) -> tf.data.Dataset:
        """Number, encoded image and label of rows `first` to `first + rows` of the endless shuffled sequence.

        Each epoch is `per_epoch` rows in another order; rows whose number is not `mine` are left out.
        """
        paths, labels = _tensors(self.files["train"])

        def row(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            key = tf.stack([tf.cast(seed, tf.int64), number // per_epoch])
            index = tf.random.experimental.index_shuffle(number % per_epoch, key, self.sizes["train"] - 1)
            return number, tf.io.read_file(paths[index]), labels[index]

        return tf.data.Dataset.range(first, first + rows).filter(mine).map(row, num_parallel_calls=tf.data.AUTOTUNE)

    def digest(self) -> str:
        """Tells apart folders with other files, by their names and sizes."""
        return self.digests()[0]

    def digests(self) -> tuple[str, ...]:
        """That, and the one by names alone, by which a run of before 0.2.0 knows its images."""
        return self._digests

    @functools.cached_property
    def _digests(self) -> tuple[str, ...]:
        files = [(split, path) for split, rows in self.files.items() for path, _ in rows]
        names = [(split, path.relative_to(self.path).as_posix()) for split, path in files]
        sized = [(*name, path.stat().st_size) for name, (_, path) in zip(names, files, strict=True)]
        return tuple(
            hashlib.sha256(repr(each).encode("utf-8", "surrogateescape")).hexdigest() for each in (sized, names)
        )

    def check(self, split: str = "all", count: int | None = None) -> None:
        """Decodes every image once, so that a broken one is named before the training and not hours into it.

        Args:
            split: "train", "test" or "all".
            count: of those, the ones that `some` gives; None for all.

        Raises:
            UserError: if one cannot be decoded.
        """
        with concurrent.futures.ThreadPoolExecutor() as pool:
            paths = [path for path, _ in self._chosen(split, count)]
            broken = [path for path, whole in zip(paths, pool.map(_decodes, paths), strict=True) if not whole]
        if broken:
            some = ", ".join(str(path) for path in broken[:5]) + (", ..." if len(broken) > 5 else "")
            raise UserError(f"{len(broken)} of {len(paths)} images cannot be decoded; mend or remove them: {some}")


def walked(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files in a folder, however deep, without hidden ones: by the parts of their names, the same everywhere."""
    found = sorted((path.relative_to(folder).parts, path) for path in folder.rglob("*"))
    return [path for parts, path in found if not any(part.startswith(".") for part in parts) and path.is_file()]


def is_picture(path: pathlib.Path) -> bool:
    """Whether a file is called as one."""
    return path.suffix.lower() in SUFFIXES


def reader(prepared: preprocessing.Preprocessing) -> Callable[[pathlib.Path], np.ndarray | None]:
    """What reads a picture's pixels, (height, width, channels) uint8; None where it cannot be decoded."""
    shape = tf.TensorSpec((None, None, prepared.shape[2]), tf.uint8)
    with tf.device("CPU:0"):
        crop = tf.function(prepared.cropped, autograph=False).get_concrete_function(shape)

    def pixels(path: pathlib.Path) -> np.ndarray | None:
        with tf.device("CPU:0"):  # as the test images were
            image = _decoded(path, prepared.shape[2])
            return None if image is None else crop(image).numpy()

    return pixels


def spread(count: int, rows: int) -> list[int]:
    """`count` of the numbers below `rows`, or all: evenly spaced, and so are the first of them, however many.

    Example:

    >>> spread(4, 20)
    [2, 12, 7, 17]
    """
    count = min(count, rows)
    bits = max(1, (count - 1).bit_length())
    places = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [(2 * place + 1) * rows // (2 * count) for place in places if place < count]


def _tensors(files: Sequence[tuple[pathlib.Path, int]]) -> tuple[tf.Tensor, tf.Tensor]:
    paths, labels = zip(*files, strict=True)
    return tf.constant([os.fsencode(path) for path in paths]), tf.constant(labels, tf.int32)


def _decodes(path: pathlib.Path) -> bool:
    return _decoded(path) is not None


def _decoded(path: pathlib.Path, channels: int = 3) -> tf.Tensor | None:
    """(H, W, channels) uint8; None where it is no picture that TensorFlow reads."""
    try:
        content = path.read_bytes()
        if _has_colour_palette(content):
            return None
        image = preprocessing.decode(tf.constant(content), channels)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.ResourceExhaustedError, OSError):
        return None
    return image if tf.size(image) > 0 else None


def _has_colour_palette(content: bytes) -> bool:
    """Whether it is a BMP whose bytes are numbers of colours: TensorFlow takes them for grey levels."""
    if content[:2] != b"BM" or len(content) < 30 or int.from_bytes(content[28:30], "little") > 8:
        return False
    begin, end = 14 + int.from_bytes(content[14:18], "little"), int.from_bytes(content[10:14], "little")
    table = content[begin:end]
    palette = np.frombuffer(table[: len(table) // 4 * 4], np.uint8).reshape(-1, 4)[:, :3]
    return not np.array_equal(palette, np.arange(256, dtype=np.uint8)[: len(palette), None].repeat(3, 1))
