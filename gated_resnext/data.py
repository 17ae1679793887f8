"""Images of a data set as batches: a recipe and a split in, tf.data out.

Every training batch is a function of (seed, step) alone, so that a run that resumes at a step sees what an
uninterrupted one would. Images stay uint8; the network standardises them.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import textwrap
from typing import Any

import numpy as np
import tensorflow as tf

from gated_resnext import datasets
from gated_resnext.datasets.table import DATASETS, DatasetInfo
from gated_resnext.errors import UserError
from gated_resnext.preprocessing import central_crop, decode
from gated_resnext.recipes import Recipe

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
SHUFFLE_BUFFER = 10_000
MEAN_IMAGES = 10_000


def open_builder(info: DatasetInfo, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """The data set's tfds builder, prepared.

    Args:
        info: which one.
        data_dir: folder of tensorflow-datasets; None for `DEFAULT_DATA_DIR`.

    Raises:
        UserError: if the data is not there and cannot be fetched, saying where it was looked for.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = min(downloader.MAX_RETRIES, 3)  # its 10 take 3.5 minutes to say that there is no network
    tfds.disable_progress_bar()
    datasets.register()
    folder = pathlib.Path(data_dir or DEFAULT_DATA_DIR).expanduser()
    existed = folder.exists()
    try:
        builder = tfds.builder(info.name, data_dir=folder, try_gcs=False)
        builder.download_and_prepare()
    except Exception as error:  # tfds raises whatever the network, the disk or a manual folder made it raise
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and info.name == "optical_digits":
            raise
        reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
        raise UserError(
            f"the data set {info.name} is not in {folder} and could not be prepared there ({reason}): "
            f"{info.how}, or give --data_dir=FOLDER, the folder that holds {info.name}/<version>"
        ) from error
    return builder


class Images:
    """The images of one data set, prepared as a recipe says.

    Args:
        name: a key of `DATASETS`.
        recipe: batch size and augmentation.
        data_dir: folder of tensorflow-datasets.

    Raises:
        UserError: if the data set is unknown, not there, or smaller than a batch.

    Example:

    >>> from gated_resnext.recipes import RECIPES
    >>> digits = Images("optical_digits", RECIPES["digits"])
    >>> images, labels = next(iter(digits.train(seed=0, first_step=0, steps=1)))
    >>> images.shape
    TensorShape([64, 8, 8, 1])
    """

    def __init__(self, name: str, recipe: Recipe, data_dir: str | os.PathLike[str] | None = None) -> None:
        if name not in DATASETS:
            raise UserError(f"the data set must be one of {', '.join(DATASETS)}. Received: {name!r}")
        self.info, self.recipe = DATASETS[name], recipe
        self.builder = open_builder(self.info, data_dir)
        self.size = self.builder.info.splits["train"].num_examples
        self.labels: list[str] = list(self.builder.info.features["label"].names)
        if self.size < recipe.batch_size:
            raise UserError(f"{name} has {self.size} training images, fewer than the batch of {recipe.batch_size}")
        wanted = "resized" if self.info.streamed else "pad"
        if recipe.crop != wanted:
            raise UserError(f"{name} is trained on crops of the kind {wanted!r}. Received: a recipe of {recipe.crop!r}")
        self._arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Number of test images."""
        return int(self.builder.info.splits[self.info.test_split].num_examples)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training images."""
        return int(self.size // self.recipe.batch_size)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels of "train" or "test", in the data set's own size and order; kept in memory."""
        import tensorflow_datasets as tfds

        if split not in self._arrays:
            source = self.info.test_split if split == "test" else split
            rows = tfds.as_numpy(self.builder.as_dataset(split=source, batch_size=-1))
            self._arrays[split] = rows["image"], rows["label"].astype(np.int32)
        return self._arrays[split]

    def train(self, *, seed: int, first_step: int, steps: int) -> tf.data.Dataset:
        """Batches `first_step` to `first_step + steps` of the endless shuffled, augmented sequence of this seed."""
        if self.info.streamed:
            return self._streamed(seed, first_step, steps)
        images, labels = map(tf.constant, self.arrays("train"))
        batch, per_epoch, last = self.recipe.batch_size, self.steps_per_epoch, self.size - 1
        fill = np.rint(self.mean_image().mean((0, 1)))

        def at(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            epoch, place = step // per_epoch, step % per_epoch
            index = tf.random.experimental.index_shuffle(
                place * batch + tf.range(batch, dtype=tf.int64), tf.stack([tf.cast(seed, tf.int64), epoch]), last
            )
            chosen = augment(tf.gather(images, index), self.recipe, self.info.input_shape, fill, seed=(seed, step))
            return chosen, tf.gather(labels, index)

        sequence = tf.data.Dataset.range(first_step, first_step + steps)
        return sequence.map(at, num_parallel_calls=2, deterministic=True).prefetch(2)

    def _streamed(self, seed: int, first_step: int, steps: int) -> tf.data.Dataset:
        """The same from files, for a data set that memory does not hold."""
        encoded, batch, per_epoch = self._encoded("train"), self.recipe.batch_size, self.steps_per_epoch

        def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
            shuffled = encoded.shuffle(SHUFFLE_BUFFER, seed=tf.cast(seed, tf.int64) * 100_003 + epoch)
            return shuffled.take(per_epoch * batch).enumerate(epoch * per_epoch * batch)

        def prepared(number: tf.Tensor, row: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            cropped = random_resized_crop(
                row["image"], self.info.input_shape, flip=self.recipe.flip, seed=(seed, number)
            )
            return cropped, tf.cast(row["label"], tf.int32)

        first_epoch, skipped = divmod(first_step, per_epoch)
        epochs = tf.data.Dataset.range(first_epoch, first_epoch + steps // per_epoch + 2)
        rows = epochs.flat_map(epoch_of).skip(skipped * batch).take(steps * batch)
        rows = rows.map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return rows.batch(batch, drop_remainder=True).prefetch(2)

    def test(self, batch_size: int | None = None) -> tf.data.Dataset:
        """All test images once, in order, cropped at the centre."""
        return self._plain("test").batch(batch_size or self.recipe.batch_size).prefetch(2)

    def test_batch(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` test images and their labels, as arrays."""
        images, labels = next(iter(self.test(count)))
        return images.numpy(), labels.numpy()

    def samples(self, count: int) -> np.ndarray:
        """The first `count` training images, cropped as test images are."""
        images, _ = next(iter(self._plain("train").batch(count)))
        return images.numpy()

    def pictures(self, count: int) -> list[bytes]:
        """The first `count` test images as picture files of the data set's own size, before any crop."""
        if self.info.streamed:
            return [row["image"] for row in self._encoded("test").take(count).as_numpy_iterator()]
        return [tf.io.encode_png(image).numpy() for image in self.arrays("test")[0][:count]]

    def _plain(self, split: str) -> tf.data.Dataset:
        height, width, _ = self.info.input_shape
        if self.info.streamed:
            resize = self.recipe.test_resize

            def prepared(row: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
                return central_crop(decode(row["image"]), (height, width), resize), tf.cast(row["label"], tf.int32)

            return self._encoded(split).map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        images, labels = self.arrays(split)
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return tf.data.Dataset.from_tensor_slices((images[:, top : top + height, left : left + width], labels))

    def _encoded(self, split: str) -> tf.data.Dataset:
        import tensorflow_datasets as tfds

        source = self.info.test_split if split == "test" else split
        return self.builder.as_dataset(split=source, decoders={"image": tfds.decode.SkipDecoding()})

    def mean_image(self) -> np.ndarray:
        """Per-pixel mean of the centrally cropped training images, (height, width, channels) float32, 0 to 255.

        A streamed data set's is that of its first `MEAN_IMAGES` images.

        Reference:
            Appendix E.1 of the paper; docs/deviations.md, row 20.
        """
        if not hasattr(self, "_mean_image"):
            total, count = np.zeros(self.info.input_shape), 0
            rows = self._plain("train")
            for images, _ in (rows.take(MEAN_IMAGES) if self.info.streamed else rows).batch(1000):
                total += images.numpy().sum(0, dtype=np.float64)
                count += len(images)
            self._mean_image = (total / count).astype(np.float32)
        return self._mean_image


def augment(
    images: tf.Tensor,
    recipe: Recipe,
    shape: tuple[int, int, int],
    fill: np.ndarray,
    *,
    seed: tuple[Any, Any],
) -> tf.Tensor:
    """Random crops of the padded images or of their mirror images, a whole batch at a time.

    Args:
        images: (batch, H, W, channels) uint8.
        recipe: padding and mirroring.
        shape: (height, width, channels) of the crop.
        fill: pixel of the padding, (channels,): the mean, which the network turns to zero.
        seed: the result is a function of it.

    Returns:
        (batch, height, width, channels) uint8.

    Reference:
        Appendices E.1 and E.3 of the paper; docs/deviations.md, row 19.
    """
    (height, width, _), pad = shape, recipe.pad
    fill = tf.cast(fill, images.dtype)
    padded = tf.pad(images - fill, ((0, 0), (pad, pad), (pad, pad), (0, 0))) + fill  # uint8 wraps around and back
    count, rows, columns = tf.shape(padded)[0], int(padded.shape[1]), int(padded.shape[2])
    draws = tf.random.stateless_uniform((3, count), tf.cast(tf.stack(seed), tf.int32))
    top, left = (
        tf.cast(tf.floor(draw * (free + 1)), tf.int32)
        for draw, free in ((draws[0], rows - height), (draws[1], columns - width))
    )
    across = tf.range(width)[None]
    if recipe.flip:
        across = tf.where(draws[2][:, None] < 0.5, across, width - 1 - across)
    cropped = tf.gather(padded, top[:, None] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(cropped, left[:, None] + across, axis=2, batch_dims=1)


def random_resized_crop(
    encoded: tf.Tensor, shape: tuple[int, int, int], *, flip: bool = True, seed: tuple[Any, Any]
) -> tf.Tensor:
    """A crop of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, resized, half of them mirrored.

    Reference:
        Szegedy et al., "Going Deeper with Convolutions", section 6; Xie et al. (2017), section 4.
    """
    image = decode(encoded)
    key = tf.cast(tf.stack([tf.cast(part, tf.int64) for part in seed]), tf.int32)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((1, 0, 4)),
        seed=key,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, size), shape[:2], antialias=True)
    if flip:
        image = tf.image.stateless_random_flip_left_right(image, key + 1)
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
