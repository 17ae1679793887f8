"""From a picture file of any size to the network's pixels, as the data set's test images came there.

The one definition for evaluation here and for an exported network that takes PNG or JPEG files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from gated_resnext.datasets.table import DatasetInfo
from gated_resnext.recipes import Recipe

# Beyond this ratio of its sides a picture loses its ends before it is resized: 1x5000 pixels would become gigabytes.
LONGEST = 16


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network sees it.

    Args:
        shape: (height, width, channels) of the network's input.
        resize: pixels of the picture's shorter side before its central crop; a picture of that size is only cropped.

    Example:

    >>> from gated_resnext.datasets.table import DATASETS
    >>> from gated_resnext.recipes import RECIPES
    >>> Preprocessing.of((64, 64, 3), RECIPES["mini_imagenet"], DATASETS["mini_imagenet"])
    Preprocessing(shape=(64, 64, 3), resize=84)
    """

    shape: tuple[int, int, int]
    resize: int

    @classmethod
    def of(cls, shape: tuple[int, int, int], recipe: Recipe, info: DatasetInfo | None = None) -> Preprocessing:
        """That of a data set's test images: the recipe's size, else the one that the pictures already have."""
        return cls(shape, recipe.shorter_side(shape, info.side if info else None))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"shape": list(self.shape), "resize": self.resize}

    def pixels(self, encoded_images: tf.Tensor) -> tf.Tensor:
        """The network's input.

        Args:
            encoded_images: (batch,) strings, each a whole PNG, JPEG, GIF or BMP file; of an animation the first frame
                counts. Transparency is dropped.

        Returns:
            (batch, height, width, channels) uint8.

        Raises:
            tf.errors.InvalidArgumentError: if one of them is no such file; the others are not answered either.
        """
        spec = tf.TensorSpec(self.shape, tf.uint8)
        return tf.map_fn(
            lambda encoded: self.cropped(decode(encoded, self.shape[2])), encoded_images, fn_output_signature=spec
        )

    def cropped(self, image: tf.Tensor) -> tf.Tensor:
        """The network's input of one picture, (H, W, channels) uint8 of any size."""
        return central_crop(image, self.shape[:2], self.resize)


def decode(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """PNG, JPEG, GIF (its first frame) or BMP bytes to (H, W, channels) uint8; channels are 3, or 1 for grey."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return grey(image) if channels == 1 else image


def grey(image: tf.Tensor) -> tf.Tensor:
    """Luma of (H, W, 3) uint8 as (H, W, 1) uint8, in whole numbers: grey pixels keep their value.

    Reference:
        ITU-R BT.601; the weights are those of JPEG and of Pillow's mode L.
    """
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * tf.constant((19595, 38470, 7471)), axis=-1, keepdims=True)
    return tf.cast((weighted + 0x8000) // 0x10000, tf.uint8)


def central_crop(image: tf.Tensor, size: tuple[int, int], resize: int | None) -> tf.Tensor:
    """The middle of an image whose shorter side was first resized, (height, width, channels) uint8.

    Args:
        image: (H, W, channels) uint8 of any size. Of one more than `LONGEST` times as long as wide, the ends are left
            out.
        size: height and width of the crop.
        resize: the shorter side before it, larger where the crop would not fit; None for no larger than it must be.
    """
    image = _without_ends(image)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    shorter = tf.reduce_min(shape)
    target = tf.cast(resize or min(size), tf.float32)
    fitting = shorter * tf.reduce_max(tf.constant(size, tf.float32) / shape)
    target = tf.where(fitting > 1.00001 * target, fitting, target)  # not by rounding
    scaled = tf.maximum(tf.cast(tf.round(shape * target / shorter), tf.int32), tf.constant(size))
    channels = image.shape[2]
    image = tf.image.resize(image, scaled, antialias=True)
    begin = (scaled - tf.constant(size)) // 2
    image = tf.slice(image, tf.concat([begin, [0]], 0), (*size, channels))
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)


def _without_ends(image: tf.Tensor) -> tf.Tensor:
    """The middle of the longer side, at most `LONGEST` times the shorter one; the middle stays where it is."""
    shape = tf.shape(image)[:2]
    limit = LONGEST * tf.reduce_min(shape)
    kept = tf.where(shape > limit, limit + (shape - limit) % 2, shape)
    channels = image.shape[2]
    image = tf.slice(image, tf.concat([(shape - kept) // 2, [0]], 0), tf.concat([kept, [channels]], 0))
    image.set_shape((None, None, channels))
    return image
