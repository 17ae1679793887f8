"""What is drawn of a network: wiring, gates and learning curve, of a training, of a card of the zoo or of a file."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gated_resnext import files, gate_history, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing.charts import Curve
from gated_resnext.drawing.gate_movement import Movement
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES
from gated_resnext.trained import name_of
from gated_resnext.workdir import Run, read_metrics


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to be drawn.

    Args:
        name: of the network.
        place: where it was found, as the user has it.
        architecture: of the network.
        found: its card, or the result of its training; None where that has not ended.
        workdir: of its training; None for one of the zoo or of a file.
        gates: its real gates, of a file's that still learns them.
    """

    name: str
    place: str
    architecture: Architecture
    found: Any
    workdir: pathlib.Path | None = None
    gates: list[np.ndarray] | None = None

    @classmethod
    def of_entry(cls, name: str) -> Subject:
        """A network of the zoo.

        Raises:
            UserError: if there is none of that name, or nothing is published of it.
        """
        architecture, card = zoo.architecture(name), zoo.card(name)
        if card is None:
            raise UserError(f"{name} has no published weights; train it: python -m gated_resnext.train --entry={name}")
        return cls(name, name, architecture, card)

    @classmethod
    def of_workdir(cls, folder: str | os.PathLike[str]) -> Subject:
        """The network of a training, which may be under way.

        Raises:
            UserError: if the folder is no workdir.
        """
        workdir = pathlib.Path(folder).expanduser()
        run, result = Run.read(workdir), workdir / "result.json"
        found = files.read_json(result) if result.is_file() else None
        return cls(run.entry, str(folder), run.architecture, found, workdir)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Subject:
        """The network of a .keras file.

        Raises:
            UserError: if it is not there, is damaged, or holds another kind of model.
        """
        from gated_resnext.model import GatedResNeXt, load

        model = load(path)
        if not isinstance(model, GatedResNeXt):
            raise UserError(f"{path} holds a {type(model).__name__}; a GatedResNeXt is drawn (others: docs/beyond.md)")
        found = {"connectivity": model.wiring().to_dict()}
        return cls(name_of(path), str(path), model.architecture, found, gates=model.real_gates() or None)

    def wiring(self) -> Connectivity:
        """The wiring it ended with.

        Raises:
            UserError: if its training has not ended, or what it left is damaged.
        """
        if self.found is None and not (self.workdir and (self.workdir / "result.json").is_file()):
            raise UserError(f"{self.place} has no result.json: its training has not ended; the same command goes on")
        full = Connectivity.full(self.architecture.modules, self.architecture.cardinality)
        try:
            fields = self.found["connectivity"]
            wiring = Connectivity.from_dict(fields) if fields else full
            if len(wiring.blocks) != self.architecture.modules:
                raise ValueError(f"{len(wiring.blocks)} modules instead of {self.architecture.modules}")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.place} holds no wiring of {self.name}: {error}") from None
        return wiring

    def real_gates(self) -> list[np.ndarray] | None:
        """The gates of modules 2 to M, at the moment the wiring was frozen; None where they were not kept.

        Of a network with real-valued gates, whose wiring is never frozen, they are those of the last recording.

        Raises:
            UserError: if a file is damaged or of another network.
        """
        if self.workdir is None:
            return self.gates
        path = self.workdir / "gates.npz"
        if path.is_file():
            named = files.read_arrays(path)
            gates = [named[name] for name in (f"module{number}" for number in self._gated) if name in named]
            self._check(gates, path)
            return gates
        if self.architecture.gates == "real" and (self.workdir / gate_history.FOLDER).is_dir():
            return [history[-1] for history in self.movement().real_gates]
        return None

    def movement(self) -> Movement:
        """How its gates moved.

        Raises:
            UserError: if that was not recorded.
        """
        if self.workdir is None:
            raise UserError(f"{self.place} does not keep how the gates moved; give the --workdir of a training")
        steps, gates = gate_history.read(self.workdir)
        self._check([history[0] for history in gates], self.workdir / gate_history.FOLDER)
        return Movement(self.name, self.architecture.fan_in, steps, gates)

    def curve(self) -> Curve:
        """What its training reached, round by round.

        Raises:
            UserError: if no round has ended, or what is told of them is damaged.
        """
        try:
            if self.workdir is None and "curve" not in self.found:
                raise UserError(f"{self.place} holds no learning curve; give the --workdir of a training")
            curve = self._curve_of_card() if self.workdir is None else _curve_of_rows(read_metrics(self.workdir))
            sizes = {len(values) for values in (curve.epochs, curve.loss, curve.test_top1)}
            np.asarray([curve.epochs, curve.loss, curve.test_top1], float)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.place} holds no learning curve of {self.name}: {error!r}") from None
        if sizes == {0}:
            raise UserError(f"{self.place} has no learning curve yet: no round of its training has ended")
        return curve

    def _curve_of_card(self) -> Curve:
        epochs, loss, test_top1 = zip(*self.found["curve"], strict=True)
        schedule = RECIPES[self.found["recipe"]]
        ends = itertools.accumulate(phase.epochs for phase in schedule.phases)
        scale = self.found["epochs"] / schedule.epochs
        return Curve(epochs, loss, test_top1, phase_ends=[scale * end for end in ends])

    @property
    def _gated(self) -> range:
        return range(2, self.architecture.modules + 1)

    def _check(self, gates: Sequence[np.ndarray], path: pathlib.Path) -> None:
        shape = (self.architecture.cardinality,) * 2
        if [gate.shape for gate in gates] != [shape for _ in self._gated]:
            raise UserError(f"{path} does not hold the gates of {self.architecture}; delete it or draw another network")


def _curve_of_rows(rows: Sequence[dict[str, Any]]) -> Curve:
    ends = {row["phase"]: row["epoch"] for row in rows}
    epochs, loss, test_top1, top1, test_loss = (
        [row[name] for row in rows] for name in ("epoch", "loss", "test_top1", "top1", "test_loss")
    )
    return Curve(epochs, loss, test_top1, top1, test_loss, list(ends.values()))
