"""What stands before a network and behind it: arrays of any size to its pixels, its probabilities to names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gated_resnext import recipes, zoo
from gated_resnext.datasets.names import readable
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError
from gated_resnext.evaluation import are_probabilities

if TYPE_CHECKING:
    from gated_resnext.architecture import Architecture
    from gated_resnext.model import GatedResNeXt


class Prediction(NamedTuple):
    """A class: its number, its name and its probability."""

    number: int
    label: str
    probability: float


def preprocess_input(
    images: np.ndarray | Sequence[np.ndarray], network: str | GatedResNeXt | Sequence[int], *, resize: int | None = None
) -> np.ndarray:
    """Images of any size as the network takes them: resized, cropped in the middle, grey or in colour, uint8.

    Nothing is scaled: networks take raw pixels, 0 to 255, and standardise them inside. What comes out is what the data
    set's test images become, and what an export's signature `encoded_images` makes of the same picture.

    Args:
        images: (n, height, width, channels), or a sequence of (height, width, channels) of different sizes, whole
            numbers or floats from 0 to 255. Of 4 channels the fourth, transparency, is dropped.
        network: an entry of the zoo, any Keras model of one image, or (height, width, channels).
        resize: shorter side before the central crop; None for the entry's, which a network of the zoo's name, input
            and, unless it gives features, number of classes has too, else just large enough.

    Returns:
        (n, height, width, channels) uint8.

    Raises:
        UserError: if these are no images, or their values are not pixels: between 0 and 1, say, or standardised.

    Example:

    >>> preprocess_input([np.zeros((40, 30, 3), "uint8")], "digits_11_4_4_k1").shape
    (1, 8, 8, 1)
    """
    shape, side = _wanted(network, resize)
    if hasattr(images, "op") or type(images).__name__ == "SymbolicTensor":
        raise UserError(
            "these are no arrays yet, as in Dataset.map: there, for one image, use "
            f"gated_resnext.preprocessing.central_crop(image, {shape[:2]}, {side})"
        )
    each = [np.asarray(image) for image in images]
    if not each or any(image.ndim != 3 or not image.size for image in each):
        raise UserError(
            "expected images (n, height, width, channels) or a list of (height, width, channels); one image goes as "
            f"image[None], grey ones as images[..., None]. Received: {[image.shape for image in each[:3]]}"
        )
    _check_pixels(each)
    crop = _crop(shape, side)
    return np.stack([crop(_with_channels(np.rint(image).astype(np.uint8), shape[2])).numpy() for image in each])


@functools.cache
def _crop(shape: tuple[int, int, int], side: int) -> Any:
    """From (H, W, channels) to the middle of the resized image; compiled, which takes a fourth of the time."""
    import tensorflow as tf

    from gated_resnext.preprocessing import central_crop

    image = tf.TensorSpec((None, None, shape[2]), tf.uint8)
    return tf.function(lambda image: central_crop(image, shape[:2], side), input_signature=[image], autograph=False)


def _wanted(network: str | GatedResNeXt | Sequence[int], resize: int | None) -> tuple[tuple[int, int, int], int]:
    """The network's input, and the shorter side before its crop."""
    if isinstance(network, str):
        return _of_entry(network, resize)
    if hasattr(network, "architecture"):
        sizes = network.architecture.input_shape
    else:  # any other model's says its batch too
        given: Any = network.input_shape[1:] if hasattr(network, "input_shape") else network
        sizes = tuple(given) if np.iterable(given) else ()
    name = getattr(network, "name", None)
    if name in zoo.ENTRIES and _sees_as(zoo.architecture(name), network, sizes):
        return _of_entry(name, resize)
    if len(sizes) != 3 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
        raise UserError(f"expected an entry's name, a network or (height, width, channels). Received: {network!r}")
    height, width, channels = map(int, sizes)
    return (height, width, channels), resize or min(height, width)


def _sees_as(own: Architecture, network: Any, sizes: tuple[int, ...]) -> bool:
    """Whether a network of an entry's name takes the entry's pictures, not those of a classifier of one's own."""
    answers: Any = getattr(network, "output_shape", None)
    classifies = isinstance(answers, tuple) and len(answers) == 2 and getattr(network, "include_top", True)
    return sizes == own.input_shape and not (classifies and answers[1] != own.classes)


def _of_entry(name: str, resize: int | None) -> tuple[tuple[int, int, int], int]:
    info, shape = DATASETS[zoo.entry(name).dataset], zoo.architecture(name).input_shape
    return shape, resize or recipes.RECIPES[info.recipe].shorter_side(shape, info.side)


def _check_pixels(images: list[np.ndarray]) -> None:
    kinds = {image.dtype.kind for image in images}
    if kinds - set("iuf"):
        raise UserError(f"pixels are numbers from 0 to 255. Received: {images[0].dtype}")
    low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
    if not (low >= 0 and high <= 255):
        raise UserError(
            f"pixels are raw, from 0 to 255: the network standardises them itself. Received: {low:g} to {high:g}"
        )
    if "f" in kinds and 0 < high <= 1:
        raise UserError(
            "pixels are from 0 to 255, and these floats from 0 to 1: give the images before their division by 255"
        )


def _with_channels(image: np.ndarray, channels: int) -> Any:
    """(height, width, channels) of what may be grey, coloured or transparent."""
    from gated_resnext.preprocessing import grey

    if image.shape[2] == 4 and channels in (1, 3):
        image = image[..., :3]
    if image.shape[2] == 3 and channels == 1:
        return grey(image)
    if image.shape[2] == 1 and channels == 3:
        return image.repeat(3, axis=2)
    if image.shape[2] != channels:
        raise UserError(f"the network takes images of {channels} channels. Received: {image.shape}")
    return image


def decode_predictions(
    probabilities: Any, top: int = 5, *, name: str | None = None, labels: Sequence[str] | None = None
) -> list[list[Prediction]]:
    """The most probable classes of each image.

    Args:
        probabilities: (n, classes), what a network gives.
        top: how many classes of each image, the most probable first.
        name: the entry of the zoo whose classes they are: named by its card, else by its data set, as far as
            tensorflow-datasets knows the names before it has the images. Those of ImageNet are WordNet's.
        labels: or the names themselves. With neither, classes are called by their numbers.

    Returns:
        For each image its `top` classes as (number, label, probability).

    Raises:
        UserError: if these are no probabilities, or there are names of another number of classes.

    Example:

    >>> decode_predictions([[0.1, 0.7, 0.2]], top=2, labels=["ant", "bee", "cat"])[0][1]
    Prediction(number=2, label='cat', probability=0.2)
    """
    rows = np.asarray(probabilities)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind != "f" or not are_probabilities(rows):
        raise UserError(
            "expected probabilities (n, classes), rows that sum to 1; logits go through softmax first. "
            f"Received: {rows.dtype} {rows.shape}"
        )
    if name is not None and labels is not None:
        raise UserError("give one of name and labels")
    if top < 1:
        raise UserError(f"top must be at least 1. Received: top={top}")
    names = list(labels if labels is not None else range(rows.shape[1]) if name is None else readable(_labels_of(name)))
    if len(names) != rows.shape[1]:
        raise UserError(f"there are probabilities of {rows.shape[1]} classes and names of {len(names)}")
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(int(number), str(names[number]), float(row[number])) for number in numbers]
        for row, numbers in zip(rows, order, strict=True)
    ]


def _labels_of(name: str) -> list[str]:
    """The names of an entry's classes."""
    card = zoo.card(name)
    if card and isinstance(card.get("labels"), list):
        return card["labels"]
    from gated_resnext import datasets

    return datasets.labels(zoo.entry(name).dataset)
