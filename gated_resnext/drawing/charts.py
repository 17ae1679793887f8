"""Numbers of networks as lines: active blocks against depth, accuracy against fan-in, learning curves.

Reference:
    Figures 2, 4 and 5 of the paper.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gated_resnext.drawing import canvas
from gated_resnext.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def active_blocks_chart(
    series: Mapping[str, Sequence[float]], cardinality: int, path: canvas.Path, *, title: str = ""
) -> None:
    """How many blocks of each module are active, a line a network.

    Args:
        series: active blocks of modules 1 to M, by what the legend calls the network.
        cardinality: C, drawn as a dashed line.
        path: of the .svg or .png file; in an SVG, line n is the group "series-n", and C is "cardinality".
        title: above it.

    Raises:
        UserError: if the path ends otherwise, or there are more networks than colours.

    Reference:
        Figures 4 and 5 of the paper.
    """
    _check_count(series)
    modules = max(map(len, series.values()))
    with canvas.picture(path, float(np.clip(0.3 * modules + 3, 6, 11)), 4) as figure:
        figure.suptitle(canvas.text(title), fontsize=10, wrap=True)
        axes = figure.add_subplot(xlabel="module, from the stem to the head", ylabel="active blocks")
        all_blocks = axes.axhline(cardinality, color=canvas.QUIET, linestyle="--", linewidth=1, zorder=1)
        all_blocks.set_gid("cardinality")
        axes.annotate(
            f"C = {cardinality}",
            (1, cardinality),
            (4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            color=canvas.QUIET,
        )
        # Lines that run on top of each other show through: the later ones are thinner.
        lines = []
        for number, (name, active) in enumerate(series.items()):
            x = np.arange(1, len(active) + 1)
            thin = number / max(1, len(series) - 1)
            (line,) = axes.plot(
                x, active, label=name, marker="o", linewidth=3 - 1.6 * thin, markersize=7 - 2.5 * thin, **_look(number)
            )
            line.set_gid(f"series-{number + 1}")
            line.set_clip_on(False)
            lines.append(line)
        axes.set_xlim(0.6, modules + 0.4)
        axes.set_ylim(0, 1.06 * cardinality)
        axes.set_xticks(range(1, modules + 1, -(-modules // 12)))
        axes.set_yticks(range(0, cardinality + 1, -(-cardinality // 8)))
        axes.grid(axis="y", color=canvas.UNUSED, linewidth=0.6)
        canvas.legend_below(figure, lines, 3)


def fan_in_chart(points: Mapping[int, Sequence[float]], path: canvas.Path, *, title: str = "") -> None:
    """Top-1 against fan-in: the mean of the seeds as a line, their range as a bar, each of them as a dot.

    Args:
        points: shares of test images recognised, one a seed, by K.
        path: of the .svg or .png file; in an SVG the groups are "mean", "range" and "seeds".
        title: above it.

    Raises:
        UserError: if the path ends otherwise.

    Reference:
        Figure 2 of the paper.
    """
    fan_ins = sorted(points)
    shares = [100 * np.asarray(points[fan_in], float) for fan_in in fan_ins]
    means = np.array([seeds.mean() for seeds in shares])
    with canvas.picture(path, 6.5, 4.2) as figure:
        figure.suptitle(canvas.text(title), fontsize=10, wrap=True)
        axes = figure.add_subplot(xlabel="fan-in K", ylabel="top-1 of the test images, %")
        x = np.repeat(fan_ins, [len(seeds) for seeds in shares])
        dots = axes.scatter(x, np.concatenate(shares), s=16, facecolor="white", zorder=4, edgecolor=canvas.SERIES[0])
        dots.set_gid("seeds")
        lowest, highest = ([of(seeds) for seeds in shares] for of in (np.min, np.max))
        axes.vlines(fan_ins, lowest, highest, linewidth=1.4, zorder=2, **_look(0)).set_gid("range")
        label = _seeds(shares)
        (line,) = axes.plot(fan_ins, means, marker="s", markersize=6, linewidth=1.8, zorder=3, label=label, **_look(0))
        line.set_gid("mean")
        axes.set_xticks(fan_ins)
        axes.margins(y=0.12)
        axes.grid(axis="y", color=canvas.UNUSED, linewidth=0.6)
        canvas.legend_below(figure, axes.get_legend_handles_labels()[0], 3)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A training by epochs: what it reached at the end of each round.

    Args:
        epochs: when each round ended, ascending.
        loss: of the training images, the mean of each round.
        test_top1: shares of the test images.
        top1: shares of the training images, where they are known.
        test_loss: of the test images, where it is known.
        phase_ends: epochs at which a phase of the schedule ends.
    """

    epochs: Sequence[float]
    loss: Sequence[float]
    test_top1: Sequence[float]
    top1: Sequence[float] | None = None
    test_loss: Sequence[float] | None = None
    phase_ends: Sequence[float] = ()


def curves_chart(curves: Mapping[str, Curve], path: canvas.Path) -> None:
    """Loss and top-1 against epochs; a colour a training, thin on its training images and thick on its test images.

    Args:
        curves: trainings by what the legend calls them.
        path: of the .svg or .png file; in an SVG the groups of training n are "loss-n", "test-loss-n", "top1-n" and
            "test-top1-n", and each end of a phase is a group "phase-end-n-1", "phase-end-n-2", ...

    Raises:
        UserError: if the path ends otherwise, or there are more trainings than colours.
    """
    _check_count(curves)
    with canvas.picture(path, 7.5, 6.4) as figure:
        losses, shares = figure.subplots(2, sharex=True)
        losses.set_ylabel("loss")
        shares.set_ylabel("top-1, %")
        shares.set_xlabel("epoch")
        for number, (name, curve) in enumerate(curves.items(), start=1):
            look = _look(number - 1)
            # A round alone is a point.
            look["marker"] = "o" if len(curve.epochs) < 12 else None
            plots = [(losses, "loss", curve.loss, 1.0, 1), (losses, "test-loss", curve.test_loss, 1.0, 2)]
            plots += [(shares, "top1", curve.top1, 100.0, 1), (shares, "test-top1", curve.test_top1, 100.0, 2)]
            for axes, kind, values, scale, width in plots:
                if values is None:
                    continue
                is_test = kind.startswith("test")
                (line,) = axes.plot(
                    curve.epochs,
                    scale * np.asarray(values, float),
                    linewidth=0.9 * width,
                    markersize=2 + width,
                    linestyle="-" if is_test else (0, (4, 1.5)),
                    label=name if is_test else None,
                    **look,
                )
                line.set_gid(f"{kind}-{number}")
            colour = look["color"] if len(curves) > 1 else canvas.QUIET
            for which, end in enumerate(curve.phase_ends[:-1], start=1):
                for axes in (losses, shares):
                    mark = axes.axvline(end, color=colour, linewidth=0.8, linestyle=":", zorder=0)
                    mark.set_gid(f"phase-end-{number}-{which}")
        if len(curves) == 1:
            _name_phases(losses, next(iter(curves.values())))
        for axes in (losses, shares):
            axes.grid(axis="y", color=canvas.UNUSED, linewidth=0.6)
        losses.set_xlim(left=0)
        losses.set_ylim(bottom=0)
        shares.set_ylim(top=min(100.0, shares.get_ylim()[1]))
        _legend_of_curves(figure, curves)


def _name_phases(axes: Axes, curve: Curve) -> None:
    """The number of each phase above its part of the axes."""
    transform = axes.get_xaxis_transform()
    bounds = [0.0, *curve.phase_ends]
    whole = bounds[-1]
    for number, (begin, end) in enumerate(itertools.pairwise(bounds), start=1):
        text = f"phase {number}" if end - begin > 0.12 * whole else str(number)
        axes.text((begin + end) / 2, 1.02, text, transform=transform, ha="center", color=canvas.QUIET, size=9)


def _legend_of_curves(figure: Any, curves: Mapping[str, Curve]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=2, label=name, **_look(i)) for i, name in enumerate(curves)]
    lines += [
        Line2D([], [], color=canvas.QUIET, linewidth=0.9, linestyle=(0, (4, 1.5)), label="training images"),
        Line2D([], [], color=canvas.QUIET, linewidth=1.8, label="test images"),
    ]
    canvas.legend_below(figure, lines, 2 if len(lines) == 4 else 3)


def _look(number: int) -> dict[str, Any]:
    return {"color": canvas.SERIES[number % len(canvas.SERIES)]}


def _seeds(percents: Sequence[np.ndarray]) -> str:
    """With how many seeds there are, of several points of the fewest and the most."""
    least, most = (of(map(len, percents)) for of in (min, max))
    return "learned" if most == 1 else f"learned, {most if least == most else f'{least} to {most}'} seeds"


def _check_count(what: Mapping[str, Any]) -> None:
    if len(what) > len(canvas.SERIES):
        raise UserError(
            f"one picture tells {len(canvas.SERIES)} lines apart; draw fewer at once. Received: {len(what)}"
        )
