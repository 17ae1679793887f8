"""A figure that is written when it is finished, and the looks that all pictures share."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gated_resnext import files
from gated_resnext.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Path = str | os.PathLike[str]

ENDINGS = (".svg", ".png")
# Pixels of a PNG: so many an inch, but of a tall picture no more than so many from top to bottom.
DPI, MOST_PIXELS = 160, 2000
ACTIVE, UNUSED, EDGE, END = "#2a9d5c", "#d4d7dc", "#33415c", "#c8453b"
TEXT, QUIET = "#22272e", "#6b7480"
# Of networks side by side: told apart by colour-blind eyes too (Okabe and Ito's palette, the darker ones first).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c8c00")
GATES_MAP = "viridis"  # a colour for every gate, darkest for the smallest
STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.1,  # inches
    "figure.constrained_layout.w_pad": 0.1,
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "image.composite_image": False,  # what is named in the picture stays a thing of its own
    "savefig.dpi": "figure",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gated_resnext",  # ids that do not differ from one run to the next
    "text.color": TEXT,
    "text.usetex": False,
    "text.parse_math": False,  # names have underscores, and may have dollars
    "xtick.color": QUIET,
    "xtick.labelcolor": TEXT,
    "ytick.color": QUIET,
    "ytick.labelcolor": TEXT,
}


def text(name: str) -> str:
    """A name as text: of a folder's, the bytes that are none stand as their numbers."""
    return name.encode(errors="backslashreplace").decode()


def ending(path: Path, endings: tuple[str, ...] = ENDINGS) -> str:
    """What kind of file a name asks for.

    Raises:
        UserError: if it is none of `endings`.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in endings:
        raise UserError(f"the output's name must end in {' or '.join(endings)}. Received: {str(path)!r}")
    return suffix


def check() -> None:
    """Finds that pictures can be drawn.

    Raises:
        UserError: if matplotlib is not installed, as on a machine that trains under JAX alone.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a picture needs matplotlib: pip install matplotlib")


@contextlib.contextmanager
def figure(width: float, height: float, *, layout: str | None = "constrained") -> Iterator[Figure]:
    """A figure of so many inches; what is drawn inside the `with` has the pictures' common looks."""
    check()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        dpi = min(DPI, MOST_PIXELS / max(width, height))
        yield Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")  # type: ignore[arg-type]


def legend_below(figure: Figure, handles: list[Any], most_columns: int) -> None:
    """A legend below the axes, in as many columns as there is room for; the figure grows where one has none.

    Args:
        figure: laid out by "constrained".
        handles: lines with labels, as many entries.
        most_columns: no more than these.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    labels = [handle.get_label() for handle in handles]
    labels = [f" {label}" if label.startswith("_") else label for label in labels]  # which matplotlib would leave out
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches()
    for columns in range(min(most_columns, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, labels=labels, loc="outside lower center", ncols=columns)
        needed = legend.get_window_extent(renderer).width / figure.dpi + 0.2  # inches
        if needed <= width or columns == 1:
            break
        legend.remove()
    more_rows = math.ceil(len(handles) / columns) - math.ceil(len(handles) / most_columns)
    figure.set_size_inches(max(width, needed), height + 0.22 * more_rows)


@contextlib.contextmanager
def picture(path: Path, width: float, height: float, *, layout: str | None = "constrained") -> Iterator[Figure]:
    """A figure that is written to `path`, .svg or .png, where the `with` ends well.

    Args:
        path: of the file.
        width: in inches, of which a PNG has up to `DPI` pixels each.
        height: in inches.
        layout: matplotlib's; None where the axes are placed by hand.
    """
    kind = ending(path)
    with figure(width, height, layout=layout) as drawn:
        yield drawn
        # Nothing of when and with which version it was drawn: the same picture is the same file.
        metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == ".svg" else {"Software": None}
        with files.replacing(path) as temporary:
            drawn.savefig(temporary, format=kind[1:], metadata=metadata)
