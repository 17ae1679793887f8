"""The states of a training on disk: the newest two, each whole or not there.

Plain numpy: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gated_resnext import files
from gated_resnext.errors import UserError
from gated_resnext.scores import Scores

KEPT = 2
# A checkpoint is written so seldom that writing takes at most 1 of so many parts of the time.
PARTS = 30


@dataclasses.dataclass
class Place:
    """How far a training has come.

    Args:
        phase: number of phases completed.
        round: rounds completed in this phase.
        step: steps since the start.
        steps: of them, those in this round.
        scores: of the images of this round.
        seconds: spent so far.
        rate: factor of the phase's learning rate, below 1 after a rollback.
        rollbacks: so far.
        images: digest of what is trained and tested on.
        wiring: as a dict; None while it is learned.
        arithmetic: backend, precision, the images whose statistics batch norm takes and whether XLA compiles the steps;
            None in those of before 0.2.0.
    """

    phase: int = 0
    round: int = 0
    step: int = 0
    steps: int = 0
    scores: Scores = dataclasses.field(default_factory=Scores)
    seconds: float = 0.0
    rate: float = 1.0
    rollbacks: int = 0
    images: str = ""
    wiring: dict[str, Any] | None = None
    arithmetic: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.scores = Scores(*self.scores)  # a list, as JSON has it

    def begin_next_phase(self) -> None:
        """At the rates of its own."""
        self.phase, self.round, self.rate = self.phase + 1, 0, 1.0


PLACE = {field.name for field in dataclasses.fields(Place)}


class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: made when the first one is written.
        at_most_s: seconds of work that may be lost: how often one is due, if writing one is quick.
    """

    def __init__(self, folder: pathlib.Path, at_most_s: float = 60.0) -> None:
        self.folder, self.at_most_s = folder, at_most_s
        self._cost_s, self._written = 0.0, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another."""
        return time.monotonic() - self._written >= max(self.at_most_s, PARTS * self._cost_s)

    def write(self, place: Place, state: Mapping[str, np.ndarray]) -> None:
        """Writes one, then removes all but the newest `KEPT`."""
        began = time.monotonic()
        text = np.array(json.dumps(dataclasses.asdict(place)))
        files.write_arrays(self.folder / f"step{place.step:09d}.npz", {**state, "place": text})
        for _, path in sorted(self._found())[:-KEPT]:
            path.unlink()
        self._written = time.monotonic()
        self._cost_s = self._written - began

    def discard(self, step: int) -> None:
        """Removes those of this step and later ones."""
        for number, path in self._found():
            if number >= step:
                path.unlink()

    def newest(
        self, say: Callable[[str], None] = print, below: int | None = None
    ) -> tuple[Place, dict[str, np.ndarray]] | None:
        """The newest whole one; None where there is none at all.

        Args:
            say: is told of each that is damaged and skipped.
            below: of the steps before this one; None for all.

        Raises:
            UserError: if there are some and none is whole, or the newest whole one is of another version.
            OSError: if one cannot be read, which says nothing of its content.
        """
        found = sorted((row for row in self._found() if below is None or row[0] < below), reverse=True)
        for _, path in found:
            try:
                state = files.read_arrays(path)
                fields = json.loads(str(state.pop("place")))
                more = set(fields) - PLACE if isinstance(fields, dict) else set()
                place = None if more else Place(**fields)
            except (KeyError, ValueError, TypeError) as error:
                message = str(error) if isinstance(error, UserError) else f"{path} is no checkpoint ({error!r})"
                say(f"Skipped a damaged checkpoint: {message.split(';')[0]}")
                continue
            if place is None:
                raise UserError(
                    f"{path} is of another version of gated_resnext, which also keeps {min(more)}; go on with that "
                    "version, or choose another folder"
                )
            return place, state
        if found:
            raise UserError(f"no checkpoint in {self.folder} is whole; delete {self.folder.parent} to start anew")
        return None

    def _found(self) -> Iterator[tuple[int, pathlib.Path]]:
        for path in self.folder.glob("step*.npz"):
            if match := re.fullmatch(r"step(\d+)\.npz", path.name):
                yield int(match[1]), path
