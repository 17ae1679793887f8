"""How the gates of a network moved while they were learned: a still, a moving picture, a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gated_resnext import files
from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".html", ".gif", *canvas.ENDINGS)
# The gates that would be chosen are marked where a mark finds room in its cell.
MOST_MARKED = 16
GIF_DPI, FRAME_MS, LAST_FRAME_MS = 90, 80, 2500
# Gates of a GIF: a larger network is shown at fewer of its steps, {29,64,8} at 45 of 101, for a file of some megabytes.
MOST_VALUES = 1_500_000


@dataclasses.dataclass(frozen=True)
class Movement:
    """The gates of a network at some steps of its learning.

    Args:
        name: of the network.
        fan_in: K.
        steps: (T,), ascending.
        real_gates: for each of the modules 2 to M, (T, C, C); row j holds the inputs of block j.
    """

    name: str
    fan_in: int
    steps: np.ndarray
    real_gates: Sequence[np.ndarray]

    @property
    def cardinality(self) -> int:
        """C."""
        return self.real_gates[0].shape[-1]

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest gate of all steps, never equal: the ends of the colours.

        Gates that hardly leave 1/C still show their movement so.
        """
        lowest = min(float(gates.min()) for gates in self.real_gates)
        highest = max(float(gates.max()) for gates in self.real_gates)
        return (lowest, highest) if highest > lowest else (lowest - 1e-6, highest + 1e-6)

    @property
    def entropies(self) -> np.ndarray:
        """Mean entropy of the rows of each module in nats, (M - 1, T)."""
        return np.stack([-(gates * np.log(np.maximum(gates, 1e-20))).sum(-1).mean(-1) for gates in self.real_gates])

    def spread(self, most_values: int) -> np.ndarray:
        """Places of evenly chosen steps, among them the first and the last, whose gates are at most so many."""
        a_step = sum(gates[0].size for gates in self.real_gates)
        count = min(len(self.steps), max(2, most_values // a_step))
        return np.unique(np.round(np.linspace(0, len(self.steps) - 1, count)).astype(int))

    @property
    def marked(self) -> bool:
        """Whether pictures mark the K largest gates of every block."""
        return self.cardinality <= MOST_MARKED and self.fan_in < self.cardinality

    def chosen(self, time: int) -> list[np.ndarray]:
        """(block, input) of the K largest gates of every row of each module, (C K, 2), at the t-th of the steps."""
        wiring = Connectivity.top_k([gates[time] for gates in self.real_gates], self.fan_in)
        return [
            np.array([(block, source) for block, inputs in enumerate(module) for source in inputs])
            for module in wiring.sources
        ]

    @property
    def colours(self) -> list[str]:
        """A line's for each of the modules 2 to M."""
        import matplotlib

        count = len(self.real_gates)
        if count <= len(canvas.SERIES):
            return list(canvas.SERIES[:count])
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))
        return [matplotlib.colors.to_hex(shade) for shade in shades]

    @property
    def range_text(self) -> str:
        lowest, highest = self.range
        return f"from {lowest:.3g} to {highest:.3g}, 1/C being {1 / self.cardinality:.3g}"

    @property
    def mark_text(self) -> str:
        """What a dot in a cell means."""
        return (
            f"a dot: among the {self.fan_in} largest of its row" if self.fan_in > 1 else "a dot: the largest of its row"
        )


def movement_picture(movement: Movement, path: canvas.Path) -> None:
    """Heat maps of the gates of every module over the entropy of all of them, by what the path ends in.

    Args:
        movement: what to draw.
        path: .svg or .png for the last of the steps, .gif for all of them one after the other, .html for a page with a
            slider that needs nothing else. In an SVG, the heat map of module m is the group "gates-m", the marks of
            what is chosen "chosen-m", the line of its entropy "entropy-m".

    Raises:
        UserError: if the path ends otherwise.
    """
    kind = canvas.ending(path, ENDINGS)
    if kind == ".html":
        from gated_resnext.drawing.movement_page import page

        with files.replacing(path) as temporary:
            temporary.write_text(page(movement), encoding="utf-8")
    elif kind == ".gif":
        _write_gif(movement, path)
    else:
        with canvas.picture(path, *_size(movement)) as figure:
            drawing = _Drawing(figure, movement)
            drawing.show(len(movement.steps) - 1)


def _write_gif(movement: Movement, path: canvas.Path) -> None:
    from PIL import Image

    with canvas.figure(*_size(movement)) as figure:
        figure.set_dpi(GIF_DPI)
        frames = [Image.fromarray(pixels) for pixels in _Drawing(figure, movement).frames()]
    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette(movement))
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with files.replacing(path) as temporary:
        flat[0].save(
            temporary,
            save_all=True,
            append_images=flat[1:],
            duration=[FRAME_MS] * (len(flat) - 1) + [LAST_FRAME_MS],
            loop=0,
        )


def _palette(movement: Movement) -> bytes:
    """The 256 colours of a GIF: those of the gates, of text and of the lines with what lies between them and white."""
    import matplotlib

    white, to_rgb = np.ones(3), matplotlib.colors.to_rgb
    inks = [np.array(to_rgb(ink)) for ink in dict.fromkeys([canvas.TEXT, canvas.END, canvas.QUIET, *movement.colours])]
    tints = [white, *(white + part * (ink - white) for ink in inks for part in (1, 0.75, 0.5, 0.25))][:128]
    of_gates = matplotlib.colormaps[canvas.GATES_MAP](np.linspace(0, 1, 256 - len(tints)))[:, :3]
    return np.round(255 * np.concatenate([tints, of_gates])).astype(np.uint8).tobytes()


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of so many heat maps."""
    columns = count if count <= 5 else math.ceil(math.sqrt(2 * count))
    return -(-count // columns), columns


def _size(movement: Movement) -> tuple[float, float]:
    rows, columns = _grid(len(movement.real_gates))
    side = 2.1 if columns <= 5 else 1.5
    title = 0.08 * (len(movement.name) + 44)  # inches, with the numbers of the steps
    return max(6.5, title, columns * side + 1.6), rows * (side + 0.35) + 2.9


class _Drawing:
    """The figure of one step, whose step can be changed."""

    def __init__(self, figure: Figure, movement: Movement) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.movement, self.canvas, self.figure = movement, FigureCanvasAgg(figure), figure
        rows, columns = _grid(len(movement.real_gates))
        parts: Any = figure.subfigures(2, 1, height_ratios=[figure.get_figheight() - 2.5, 2.1])
        above, below = parts
        self.title = above.suptitle(" \n ", size=10, linespacing=1.4)  # keeps its room
        self._heat_maps(above, above.subplots(rows, columns, squeeze=False))
        self._entropies(below.add_subplot())

    def _heat_maps(self, part: Any, grid: np.ndarray) -> None:
        movement, count = self.movement, self.movement.cardinality
        lowest, highest = movement.range
        self.images, self.marks = [], []
        for number, axes in enumerate(grid.flat, start=2):
            if number > len(movement.real_gates) + 1:
                axes.set_axis_off()
                continue
            gates = movement.real_gates[number - 2]
            image = axes.imshow(gates[0], cmap=canvas.GATES_MAP, vmin=lowest, vmax=highest, interpolation="nearest")
            image.set_gid(f"gates-{number}")
            self.images.append(image)
            (mark,) = axes.plot([], [], "o", color="white", markeredgecolor=canvas.TEXT, markersize=min(5, 40 / count))
            mark.set_gid(f"chosen-{number}")
            self.marks.append(mark)
            axes.set_title(f"module {number}")
            ticks = range(count) if count <= 8 else []
            axes.set_xticks(ticks, [tick + 1 for tick in ticks])
            axes.set_yticks(ticks, [tick + 1 for tick in ticks])
            axes.tick_params(length=0, labelsize=8)
            axes.spines[:].set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("block")
        for axes in grid[-1]:
            axes.set_xlabel("reads block")
        bar = part.colorbar(self.images[0], ax=grid, shrink=0.9, aspect=25, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("real gate", size=9)
        bar.ax.tick_params(labelsize=8)
        bar.ax.axhline(1 / count, color="white", linewidth=1.5)

    def _entropies(self, axes: Any) -> None:
        movement = self.movement
        axes.set_xlabel("step")
        axes.set_ylabel("entropy, nats")
        uniform = axes.axhline(
            math.log(movement.cardinality), color=canvas.QUIET, linestyle="--", linewidth=1, label="log C"
        )
        uniform.set_gid("log-C")
        for number, (entropy, colour) in enumerate(zip(movement.entropies, movement.colours, strict=True), start=2):
            (line,) = axes.plot(movement.steps, entropy, color=colour, linewidth=1.4, label=f"module {number}")
            line.set_gid(f"entropy-{number}")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(x=0.01)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, ncols=1 + len(movement.real_gates) // 9)
        self.cursor = axes.axvline(0, color=canvas.END, linewidth=1.2)
        self.cursor.set_gid("step")

    def show(self, time: int) -> None:
        """Changes the figure to the t-th of the steps."""
        movement = self.movement
        step = int(movement.steps[time])
        colours = f"colours {movement.range_text}"
        about = f"{colours}; {movement.mark_text}" if movement.marked else colours
        self.title.set_text(f"{movement.name}: real gates after step {step:,} of {int(movement.steps[-1]):,}\n{about}")
        self.cursor.set_xdata([step, step])
        for image, gates in zip(self.images, movement.real_gates, strict=True):
            image.set_data(gates[time])
        if movement.marked:
            for mark, chosen in zip(self.marks, movement.chosen(time), strict=True):
                mark.set_data(chosen[:, 1], chosen[:, 0])

    def frames(self) -> Iterator[np.ndarray]:
        """The pixels (height, width, 3) of every step; what does not move is drawn once."""
        moving = [self.title, self.cursor, *self.images, *self.marks]
        for artist in moving:
            artist.set_animated(True)
        self.canvas.draw()
        still = self.canvas.copy_from_bbox(self.figure.bbox)
        for time in self.movement.spread(MOST_VALUES):
            self.canvas.restore_region(still)
            self.show(time)
            for artist in moving:
                artist.axes.draw_artist(artist) if artist.axes else artist.draw(self.canvas.get_renderer())
            yield np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
