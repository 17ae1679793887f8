"""What happens to a training image before the network: random crops and mirrors.

Functions of tensors and seeds; every draw is a function of the seed given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from gated_resnext.preprocessing import decode
from gated_resnext.recipes import Recipe


def augment(
    images: tf.Tensor,
    recipe: Recipe,
    shape: tuple[int, int, int],
    fill: np.ndarray,
    *,
    seed: tuple[Any, Any],
    place: tuple[int, int] = (0, 1),
) -> tf.Tensor:
    """Random crops of the padded images or of their mirror images, a whole batch at a time.

    Args:
        images: (batch, H, W, channels) uint8.
        recipe: padding and mirroring.
        shape: (height, width, channels) of the crop.
        fill: pixel of the padding, (channels,): the mean, which the network turns to zero.
        seed: the result is a function of it.
        place: which part of the whole batch these images are, of how many: (0, 2) are its first half.

    Returns:
        (batch, height, width, channels) uint8.

    Reference:
        Appendices E.1 and E.3 of the paper; docs/deviations.md, row 19.
    """
    (height, width, _), pad = shape, recipe.pad
    fill = tf.cast(fill, images.dtype)
    padded = tf.pad(images - fill, ((0, 0), (pad, pad), (pad, pad), (0, 0))) + fill  # uint8 wraps around and back
    count, rows, columns = tf.shape(padded)[0], int(padded.shape[1]), int(padded.shape[2])
    part, parts = place
    draws = tf.random.stateless_uniform((3, parts * count), tf.cast(tf.stack(seed), tf.int32))
    draws = draws[:, part * count : (part + 1) * count]
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
    """A crop of 8 to 100 % of the area, resized, half of them mirrored.

    Its aspect ratio is 3/4 to 4/3 of that of `shape`: what is seen is at most so much wider or narrower than it is.

    Reference:
        Szegedy et al., "Going Deeper with Convolutions", section 6; Xie et al. (2017), section 4.
    """
    image = decode(encoded, shape[2])
    key = tf.cast(tf.stack([tf.cast(part, tf.int64) for part in seed]), tf.int32)
    square = shape[1] / shape[0]
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((1, 0, 4)),
        seed=key,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4 * square, 4 / 3 * square),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, size), shape[:2], antialias=True)
    if flip:
        image = tf.image.stateless_random_flip_left_right(image, key + 1)
    image = tf.ensure_shape(image, shape)
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
