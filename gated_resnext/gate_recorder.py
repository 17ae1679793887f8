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

    It records the gates of a `GatedResNeXt`, of `GatedBranches` and of `GatedAggregation`, at the beginning and the end
    of `fit` too. A second `fit` goes on with the same recorder, also where the model was compiled anew. It is of one
    model, and of one process; beside `BackupAndRestore` it stands behind it.

    Args:
        every: at least so many steps from one recording to the next; None for one at the end of each epoch.

    Attributes:
        steps: after how many steps of training each recording was made.

    Example:

    >>> recorder = GateRecorder(every=10)
    >>> # model.fit(images, labels, callbacks=[recorder]); recorder.draw("gates.gif")
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError(f"every must be a whole number of steps, at least 1, or None. Received: every={every!r}")
        self.every = every
        self.async_safe = every is None  # for Keras: nothing waits for a batch then
        self.steps: list[int] = []
        self._recordings: list[list[np.ndarray]] = []
        self._of: tuple[Any, Any] = (None, None)  # model and optimizer
        self._before = self._batch = self._since = 0

    @property
    def real_gates(self) -> list[np.ndarray]:
        """Of each module that learns gates, in order, (T, J, C) at the T steps; row j has the inputs of block j."""
        return [np.stack(recordings) for recordings in zip(*self._recordings, strict=True)]

    def draw(self, path: canvas.Path) -> None:
        """Draws how they moved: a .gif or a page with a slider, .html; as they were at last, .svg or .png.

        Raises:
            UserError: if the path ends otherwise, nothing was recorded, or the modules are not all of one number of
                blocks and one K.
        """
        canvas.ending(path, gate_movement.ENDINGS)
        if not self.steps:
            raise UserError("no gates are recorded: give the recorder to fit, as one of its callbacks")
        gates, fan_ins = self.real_gates, {gate.fan_in for gate in _learned(self.model)}
        sizes = {size for gate in gates for size in gate.shape[1:]}
        if len(sizes) > 1 or len(fan_ins) > 1:
            raise UserError(
                "one picture is of modules with one number of blocks and one K. Received: modules of "
                f"{' and '.join(map(str, sorted(sizes)))} blocks, K of {' and '.join(map(str, sorted(fan_ins)))}"
            )
        movement = gate_movement.Movement(self.model.name, fan_ins.pop(), np.array(self.steps), gates)
        gate_movement.movement_picture(movement, path)

    def on_train_begin(self, logs: Any = None) -> None:
        model, optimizer = self._of
        if model is not None and model is not self.model:
            raise UserError(f"a recorder is of one model: take a new one for {self.model.name}")
        if not self.model.built:
            raise UserError(f"{self.model.name} has no weights before its first step: build it, or begin with an Input")
        if not _learned(self.model):
            raise UserError(
                f"{self.model.name} has no GatedResNeXt, GatedBranches or GatedAggregation whose gates are learned"
            )
        if self.steps and self.model.optimizer is not optimizer:  # which counts from 0
            self._before = self.steps[-1] - self._counted()
        self._of = self.model, self.model.optimizer
        while self.steps and self.steps[-1] > self._step():  # of what was gone back from
            self.steps.pop()
            self._recordings.pop()
        self._record()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.every is None:
            return
        self._since += batch - self._batch
        self._batch = batch
        if self._since >= self.every:
            self._record()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.every is None:
            self._record()

    def on_train_end(self, logs: Any = None) -> None:
        self._record()

    def _counted(self) -> int:
        """Steps, by the optimizer."""
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _step(self) -> int:
        return self._before + self._counted()

    def _record(self) -> None:
        self._since, step = 0, self._step()
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            gates = [keras.ops.convert_to_numpy(gate.real_gates) for gate in _learned(self.model)]
            self._recordings.append([np.array(gate) for gate in gates])


def _learned(model: keras.Model) -> list[GatedAggregation]:
    """The layers of a model, and of models in it, whose gates are learned, in order."""
    gates = [getattr(layer, "gate", layer) for layer in layers_of(model, (GatedBranches, GatedAggregation))]
    return [gate for gate in gates if hasattr(gate, "real_gates")]
