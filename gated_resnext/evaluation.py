"""How well a network's probabilities tell the classes of images: plain numpy, in float64.

Accuracies, the confusion matrix, the loss, and whether the network is as sure as it is right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gated_resnext.errors import UserError

BINS = 15
SUM_TOLERANCE = 1e-2  # probabilities are rounded, to float16 at worst, or are of an int8 file
INT8_STEPS = 256  # of those they are multiples of 1/256, each rounded
NORMAL_95 = 1.959963984540054  # the normal distribution has 95 % of its mass within so many standard deviations
LEAST = float(np.finfo(np.float32).tiny)  # below it a float32 has lost its digits, and its logarithm says nothing


class Bin(NamedTuple):
    """The images whose confidence is in one interval: how many, their mean confidence and their accuracy, or None."""

    images: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    r"""What was measured on some images.

    Args:
        images: how many.
        top1: share whose most probable class is theirs, the lowest number first among equals.
        top1_interval: Wilson's 95 % interval of it.
        top5: share whose class is among the five most probable, likewise.
        loss: mean of -log p(class), in nats; a probability below 1.2e-38 counts as that.
        impossible: images for which it did.
        calibration_error: the expected one, \sum_m |B_m| / n |acc(B_m) - conf(B_m)| over the bins B_m of confidence.
        bins: B_1 to B_M, of equal width; bin m holds the images whose largest probability is in ((m - 1) / M, m / M].
        confusion: (classes, classes) images; row: the image's class, column: the class it was taken for.
        labels: names of the classes.

    Example:

    >>> found = Evaluation.of([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]], [0, 1, 1], ["cat", "dog"])
    >>> found.confusion.tolist(), round(found.calibration_error, 3)
    ([[1, 0], [1, 1]], 0.433)

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017, Eq. 3.
    """

    images: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    loss: float
    impossible: int
    calibration_error: float
    bins: tuple[Bin, ...]
    confusion: np.ndarray
    labels: tuple[str, ...]

    @classmethod
    def of(
        cls, probabilities: Any, classes: Any, labels: Sequence[str] | None = None, *, bins: int = BINS
    ) -> Evaluation:
        """From the probabilities of images, and their classes.

        Args:
            probabilities: (n, classes), rows that sum to 1.
            classes: (n,) whole numbers, the right ones.
            labels: names of the classes; None for their numbers.
            bins: of the calibration error, M.

        Raises:
            UserError: if they do not fit together.
        """
        rows, right = np.asarray(probabilities, np.float64), np.asarray(classes)
        names = tuple(map(str, range(rows.shape[-1]) if labels is None else labels))
        _check(rows, right, names, bins)
        right = right.astype(np.int64)  # of 8 bits the cells of a confusion matrix would not be told apart
        predicted, confidence = rows.argmax(-1), rows.max(-1)
        of_right = rows[np.arange(len(rows)), right]
        hits = predicted == right
        binned = reliability(confidence, hits, bins)
        count = len(names)
        # Among equals the first is the more probable, as for `argmax`: an int8 network gives 0 to many classes.
        equal = (rows == of_right[:, None]) & (np.arange(count) < right[:, None])
        return cls(
            images=len(rows),
            top1=float(hits.mean()),
            top1_interval=wilson(int(hits.sum()), len(rows)),
            top5=float((((rows > of_right[:, None]) | equal).sum(-1) < 5).mean()),
            loss=float(-np.log(np.maximum(of_right, LEAST)).mean()),
            impossible=int((of_right < LEAST).sum()),
            calibration_error=calibration_error(binned),
            bins=binned,
            confusion=np.bincount(right * count + predicted, minlength=count**2).reshape(count, count),
            labels=names,
        )

    @property
    def class_images(self) -> np.ndarray:
        """(classes,) images of each class."""
        return self.confusion.sum(1)

    @property
    def class_top1(self) -> np.ndarray:
        """(classes,) share of each class's images that were recognised; NaN where there are none."""
        return np.divide(
            np.diag(self.confusion),
            self.class_images,
            out=np.full(len(self.labels), math.nan),
            where=self.class_images > 0,
        )

    def ranked(self) -> list[int]:
        """The classes that have images, the worst recognised first."""
        accuracy = self.class_top1
        return sorted(np.flatnonzero(self.class_images).tolist(), key=lambda number: (accuracy[number], number))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        each = zip(self.labels, self.class_images.tolist(), self.class_top1.tolist(), strict=True)
        return {
            "images": self.images,
            "top1": self.top1,
            "top1_interval_95": list(self.top1_interval),
            "top5": self.top5,
            "loss": self.loss,
            "impossible": self.impossible,
            "calibration_error": self.calibration_error,
            "calibration_bins": [one._asdict() for one in self.bins],
            "classes": [
                {"label": label, "images": images, "top1": top1 if images else None} for label, images, top1 in each
            ],
            "confusion": self.confusion.tolist(),
        }


def _check(rows: np.ndarray, right: np.ndarray, labels: Sequence[str], bins: int) -> None:
    if rows.ndim != 2 or not rows.size:
        raise UserError(f"expected probabilities (n, classes). Received: {rows.shape}")
    check_one_class_each(right, len(rows))
    if len(labels) != rows.shape[1]:
        raise UserError(f"there are probabilities of {rows.shape[1]} classes and names of {len(labels)}")
    if right.min() < 0 or right.max() >= len(labels):
        raise UserError(f"classes are 0 to {len(labels) - 1}. Received: {right.min()} to {right.max()}")
    if not are_probabilities(rows):
        raise UserError("probabilities are 0 or more and sum to 1; those given do not. Logits go through softmax first")
    if bins < 1:
        raise UserError(f"bins must be at least 1. Received: {bins}")


def check_one_class_each(classes: Any, images: int) -> None:
    """Finds that there is a class for each image.

    Raises:
        UserError: if they are not `images` whole numbers in a row: others would be compared each with each.
    """
    found = np.asarray(classes)
    if found.shape != (images,) or found.dtype.kind not in "iu":
        raise UserError(
            f"the classes of {images:,} images are {images:,} whole numbers, of shape ({images},). "
            f"Received: {found.dtype} of shape {found.shape}"
        )


def top1(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Share of the images whose most probable class is theirs."""
    return float((probabilities.argmax(-1) == classes).mean())


def wilson(hits: int, images: int) -> tuple[float, float]:
    r"""Wilson's 95 % interval of a share: (p + z^2 / 2n -+ z \sqrt{p (1 - p) / n + z^2 / 4n^2}) / (1 + z^2 / n).

    Example:

    >>> [round(bound, 4) for bound in wilson(349, 360)]
    [0.9461, 0.9829]

    Reference:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    share, z2 = hits / images, NORMAL_95**2
    middle = share + z2 / (2 * images)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    scale = 1 + z2 / images
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def reliability(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> tuple[Bin, ...]:
    """Images by the network's confidence, in bins of equal width.

    Args:
        confidence: (n,) largest probability of each image.
        hits: (n,) whether that class is the image's.
        bins: how many.
    """
    numbers = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(numbers, minlength=bins)
    sums = [np.bincount(numbers, values.astype(np.float64), bins) for values in (confidence, hits)]
    return tuple(
        Bin(int(count), *(float(total[number]) / int(count) if count else None for total in sums))
        for number, count in enumerate(images)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """How far confidence is from accuracy, on average over the images of all bins."""
    filled = [one for one in bins if one.confidence is not None and one.accuracy is not None]
    total = sum(one.images for one in filled)
    return sum(one.images * abs(one.accuracy - one.confidence) for one in filled) / total  # type: ignore[operator]


def answers(
    run: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    seen: Callable[[int], None] = lambda images: None,
) -> tuple[np.ndarray, np.ndarray]:
    """What a network says of all batches.

    Args:
        run: from images (n, height, width, channels) uint8 to (n, classes).
        batches: images and their classes.
        seen: is told how many images each batch had.

    Returns:
        (images, classes), and the right classes (images,).
    """
    outputs, right, size = [], [], 0
    for images, classes in batches:
        size = size or len(images)
        outputs.append(run(filled(images, size))[: len(images)])
        right.append(classes)
        seen(len(classes))
    return np.concatenate(outputs), np.concatenate(right)


def filled(images: Any, size: int) -> Any:
    """So many images, the last one again for those that are missing: a shorter batch would be compiled of its own.

    Args:
        images: an array, or a list of picture files; at least one.
        size: what is asked for; with as many images or more they come back as they are.
    """
    missing = size - len(images)
    if missing <= 0:
        return images
    if isinstance(images, list | tuple):
        return [*images, *[images[-1]] * missing]
    images = np.asarray(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether rows are of probabilities, rounded to a quantised network's numbers at worst."""
    classes, off = outputs.shape[1], np.abs(outputs.sum(-1) - 1.0).max()
    tolerance = SUM_TOLERANCE * classes**0.5
    if outputs.max() <= 1.0 and not np.any(outputs * INT8_STEPS % 1.0):
        tolerance = max(tolerance, 0.5 * classes / INT8_STEPS)  # most of many classes are rounded to 0
    return bool(outputs.min() >= 0.0 and off <= tolerance)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, row by row."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
