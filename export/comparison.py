"""Two networks on disk side by side: do they say the same, how large are they, how long do they take.

Either may be of other making: a SavedModel or a .tflite file with one image in and one row of numbers a class out.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from export import latency, saved_model
from gated_resnext.errors import UserError
from gated_resnext.evaluation import are_probabilities, check_one_class_each, softmax, top1
from gated_resnext.interchange import Opened

BATCHES = (1, 64)


def image_shape(
    models: Sequence[Opened], otherwise: tuple[int | None, ...] = (None, None, None)
) -> tuple[int, int, int]:
    """The (height, width, channels) that all of them take.

    Args:
        models: the networks.
        otherwise: what to take of that where any would do.

    Raises:
        UserError: if there is none, or any would do.
    """
    sizes = []
    for axis, word in enumerate(("height", "width", "channels")):
        known = {model.shape[axis] for model in models} - {None} or {otherwise[axis]} - {None}
        if len(known) > 1:
            shapes = " and ".join(str(model.shape) for model in models)
            raise UserError(f"the networks take images of different size, (height, width, channels): {shapes}")
        if not known:
            raise UserError(
                f"neither network says the {word} of its images; give a data set of one size, --images_from=DATASET"
            )
        sizes.append(known.pop())
    return sizes[0], sizes[1], sizes[2]  # type: ignore[return-value]


def compare(
    a: Opened,
    b: Opened,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    classes: int | None = None,
    rounds: int = 9,
) -> dict[str, Any]:
    """Runs both on the same images, then times them in turns.

    Args:
        a: the one that there is.
        b: the one to put in its place.
        images: (n, height, width, channels) uint8.
        labels: (n,) classes, or None.
        classes: how many there are; None where nobody says.
        rounds: turns of each in the timing.

    Returns:
        `agreement`, the share of images to which both give the same class; `max_difference` of the probabilities;
        `top1`, `bytes`, `logits` (whether its output was put through a softmax), a pair each; `latency`, for each of
        `BATCHES`, `ratio` (times that a takes as long as b) and `ms`, a pair of medians.

    Raises:
        UserError: if they do not take such images, or have different numbers of classes, or another than `classes`.
    """
    if labels is not None:
        check_one_class_each(labels, len(images))
    outputs = [model.answers(images) for model in (a, b)]
    if outputs[0].shape != outputs[1].shape:
        raise UserError(f"{a.path} tells {outputs[0].shape[1]} classes apart, {b.path} {outputs[1].shape[1]}")
    if outputs[0].shape[1] < 2:
        raise UserError(f"{a.path} gives one number an image: classes are compared, of which there are two or more")
    if classes not in (None, outputs[0].shape[1]):
        raise UserError(f"{a.path} tells {outputs[0].shape[1]} classes apart, the images are of {classes}")
    logits = [not are_probabilities(output) for output in outputs]
    probabilities = [softmax(output) if raw else output for output, raw in zip(outputs, logits, strict=True)]
    answers = [output.argmax(-1) for output in outputs]
    times = {batch: _timed(a, b, np.resize(images, (batch, *images.shape[1:])), rounds) for batch in BATCHES}
    return {
        "agreement": float((answers[0] == answers[1]).mean()),
        "max_difference": float(np.abs(probabilities[0] - probabilities[1]).max()),
        "top1": [None if labels is None else top1(output, labels) for output in outputs],
        "bytes": [size(a.path), size(b.path)],
        "logits": logits,
        "latency": times,
    }


def _timed(a: Opened, b: Opened, images: np.ndarray, rounds: int) -> dict[str, Any]:
    times = latency.interleaved({"a": lambda: a.answers(images), "b": lambda: b.answers(images)}, rounds=rounds)
    return {
        "ratio": latency.ratio(times["a"], times["b"]),
        "ms": [statistics.median(times[name]) for name in ("a", "b")],
    }


def size(path: pathlib.Path) -> int:
    """Bytes of a network's own files."""
    return path.stat().st_size if path.is_file() else saved_model.size(path)
