"""An evaluation as a picture: the confusion matrix, and beside it how far the network's confidence is its accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gated_resnext.drawing import canvas
from gated_resnext.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 20  # classes, or bins, up to which every one tells its images
MOST_NAMES = 120  # classes up to which every one has its name at the axes
CALIBRATION = 6.0  # inches that it takes


def write(evaluation: Evaluation, path: canvas.Path, title: str) -> None:
    """Draws it into a .png or .svg file.

    Args:
        evaluation: what was measured.
        path: of the file; its ending says which.
        title: above it.
    """
    with canvas.picture(path, *size(evaluation)) as figure:
        draw(figure, evaluation, title)


def size(evaluation: Evaluation) -> tuple[float, float]:
    """Width and height of the picture, in inches."""
    side = float(np.clip(0.6 * len(evaluation.labels), 5.0, 12.0))
    return side + CALIBRATION, side + 1.0


def draw(figure: Figure, evaluation: Evaluation, title: str) -> None:
    """Puts both into a figure of their `size`.

    A cell's colour is the share of its row, the images of one class; on a scale of square roots, which shows the rare
    mistakes too. To the right, a bar for each bin of confidence is as high as the accuracy in it; on the diagonal they
    would be equal.
    """
    from matplotlib.colors import PowerNorm

    classes, side = len(evaluation.labels), figure.get_size_inches()[0] - CALIBRATION
    figure.suptitle(canvas.text(title), wrap=True)
    matrix, bars = figure.subplots(1, 2, width_ratios=(side, 4.0))
    shares = evaluation.confusion / np.maximum(evaluation.class_images, 1)[:, None]
    image = matrix.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest")
    _label(matrix, evaluation.labels, side)
    if classes <= MOST_NUMBERS:
        for (row, column), images in np.ndenumerate(evaluation.confusion):
            if images:
                colour = "white" if shares[row, column] > 0.4 else canvas.EDGE
                matrix.text(column, row, f"{images}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(
        image, ax=matrix, shrink=0.6, aspect=30, label="share of the class's images", ticks=(0, 0.01, 0.1, 0.3, 0.6, 1)
    )
    _reliability(bars, evaluation)


def _label(axes: Any, labels: tuple[str, ...], side: float) -> None:
    """Names at the axes, as large as there is room for; of very many classes every nth."""
    every = math.ceil(len(labels) / MOST_NAMES)
    shown = range(0, len(labels), every)
    size = float(np.clip(0.7 * 72 * side / len(labels) * every, 4.0, 10.0))  # points
    names = [canvas.text(labels[number]) for number in shown]
    axes.set_xticks(shown, names, rotation=90, fontsize=size)
    axes.set_yticks(shown, names, fontsize=size)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")


def _reliability(axes: Any, evaluation: Evaluation) -> None:
    width = 1.0 / len(evaluation.bins)
    for number, one in enumerate(evaluation.bins):
        if one.accuracy is not None:
            axes.bar(number * width, one.accuracy, width, align="edge", color=canvas.ACTIVE, edgecolor="white")
            axes.plot(one.confidence, one.accuracy, "o", color=canvas.EDGE, markersize=3)
            if len(evaluation.bins) <= MOST_NUMBERS:
                colour = "white" if one.accuracy > 0.15 else canvas.EDGE
                centre = (number + 0.5) * width
                axes.text(centre, 0.01, f"{one.images:,}", ha="center", rotation=90, fontsize=7, color=colour)
    axes.plot((0, 1), (0, 1), color=canvas.EDGE, linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1, xlabel="confidence (in the bars: images)", ylabel="accuracy")
    axes.set_title(f"calibration error {100 * evaluation.calibration_error:.2f} %", fontsize=10)
