"""How the gates moved: the real gates of a run at about a hundred steps of its learning, a small file a step.

Plain numpy: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import bisect
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from gated_resnext import files
from gated_resnext.errors import UserError

FOLDER = "gates"
# Enough for a moving picture of ten seconds; the gates of {101,4,64} take 53 MB at that.
RECORDINGS = 100


def recorded_steps(learning_steps: int) -> tuple[int, ...]:
    """After which steps the gates are written down: none, where there is nothing to learn.

    Args:
        learning_steps: steps of the phases in which gates are learned.

    Returns:
        0, the end of the learning and as many between as `RECORDINGS` allows, evenly spread; a function of the number
        of steps alone, so that a run that is resumed keeps to it.

    Example:

    >>> recorded_steps(3), len(recorded_steps(46_800)), recorded_steps(46_800)[:3]
    ((0, 1, 2, 3), 101, (0, 468, 936))
    """
    if learning_steps == 0:
        return ()
    parts = min(RECORDINGS, learning_steps)
    return tuple(round(i * learning_steps / parts) for i in range(parts + 1))


class GateHistory:
    """The recordings of a run, written while it trains.

    A step is a function of the state before it, so a run that is resumed writes again, and the same, what it had
    written after its checkpoint.

    Args:
        workdir: of the run.
        learning_steps: steps of the phases in which gates are learned.
    """

    def __init__(self, workdir: pathlib.Path, learning_steps: int) -> None:
        self.folder, self.steps = workdir / FOLDER, recorded_steps(learning_steps)

    def due(self, step: int) -> bool:
        """Whether the gates are written down after this step."""
        return step in self.steps

    def until_next(self, step: int) -> float:
        """Steps from this one to the next after which they are; infinite after the last."""
        place = bisect.bisect_right(self.steps, step)
        return self.steps[place] - step if place < len(self.steps) else float("inf")

    def write(self, step: int, real_gates: Sequence[np.ndarray]) -> None:
        """Writes down the gates of modules 2 to M, (C, C) each."""
        named = {f"module{number}": gate for number, gate in enumerate(real_gates, start=2)}
        files.write_arrays(self.folder / f"{step}.npz", named)

    def discard(self, after: int) -> None:
        """Removes the recordings of later steps."""
        for step, path in _found(self.folder):
            if step > after:
                path.unlink()


def read(workdir: str | os.PathLike[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """What a run recorded so far.

    Returns:
        The steps, (T,) int64 and ascending, and for each of the modules 2 to M its real gates, (T, C, C) float32.

    Raises:
        UserError: if nothing was recorded, or a recording is damaged.
    """
    found = sorted(_found(pathlib.Path(workdir) / FOLDER))
    if not found:
        raise UserError(
            f"no gates are recorded in {workdir}: a training does that while it learns its wiring, if the wiring is "
            "learned; train an entry whose name ends in k1, k2, ..."
        )
    recordings = [files.read_arrays(path) for _, path in found]
    shapes = [{name: gate.shape for name, gate in recording.items()} for recording in recordings]
    modules = [f"module{number}" for number in range(2, len(shapes[0]) + 2)]
    for (_, path), shape in zip(found, shapes, strict=True):
        if shape != shapes[0] or set(shape) != set(modules):
            raise UserError(f"{path} is no recording of the gates of modules 2 to {len(modules) + 1}; delete it")
    steps = np.array([step for step, _ in found])
    return steps, [np.stack([recording[name] for recording in recordings]) for name in modules]


def _found(folder: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
    for path in folder.glob("*.npz"):
        if re.fullmatch(r"\d+", path.stem):
            yield int(path.stem), path
