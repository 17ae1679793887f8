"""The kinds of pictures by name: of what, into which files, of how many networks."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import canvas, charts, gate_movement
from gated_resnext.drawing.subjects import Subject
from gated_resnext.drawing.wiring import wiring_picture
from gated_resnext.errors import UserError


class Kind(NamedTuple):
    """A kind of picture: `draw` writes it and tells what is in it."""

    draw: Callable[[Sequence[Subject], canvas.Path], str]
    endings: tuple[str, ...]
    of_one: bool
    default: str


def draw(what: str, subjects: Sequence[Subject], path: canvas.Path) -> str:
    """Draws networks.

    Args:
        what: a key of `KINDS`.
        subjects: the networks.
        path: of the file, whose ending says of which kind it is.

    Returns:
        What is in the picture, in a line a network.

    Raises:
        UserError: if the path ends otherwise, there are too many networks, or one of them does not hold what is to be
            drawn.
    """
    kind = KINDS[what]
    canvas.ending(path, kind.endings)
    if kind.of_one and len(subjects) > 1:
        raise UserError(f"--what={what} draws one network. Received: {', '.join(each.place for each in subjects)}")
    return kind.draw(subjects, path)


def _wiring(subjects: Sequence[Subject], path: canvas.Path) -> str:
    [subject] = subjects
    learned, arch = subject.wiring(), subject.architecture
    full = Connectivity.full(arch.modules, arch.cardinality)
    panels = [("full (ResNeXt)", full), (subject.name, learned)]
    wiring_picture(panels, path, real_gates=subject.real_gates())
    return f"{subject.name}: {sum(learned.active_blocks)} of {sum(learned.blocks)} blocks are active"


def _active(subjects: Sequence[Subject], path: canvas.Path) -> str:
    cardinalities = [subject.architecture.cardinality for subject in subjects]
    if len(set(cardinalities)) > 1:
        each = ", ".join(f"{one.place} has {count}" for one, count in zip(subjects, cardinalities, strict=True))
        raise UserError(f"--what=active compares networks of the same number of blocks a module: {each}")
    series = {name: subject.wiring().active_blocks for name, subject in _named(subjects).items()}
    charts.active_blocks_chart(series, cardinalities[0], path)
    return "\n".join(
        f"{name}: {' '.join(map(str, active))} of {cardinalities[0]} blocks are active"
        for name, active in series.items()
    )


def _gates(subjects: Sequence[Subject], path: canvas.Path) -> str:
    [subject] = subjects
    movement = subject.movement()
    gate_movement.movement_picture(movement, path)
    steps = movement.steps
    return f"{subject.name}: gates at {len(steps)} steps from {steps[0]} to {steps[-1]}, {movement.range_text}"


def _curves(subjects: Sequence[Subject], path: canvas.Path) -> str:
    curves = {name: subject.curve() for name, subject in _named(subjects).items()}
    charts.curves_chart(curves, path)
    return "\n".join(
        f"{name}: {len(curve.epochs)} rounds, {100 * curve.test_top1[-1]:.2f} % top-1 after {curve.epochs[-1]:g} epochs"
        for name, curve in curves.items()
    )


def _named(subjects: Sequence[Subject]) -> dict[str, Subject]:
    """The networks by name, by where they were found those that share one, and numbered where that is the same."""
    often = collections.Counter(subject.name for subject in subjects)
    found: dict[str, Subject] = {}
    for subject in subjects:
        place = subject.name if often[subject.name] == 1 else canvas.text(subject.place)
        names = itertools.chain([place], (f"{place} ({number})" for number in itertools.count(2)))
        found[next(name for name in names if name not in found)] = subject
    return found


KINDS = {
    "wiring": Kind(_wiring, canvas.ENDINGS, True, "wiring.svg"),
    "active": Kind(_active, canvas.ENDINGS, False, "active.svg"),
    "gates": Kind(_gates, gate_movement.ENDINGS, True, "gates.html"),
    "curves": Kind(_curves, canvas.ENDINGS, False, "curves.svg"),
}
