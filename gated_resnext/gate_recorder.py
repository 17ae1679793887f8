"""How the gates move while Keras' `fit` trains a network."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from gated_resnext.aggregation import GatedAggregation
from gated_resnext.branches import GatedBranches
from gated_resnext.drawing import canvas, gate_movement
from gated_resnext.errors import UserError
from gated_resnext.nested import layers_of


class GateRecorder(keras.callbacks.Callback):
    """A callback of `fit` that keeps the real gates at some steps, to draw how they moved.

    It goes on where it was in a second `fit`.

    Args:
        every: steps from one recording to the next; None for one at the end of each epoch. The first is of the
            beginning.

    Attributes:
        steps: after how many of the optimizer's steps each recording was made.

    Example:

    >>> recorder = GateRecorder(every=10)
    >>> # model.fit(images, labels, callbacks=[recorder]); recorder.draw("gates.gif")
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError(f"every must be a whole number of steps, at least 1, or None. Received: every={every!r}")
        self.every = every
        self.steps: list[int] = []
        self._recordings: list[list[np.ndarray]] = []

    @property
    def real_gates(self) -> list[np.ndarray]:
        """Of each module that learns gates, in order, (T, C, C) at the T steps; row j has the inputs of block j."""
        return [np.stack(recordings) for recordings in zip(*self._recordings, strict=True)]

    def draw(self, path: canvas.Path) -> None:
        """Draws how they moved: a .gif or a page with a slider, .html; as they are now, .svg or .png.

        Raises:
            UserError: if the path ends otherwise, nothing was recorded, or the modules are not of one number of blocks
                and one K.
        """
        canvas.ending(path, gate_movement.ENDINGS)
        if not self.steps:
            raise UserError("no gates are recorded: give the recorder to fit, as one of its callbacks")
        gates, fan_ins = self.real_gates, {gate.fan_in for gate in _learned(self.model)}
        shapes = {gate.shape[1:] for gate in gates}
        if len(shapes) > 1 or len(fan_ins) > 1:
            raise UserError(
                f"one picture is of modules with one number of blocks and one K. Received: {sorted(shapes)} and K of "
                f"{sorted(fan_ins)}"
            )
        movement = gate_movement.Movement(self.model.name, fan_ins.pop(), np.array(self.steps), gates)
        gate_movement.movement_picture(movement, path)

    def on_train_begin(self, logs: Any = None) -> None:
        if not _learned(self.model):
            raise UserError(f"{self.model.name} has no gates that learn: its wiring is fixed, or it has none")
        self._record()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.every is not None and self._step() - self.steps[-1] >= self.every:
            self._record()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.every is None:
            self._record()

    def on_train_end(self, logs: Any = None) -> None:
        self._record()

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def _record(self) -> None:
        if not self.steps or self._step() > self.steps[-1]:
            self.steps.append(self._step())
            self._recordings.append([np.array(gate.real_gates) for gate in _learned(self.model)])


def _learned(model: keras.Model) -> list[GatedAggregation]:
    """The layers of a model, and of its branches, whose gates are learned, in order."""
    gates = [getattr(layer, "gate", layer) for layer in layers_of(model, (GatedBranches, GatedAggregation))]
    return [gate for gate in gates if hasattr(gate, "real_gates")]
