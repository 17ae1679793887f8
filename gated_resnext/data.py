"""Images of a data set as batches: a recipe and a split in, tf.data out.

Every training batch is a function of (seed, step) alone, so that a run that resumes at a step sees what an
uninterrupted one would. Images stay uint8; the network standardises them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gated_resnext.augmentation import augment, random_resized_crop
from gated_resnext.errors import UserError
from gated_resnext.preprocessing import Preprocessing, central_crop, decode
from gated_resnext.recipes import Recipe
from gated_resnext.sources import FolderSource, open_source

MEAN_IMAGES = 10_000
CACHED_BYTES = 1 << 30  # of the test images of a streamed data set that are kept, once they were decoded


class Shard(NamedTuple):
    """Which part of every batch a process feeds, and to how many replicas of its own.

    Part `part` of `parts` equal ones; its rows go to `replicas` devices in equal parts, one after another.
    """

    part: int = 0
    parts: int = 1
    replicas: int = 1

    def holds(self, number: tf.Tensor, batch: int) -> tf.Tensor:
        """Whether a row of the endless sequence of batches is of this part."""
        return tf.equal(number % batch // (batch // self.parts), self.part)

    def divided(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Batches of this part as batches for one replica each."""
        if self.replicas == 1:
            return batches

        def split(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(
                tf.reshape(tensor, (self.replicas, tf.shape(tensor)[0] // self.replicas, *tensor.shape[1:]))
                for tensor in tensors
            )

        return batches.map(split).unbatch()


WHOLE = Shard()


class Images:
    """The images of one data set, prepared as a recipe says.

    Args:
        name: what `sources.open_source` takes.
        recipe: batch size and augmentation.
        data_dir: folder of tensorflow-datasets.
        input_shape: (height, width, channels) that the network takes; None for the data set's own.
        limit: of the training images, only the first so many; None for all.

    Raises:
        UserError: if the data set is not there, smaller than a batch, or of another kind than the recipe's.

    Example:

    >>> from gated_resnext.recipes import RECIPES
    >>> digits = Images("optical_digits", RECIPES["digits"])
    >>> images, labels = next(iter(digits.train(seed=0, first_step=0, steps=1)))
    >>> images.shape
    TensorShape([64, 8, 8, 1])
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        data_dir: str | os.PathLike[str] | None = None,
        input_shape: tuple[int, int, int] | None = None,
        limit: int | None = None,
    ) -> None:
        self.recipe, self.source = recipe, open_source(name, data_dir, limit)
        self.info = self.source.info
        self.name = self.info.name
        self.input_shape = input_shape or self.info.input_shape
        if 0 in self.input_shape:
            raise UserError(f"the images of {name} are of several sizes: give input_shape=(height, width, channels)")
        self.size, self.labels = self.source.sizes["train"], self.source.labels
        recipe.check_enough(name, self.size)
        wanted = "resized" if self.source.streamed else "pad"
        if recipe.crop != wanted:
            raise UserError(f"{name} is trained on crops of the kind {wanted!r}. Received: a recipe of {recipe.crop!r}")
        if self.source.streamed and self.input_shape[2] not in (1, 3):
            raise UserError(f"photographs have 3 channels, or 1 if grey. Received: an input of {self.input_shape}")
        if not self.source.streamed and not self._fits():
            raise UserError(
                f"the images of {name} are {self.source.image_shape}, too small or of other channels for a network "
                f"that takes {self.input_shape}"
            )
        self._in_memory: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}

    def _fits(self) -> bool:
        """Whether the network's input can be cropped from the images."""
        height, width, channels = self.source.image_shape
        return channels == self.input_shape[2] and height >= self.input_shape[0] and width >= self.input_shape[1]

    def __len__(self) -> int:
        """Number of test images."""
        return self.source.sizes["test"]

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training images."""
        return int(self.size // self.recipe.batch_size)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels of "train" or "test", in the data set's own size and order; kept in memory.

        Raises:
            UserError: if it is a folder.
        """
        images, labels = self._tensors(split)
        return np.asarray(images), np.asarray(labels)

    def _tensors(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        """The same where they are kept: once, in the memory of the CPU, of which those arrays are views."""
        if split not in self._in_memory:
            with tf.device("CPU:0"):
                images, labels = self.source.arrays(split)
                self._in_memory[split] = tf.constant(images), tf.constant(labels)
        return self._in_memory[split]

    @property
    def left_alone(self) -> str:
        """What of a folder is not trained on, for people."""
        return self.source.left_alone

    def digest(self) -> str:
        """Tells other images apart."""
        return self.source.digest()

    def digests(self) -> tuple[str, ...]:
        """The digest, and what earlier versions had in its place."""
        return self.source.digests()

    def check(self, split: str = "all", count: int | None = None) -> None:
        """Finds that every image can be decoded, where nobody checked that before.

        Args:
            split: "train", "test" or "all".
            count: as many of them as `batches` is asked for; None for all.

        Raises:
            UserError: if one cannot.
        """
        self.source.check(split, count)

    def train(self, seed: int, first_step: int, steps: int, shard: Shard = WHOLE) -> tf.data.Dataset:
        """Batches `first_step` to `first_step + steps` of the endless shuffled, augmented sequence of this seed."""
        if self.source.streamed:
            return self._streamed(seed, first_step, steps, shard)
        images, labels = self._tensors("train")
        batch, per_epoch, last = self.recipe.batch_size, self.steps_per_epoch, self.size - 1
        fill = np.rint(self.mean_image().mean((0, 1)))
        rows = tf.range(batch, dtype=tf.int64)[shard.part * (batch // shard.parts) :][: batch // shard.parts]

        def at(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            epoch, place = step // per_epoch, step % per_epoch
            index = tf.random.experimental.index_shuffle(
                place * batch + rows, tf.stack([tf.cast(seed, tf.int64), epoch]), last
            )
            chosen = augment(
                tf.gather(images, index),
                self.recipe,
                self.input_shape,
                fill,
                seed=(seed, step),
                place=(shard.part, shard.parts),
            )
            return chosen, tf.gather(labels, index)

        sequence = tf.data.Dataset.range(first_step, first_step + steps)
        return shard.divided(sequence.map(at, num_parallel_calls=2, deterministic=True)).prefetch(2)

    def _streamed(self, seed: int, first_step: int, steps: int, shard: Shard) -> tf.data.Dataset:
        """The same from files, for a data set that memory does not hold."""
        batch = self.recipe.batch_size

        def prepared(number: tf.Tensor, encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return random_resized_crop(encoded, self.input_shape, flip=self.recipe.flip, seed=(seed, number)), label

        rows = self.source.shuffled(
            seed,
            first_step * batch,
            steps * batch,
            self.steps_per_epoch * batch,
            lambda number: shard.holds(number, batch),
        )
        rows = rows.map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return shard.divided(rows.batch(batch // shard.parts, drop_remainder=True)).prefetch(2)

    def test_shard(self, shard: Shard) -> tf.data.Dataset:
        """A part of the test images, as many batches for every replica; what is missing has the label -1."""
        batch, per_replica = self.recipe.batch_size, self.recipe.batch_size // (shard.parts * shard.replicas)
        rows = self._plain("test", None if shard.parts == 1 else lambda number: shard.holds(number, batch))
        rows = rows.batch(per_replica)
        empty = tf.zeros((0, *self.input_shape), tf.uint8), tf.zeros((0,), tf.int32)

        def filled(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            missing = per_replica - tf.shape(labels)[0]
            images = tf.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
            labels = tf.pad(labels, ((0, missing),), constant_values=-1)
            return tf.ensure_shape(images, (per_replica, *self.input_shape)), tf.ensure_shape(labels, (per_replica,))

        endless = rows.concatenate(tf.data.Dataset.from_tensors(empty).repeat()).map(filled)
        batches = endless.take(-(-len(self) // batch) * shard.replicas)
        if self.source.streamed and len(self) * math.prod(self.input_shape) <= CACHED_BYTES:
            batches = batches.cache()  # pictures are decoded once, not in every round
        return batches.prefetch(2)

    def in_order(self, split: str = "test", count: int | None = None, batch_size: int | None = None) -> tf.data.Dataset:
        """Images of "train", "test" or "all", once, in order, cropped at the centre, not augmented.

        Args:
            split: "all" is the training images and then the test images.
            count: how many, from the first, or of a folder evenly spaced ones; None for all.
            batch_size: None for the recipe's.
        """
        if count is not None and isinstance(self.source, FolderSource):  # in the order of its classes
            rows = self._prepared(self.source.some(split, count))
            return rows.batch(batch_size or self.recipe.batch_size).prefetch(2)
        first, *more = ("train", "test") if split == "all" else (split,)
        rows = self._plain(first)
        for other in more:
            rows = rows.concatenate(self._plain(other))
        if count is not None:
            rows = rows.take(count)
        return rows.batch(batch_size or self.recipe.batch_size).prefetch(2)

    def batches(self, split: str, count: int | None, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `in_order` gives, as arrays of so many images."""
        return self.in_order(split, count, batch_size).as_numpy_iterator()

    def count(self, split: str) -> int:
        """Number of images of "train", "test" or "all"."""
        return sum(self.source.sizes.values()) if split == "all" else self.source.sizes[split]

    def test_batch(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` test images and their labels, as arrays: the first, or of a folder evenly spaced ones."""
        return self._some("test", min(count, len(self)))

    def samples(self, count: int) -> np.ndarray:
        """`count` training images, cropped as test images are, chosen in the same way."""
        return self._some("train", min(count, self.size))[0]

    def pictures(self, count: int, of: int | None = None) -> list[bytes]:
        """The first `count` of `test_batch(of)` as picture files of the data set's own size, before any crop.

        Args:
            count: how many.
            of: None for `count`.
        """
        if self.source.streamed:
            rows = self.source.some("test", count if of is None else of).take(count)
            return [encoded for encoded, _ in rows.as_numpy_iterator()]
        return [tf.io.encode_png(image).numpy() for image in self.arrays("test")[0][:count]]

    def _some(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._prepared(self.source.some(split, count)) if self.source.streamed else self._plain(split)
        images, labels = next(iter(rows.batch(count)))
        return images.numpy(), labels.numpy()

    @property
    def preprocessing(self) -> Preprocessing:
        """From such a picture to the network's pixels."""
        whole = self.source.image_shape
        info = self.info if self.source.streamed else self.info._replace(picture_side=min(whole[:2]))
        return Preprocessing.of(self.input_shape, self.recipe, info)

    @property
    def resize(self) -> int:
        """Shorter side that such a picture has before its crop."""
        return self.preprocessing.resize

    def _plain(self, split: str, mine: Callable[[tf.Tensor], tf.Tensor] | None = None) -> tf.data.Dataset:
        """Images, cropped at the centre, and labels in order; of the rows whose number is `mine`."""
        height, width, _ = self.input_shape
        if self.source.streamed:
            rows = self.source.in_order(split)
        else:
            images, labels = self._tensors(split)
            top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
            with tf.device("CPU:0"):
                if (top, left) != (0, 0) or images.shape[1:3] != (height, width):
                    images = images[:, top : top + height, left : left + width]
                rows = tf.data.Dataset.from_tensor_slices((images, labels))
        if mine is not None:
            rows = rows.enumerate().filter(lambda number, row: mine(number))
            rows = rows.map(lambda number, row: row)
        return self._prepared(rows) if self.source.streamed else rows

    def _prepared(self, rows: tf.data.Dataset) -> tf.data.Dataset:
        """Encoded images as pixels, cropped at the centre."""
        height, width, channels = self.input_shape

        def prepared(encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return central_crop(decode(encoded, channels), (height, width), self.recipe.test_resize), label

        return rows.map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def mean_image(self) -> np.ndarray:
        """Per-pixel mean of the centrally cropped training images, (height, width, channels) float32, 0 to 255.

        A streamed data set's is that of `MEAN_IMAGES` images: the first, or of a folder evenly spaced ones.

        Reference:
            Appendix E.1 of the paper; docs/deviations.md, row 20.
        """
        if not hasattr(self, "_mean_image"):
            total, count = np.zeros(self.input_shape), 0
            streamed = self.source.streamed
            rows = self._prepared(self.source.some("train", MEAN_IMAGES)) if streamed else self._plain("train")
            for images, _ in rows.batch(1000):
                total += images.numpy().sum(0, dtype=np.float64)
                count += len(images)
            self._mean_image = (total / count).astype(np.float32)
        return self._mean_image
