"""The wiring of networks as a picture, after Figure 3 of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches. A panel of many blocks is as wide as one of 16; blocks and gaps shrink.
STEP, WIDEST = 0.36, 5.8
ROW, LOW_ROW, MANY_ROWS = 0.64, 0.5, 12
LABELS, COUNTS, TOP, BOTTOM = 1.05, 0.8, 0.8, 0.85
LEGEND = 4.7  # with the range of the gates
# A panel of more edges than this is shaded by their density instead, at so many pixels an inch: the 65,000 lines of
# {101,4,64} with K = 32 took 16 s and 8 MB as a PNG and are one weave to the eye all the same.
MOST_LINES, PIXELS = 4_000, 72
LIGHTEST, DARKEST = "#b4bfd1", "#101a30"


def wiring_picture(
    panels: Sequence[tuple[str, Connectivity]],
    path: canvas.Path,
    *,
    real_gates: Sequence[np.ndarray] | None = None,
) -> None:
    """Wirings side by side: a row a module from the stem down to the head, a square a block, grey where unused.

    Args:
        panels: (title, wiring) of each.
        path: of the .svg or .png file. In an SVG, panel n has the groups "active-n" and "unused-n", a <use> a square,
            and "edge-n" and "dead-n", a <path> a line; beyond `MOST_LINES` edges an image "weave-n" instead of lines
            between modules.
        real_gates: matrices (C, C) of modules 2 to M of the last panel's network; its edges are as dark as their gates.

    Raises:
        UserError: if the path ends otherwise.

    Reference:
        Figure 3 of the paper.
    """
    places = [_Places.of(wiring) for _, wiring in panels]
    most_rows = max(len(wiring.blocks) for _, wiring in panels)
    row = ROW if most_rows <= MANY_ROWS else LOW_ROW
    # A title is about 0.1 inches a letter.
    widths = [max(place.width, 0.1 * len(title)) + COUNTS for place, (title, _) in zip(places, panels, strict=True)]
    width, height = LABELS + sum(widths), TOP + (most_rows + 1) * row + BOTTOM
    if real_gates is not None:
        width = max(width, LABELS + LEGEND)
    with canvas.picture(path, width, height, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        middle = LABELS
        for number, ((title, wiring), place, of_panel) in enumerate(zip(panels, places, widths, strict=True)):
            gates = real_gates if number == len(panels) - 1 else None
            middle += (of_panel - COUNTS) / 2
            _panel(axes, number + 1, title, wiring, dataclasses.replace(place, middle=middle, row=row), gates)
            middle += (of_panel - COUNTS) / 2 + COUNTS
        for module in range(most_rows):
            axes.text(0.15, TOP + (module + 1) * row, f"module {module + 1}", va="center", color=canvas.QUIET, size=9)
        _legend(axes, height - 0.35, real_gates, panels[-1][1])


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where the blocks of a panel are, in inches."""

    step: float
    width: float
    middle: float = 0.0
    row: float = ROW

    @classmethod
    def of(cls, wiring: Connectivity) -> _Places:
        most = max(wiring.blocks)
        step = min(STEP, WIDEST / most)
        return cls(step, most * step)

    @property
    def side(self) -> float:
        """Of a block's square."""
        return 0.62 * self.step

    def block(self, module: int, blocks: int, number: np.ndarray) -> np.ndarray:
        """Middles (n, 2) of the blocks of these numbers in a module of `blocks`; modules count from 0."""
        x = self.middle + (np.asarray(number, float) - (blocks - 1) / 2) * self.step
        return np.stack([x, np.full_like(x, TOP + (module + 1) * self.row)], axis=-1)


def _panel(
    axes: Axes,
    number: int,
    title: str,
    wiring: Connectivity,
    places: _Places,
    real_gates: Sequence[np.ndarray] | None,
) -> None:
    """One wiring under its title."""
    from matplotlib.collections import PathCollection
    from matplotlib.patches import FancyBboxPatch

    inches = axes.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    blocks, active, side = wiring.blocks, wiring.active, places.side
    used = [np.isin(np.arange(count), which) for count, which in zip(blocks, active, strict=True)]
    stem = np.array([places.middle, TOP])
    head = np.array([places.middle, TOP + (len(blocks) + 1) * places.row])
    axes.text(places.middle, 0.32, title, ha="center", va="center", size=12)
    _edges(axes, number, wiring, places, used, (stem, head), real_gates)
    rounded = FancyBboxPatch((-side / 2, -side / 2), side, side, boxstyle=f"round,pad=0,rounding_size={side / 6}")
    for name, colour in (("unused", canvas.UNUSED), ("active", canvas.ACTIVE)):
        middles = [
            places.block(module, count, np.flatnonzero(used[module] == (name == "active")))
            for module, count in enumerate(blocks)
        ]
        squares = PathCollection(
            [rounded.get_path()],
            offsets=np.concatenate(middles),
            offset_transform=axes.transData,
            facecolor=colour,
            edgecolor="none",
            zorder=3,
        )
        squares.set_transform(inches)
        squares.set_gid(f"{name}-{number}")
        axes.add_collection(squares)
    for name, place in (("stem", stem), ("head", head)):
        box = {"boxstyle": "round,pad=0.35", "facecolor": canvas.END, "edgecolor": "none"}
        axes.text(place[0], place[1], name, ha="center", va="center", color="white", size=9, bbox=box, zorder=4)
    if all(map(np.all, used)):
        return
    right = places.middle + places.width / 2 + 0.06
    for module, (count, mask) in enumerate(zip(blocks, used, strict=True)):
        y = TOP + (module + 1) * places.row
        axes.text(right, y, f"{mask.sum()} of {count}", va="center", color=canvas.QUIET, size=9)


class _Lines:
    """Lines as they are collected: where they begin and end, whether what they feed is used, how dark they are.

    Darkness is between 0 and 1, and NaN where there is no gate.
    """

    def __init__(self) -> None:
        self.points, self.used, self.dark = np.zeros((0, 2, 2)), np.zeros(0, bool), np.zeros(0)

    def add(self, begin: np.ndarray, end: np.ndarray, used: np.ndarray, dark: np.ndarray | None = None) -> None:
        """From points (n, 2) to points (n, 2); one point for all broadcasts."""
        points = np.stack(np.broadcast_arrays(begin, end), axis=1)
        self.points = np.concatenate([self.points, points])
        self.used = np.concatenate([self.used, used])
        self.dark = np.concatenate([self.dark, np.full(len(used), np.nan) if dark is None else dark])


def _edges(
    axes: Axes,
    number: int,
    wiring: Connectivity,
    places: _Places,
    used: Sequence[np.ndarray],
    ends: tuple[np.ndarray, np.ndarray],
    real_gates: Sequence[np.ndarray] | None,
) -> None:
    """All lines of a panel, those of unused blocks grey and below."""
    blocks, half = wiring.blocks, np.array([0, places.side / 2])
    outer, inner = _Lines(), _Lines()
    rows = [places.block(module, count, np.arange(count)) for module, count in enumerate(blocks)]
    outer.add(ends[0] + [0, 0.13], rows[0] - half, used[0])
    outer.add(rows[-1] + half, ends[1] - [0, 0.13], used[-1])
    lowest, highest = _range(real_gates, wiring)
    for module, sources in enumerate(wiring.sources, start=1):
        reader = np.repeat(np.arange(blocks[module]), [len(inputs) for inputs in sources])
        source = np.concatenate([np.array(inputs) for inputs in sources])
        dark = None
        if real_gates is not None:
            dark = (real_gates[module - 1][reader, source] - lowest) / max(highest - lowest, 1e-12)
        inner.add(rows[module - 1][source] + half, rows[module][reader] - half, used[module][reader], dark)
    if _is_woven(wiring):
        _weave(axes, number, inner, places)
    else:
        outer.add(inner.points[:, 0], inner.points[:, 1], inner.used, inner.dark)
    _draw_lines(axes, number, outer, max(blocks))


def _is_woven(wiring: Connectivity) -> bool:
    """Whether it has too many edges for a line each."""
    return sum(len(inputs) for module in wiring.sources for inputs in module) > MOST_LINES


def _draw_lines(axes: Axes, number: int, lines: _Lines, max_blocks: int) -> None:
    """A line an edge, thinner where there are many."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    width = 1.2 * float(np.sqrt(min(1, 16 / max_blocks, 400 / len(lines.points))))
    for name, mask in (("dead", ~lines.used), ("edge", lines.used)):
        order = np.flatnonzero(mask)[np.argsort(lines.dark[mask], kind="stable")]  # the darkest on top
        dark, colour = lines.dark[order], canvas.UNUSED if name == "dead" else canvas.EDGE
        colours = np.tile(to_rgba(colour), (len(order), 1))
        if name == "edge":
            colours[np.isfinite(dark)] = _shades()(dark[np.isfinite(dark)])
        drawn = LineCollection(list(lines.points[order]), colors=colours, linewidths=width, zorder=1 + (name == "edge"))
        drawn.set_gid(f"{name}-{number}")
        axes.add_collection(drawn)


def _weave(axes: Axes, number: int, lines: _Lines, places: _Places) -> None:
    """The lines as the shade of every pixel: the more of them cross it, the darker."""
    left, top, bottom = places.middle - places.width / 2, lines.points[..., 1].min(), lines.points[..., 1].max()
    columns, height = int(places.width * PIXELS) + 1, int((bottom - top) * PIXELS)
    crossing = np.zeros((2, height, columns))  # of unused and of used blocks
    begin, end = lines.points[:, 0], lines.points[:, 1]  # modules in order, so heights ascend
    for y in range(height):
        at = top + (y + 0.5) / PIXELS
        here = slice(np.searchsorted(end[:, 1], at, "right"), np.searchsorted(begin[:, 1], at, "right"))
        if here.start >= here.stop:  # between the top and the bottom of squares
            continue
        part = (at - begin[here, 1]) / (end[here, 1] - begin[here, 1])
        x = np.clip((begin[here, 0] + part * (end[here, 0] - begin[here, 0]) - left) * PIXELS, 0, columns - 1.001)
        pixel, beside = x.astype(int), x % 1
        for kind in (0, 1):
            weight = (lines.used[here] == kind) * (0.3 + 0.7 * np.nan_to_num(lines.dark[here], nan=1.0))
            crossing[kind, y] += np.bincount(pixel, weight * (1 - beside), columns)
            crossing[kind, y] += np.bincount(pixel + 1, weight * beside, columns)
    # Half dark where the mean pixel is; 24 shades compress well.
    typical = crossing.sum(0)[crossing.sum(0) > 0].mean()
    opacity = np.round(24 * (1 - 0.5 ** (crossing / typical))) / 24
    for kind, colour in enumerate((canvas.UNUSED, canvas.EDGE)):
        pixels = np.zeros((height, columns, 4), np.uint8)
        pixels[..., :3] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        pixels[..., 3] = np.round(255 * opacity[kind])
        if opacity[kind].any():
            image = axes.imshow(
                pixels,
                extent=(left, left + columns / PIXELS, bottom, top),
                aspect="auto",
                interpolation="none",
                zorder=1,
            )
            image.set_gid(f"weave-{number}")


def _range(real_gates: Sequence[np.ndarray] | None, wiring: Connectivity) -> tuple[float, float]:
    """The smallest and the largest gate of an edge."""
    if real_gates is None or not wiring.sources:
        return 0.0, 1.0
    drawn = [
        matrix[block, list(inputs)]
        for matrix, module in zip(real_gates, wiring.sources, strict=True)
        for block, inputs in enumerate(module)
    ]
    return float(min(map(np.min, drawn))), float(max(map(np.max, drawn)))


def _shades() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("gates", [LIGHTEST, DARKEST])


def _legend(axes: Axes, y: float, real_gates: Sequence[np.ndarray] | None, wiring: Connectivity) -> None:
    """What the colours mean, in one line below."""
    from matplotlib.patches import Rectangle

    x = LABELS
    for name, colour in (("active", canvas.ACTIVE), ("unused", canvas.UNUSED)):
        axes.add_patch(Rectangle((x, y - 0.07), 0.14, 0.14, color=colour))
        axes.text(x + 0.22, y, name, va="center", size=9)
        x += 0.95
    if real_gates is not None:
        lowest, highest = _range(real_gates, wiring)
        if _is_woven(wiring):
            axes.text(x, y, "darker: more edges, and larger real gates", va="center", size=9)
            return
        axes.text(x, y, f"real gate {lowest:.3g}", va="center", size=9)
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=_shades(), extent=(x + 1.25, x + 2.05, y - 0.04, y + 0.04))
        axes.text(x + 2.13, y, f"{highest:.3g}", va="center", size=9)
