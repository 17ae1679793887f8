"""Runs the phases of a recipe with `model.fit`, in a workdir that training again resumes.

The workdir holds: `run.json` (what is trained), `checkpoint.npz` (the newest state), `metrics.jsonl` and `tensorboard/`
(one row a round), and at the end `model.keras`, `gates.npz` and `result.json`.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gated_resnext
from gated_resnext import files, gates, pruning
from gated_resnext.connectivity import Connectivity
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD
from gated_resnext.recipes import Phase, Steps
from gated_resnext.workdir import Run, check, read_metrics

STRATEGIES = ("auto", "one_device", "mirrored")


def strategy(name: str = "auto") -> tf.distribute.Strategy:
    """The tf.distribute strategy of a name: "auto" mirrors over the GPUs, or else the CPUs, where there are several."""
    if name not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}. Received: {name!r}")
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "mirrored" or (name == "auto" and len(devices) > 1):
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def train(
    run: Run,
    workdir: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    scope: tf.distribute.Strategy | None = None,
) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates.

    Args:
        run: what to train.
        workdir: folder of the run; made if it is not there.
        data_dir: folder of tensorflow-datasets.
        scope: a tf.distribute strategy; None for the one in force.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        UserError: if the workdir is of another run, its checkpoint is damaged, the data is not there, or the loss is no
            longer finite.

    Reference:
        Section 2.2, Algorithm 1 and Appendix E of the paper.
    """
    return _Training(run, pathlib.Path(workdir), data_dir, scope or tf.distribute.get_strategy()).run_phases()


def top1(model: GatedResNeXt, images: Images) -> float:
    """Share of the test images whose most probable class is theirs."""
    hits = sum(int((model.predict_on_batch(x).argmax(-1) == y.numpy()).sum()) for x, y in images.test())
    return hits / len(images)


class _Training:
    """The state of one run: the network of the current phase and where it stands."""

    def __init__(self, run: Run, workdir: pathlib.Path, data_dir: Any, scope: tf.distribute.Strategy) -> None:
        self.run, self.workdir, self.scope = run, workdir, scope
        if run.recipe.batch_size % scope.num_replicas_in_sync:
            raise UserError(
                f"the batch of {run.recipe.batch_size} does not divide into {scope.num_replicas_in_sync} replicas"
            )
        check(run, workdir)
        self.images = Images(run.dataset, run.recipe, data_dir)
        files.write_json(workdir / "run.json", run.to_dict())
        _keep_freed_memory()
        self.schedule: tuple[Steps, ...] = run.recipe.steps(self.images.steps_per_epoch)
        self.phase = self.round = self.step = 0
        self.seconds = 0.0
        self.fixed_model: GatedResNeXt | None = None
        self.wiring = Connectivity.initial(run.architecture, run.wiring, seed=run.seed)

    @property
    def total_steps(self) -> int:
        return sum(steps.epochs * steps.steps for steps in self.schedule)

    def run_phases(self) -> dict[str, Any]:
        """All that is left of the schedule, then the evaluation."""
        state = self._restore()
        while self.phase < len(self.schedule):
            phase, steps = self.run.recipe.phases[self.phase], self.schedule[self.phase]
            if phase.gate_learning_rate == 0 and self.wiring is None:
                self._freeze(state)
            model = self._compiled(phase, state)
            if self.round == 0:
                print(self._headline(phase, steps), flush=True)
            left = (steps.epochs - self.round) * steps.steps
            batches = self.images.train(seed=self.run.seed, first_step=self.step, steps=left)
            model.fit(
                batches,
                epochs=steps.epochs,
                initial_epoch=self.round,
                steps_per_epoch=steps.steps,
                validation_data=self.images.test(),
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[_Rounds(self, phase, steps), keras.callbacks.TerminateOnNaN()],
            )
            state = _state(model)
            self.phase, self.round = self.phase + 1, 0
        return self._finish(state)

    def _headline(self, phase: Phase, steps: Steps) -> str:
        gates_are = f"gates learned at rate {phase.gate_learning_rate:g}" if self.wiring is None else "wiring fixed"
        if not self.run.architecture.learnable:
            gates_are = "no gates"
        passes = steps.epochs * steps.steps / self.images.steps_per_epoch
        which, rate = f"Phase {self.phase + 1} of {len(self.schedule)}", f"{phase.learning_rate:g}"
        return f"{which}: {passes:.3g} epochs at rate {rate}, {gates_are}"

    def _network(self, activation: str | None = None) -> GatedResNeXt:
        return GatedResNeXt(self.run.architecture, self.wiring, activation, seed=self.run.seed, name=self.run.entry)

    def _compiled(self, phase: Phase, state: dict[str, np.ndarray] | None) -> GatedResNeXt:
        """The network of a phase with its optimizer, holding `state` where there is one."""
        if self.fixed_model is not None:  # built and traced in the phase before
            optimizer = self.fixed_model.optimizer
            with self.scope.scope():
                for variable in optimizer.variables:
                    variable.assign(keras.ops.zeros_like(variable))
                optimizer.learning_rate = phase.learning_rate
            return self.fixed_model
        recipe = self.run.recipe
        with self.scope.scope():
            model = self._network()
            optimizer = GateConnectSGD(
                phase.learning_rate, phase.gate_learning_rate, l2=recipe.weight_decay, momentum=recipe.momentum
            )
            model.compile(
                optimizer,
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=[keras.metrics.SparseCategoricalAccuracy(name="top1")],
                jit_compile=False,  # whether XLA pays on this graph is not measured yet; Keras would turn it on unasked
            )
            optimizer.build(model.trainable_variables)
            if state is None:
                model.get_layer("standardize").mean_image.assign(self.images.mean_image())
            else:
                _assign(model, state, with_optimizer=self.round > 0)
        if not model.real_gates():
            self.fixed_model = model
        return model

    def _freeze(self, state: dict[str, np.ndarray] | None) -> None:
        """Fixes the wiring to the top K of the gates in `state` and keeps the gates for the record."""
        if state is None or not self.run.architecture.learnable or self.run.architecture.gates == "real":
            return
        real_gates = [state[f"{plan.name}_gate/real_gates"] for plan in self.run.architecture.plan()[1:]]
        files.write_arrays(
            self.workdir / "gates.npz", {f"module{i}": gate for i, gate in enumerate(real_gates, start=2)}
        )
        arch = self.run.architecture
        self.wiring = Connectivity.top_k(real_gates, arch.fan_in, first=arch.cardinality)
        for name in [name for name in state if name.endswith(pruning.GATE_STATE)]:
            del state[name]

    def save(self, model: GatedResNeXt) -> None:
        """Replaces the checkpoint by the state after the round that just ended."""
        place = {
            "phase": self.phase,
            "round": self.round,
            "step": self.step,
            "seconds": self.seconds,
            "wiring": self.wiring and self.wiring.to_dict(),
        }
        files.write_arrays(self.workdir / "checkpoint.npz", {**_state(model), "place": np.array(json.dumps(place))})

    def _restore(self) -> dict[str, np.ndarray] | None:
        """The state of the checkpoint, and this object set to its place; None at the start of a run."""
        path = self.workdir / "checkpoint.npz"
        metrics = self.workdir / "metrics.jsonl"
        if not path.is_file():
            metrics.unlink(missing_ok=True)
            return None
        state = files.read_arrays(path)
        try:
            place = json.loads(str(state.pop("place")))
            self.phase, self.round, self.step = place["phase"], place["round"], place["step"]
            self.seconds = place["seconds"]
            self.wiring = place["wiring"] and Connectivity.from_dict(place["wiring"])
            steps = self.schedule[self.phase]
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"{path} is no checkpoint of this run ({error}); delete it to start anew") from None
        rows = [row for row in read_metrics(self.workdir) if row["step"] <= self.step]
        with files.replacing(metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"Resuming {self.run.entry} after step {self.step} of {self.total_steps}", flush=True)
        if self.round == steps.epochs:
            self.phase, self.round = self.phase + 1, 0
        return state

    def _finish(self, state: dict[str, np.ndarray] | None) -> dict[str, Any]:
        """Writes the network and what it reaches on the test images."""
        model = self._network("softmax")
        if state is not None:
            _assign(model, state, with_optimizer=False)
        arch, wiring = self.run.architecture, model.wiring()
        result = {
            "entry": self.run.entry,
            "dataset": self.run.dataset,
            "recipe": self.run.recipe.name,
            "epochs": round(self.step / self.images.steps_per_epoch, 3),
            "steps": self.step,
            "seed": self.run.seed,
            "seconds": round(self.seconds, 1),
            "top1": top1(model, self.images),
            "test_images": len(self.images),
            "blocks": list(wiring.blocks),
            "active_blocks": list(wiring.active_blocks),
            "parameters": arch.parameters(wiring.blocks),
            "parameters_pruned": arch.parameters(wiring.active_blocks),
            "connectivity": None if model.connectivity is None else model.connectivity.to_dict(),
            "labels": self.images.labels,
            "version": gated_resnext.__version__,
        }
        with files.replacing(self.workdir / "model.keras") as temporary:
            model.save(temporary)
        files.write_json(self.workdir / "result.json", result)
        return result


class _Rounds(keras.callbacks.Callback):
    """After each round: a row of metrics, the time left, a checkpoint."""

    def __init__(self, training: _Training, phase: Phase, steps: Steps) -> None:
        super().__init__()
        self.training, self.phase, self.steps = training, phase, steps
        self.writer = tf.summary.create_file_writer(str(training.workdir / "tensorboard"))
        self.first_step, self.first_seconds = training.step, training.seconds
        self.began = self.spoken = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.round_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Where there is no terminal to draw a bar on: a line every half minute."""
        now = time.perf_counter()
        if sys.stdout.isatty() or now - self.spoken < 30:
            return
        self.spoken = now
        rate = (batch + 1) / (now - self.round_began)
        left = (self.training.total_steps - self.training.step - batch - 1) / rate / 60
        images_per_s = rate * self.training.run.recipe.batch_size
        print(f"  step {batch + 1} of {self.steps.steps}, {images_per_s:.0f} images/s, {left:.0f} min left", flush=True)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.round_trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = {} if logs is None else logs
        training, recipe = self.training, self.training.run.recipe
        if not np.isfinite(logs["loss"]):
            raise UserError(
                f"the loss is {logs['loss']} after step {training.step + self.steps.steps} in phase "
                f"{training.phase + 1} at learning rate {self.phase.learning_rate:g}; the last good checkpoint is that "
                f"of step {training.step}. Lower the rates in a recipe of your own and train into a new workdir"
            )
        training.step += self.steps.steps
        training.round = epoch + 1
        spent = time.perf_counter() - self.began
        training.seconds = self.first_seconds + spent
        row: dict[str, Any] = {
            "phase": training.phase + 1,
            "round": epoch + 1,
            "step": training.step,
            "epoch": round(training.step / training.images.steps_per_epoch, 4),
            "loss": float(logs["loss"]),
            "top1": float(logs["top1"]),
            "test_loss": float(logs["val_loss"]),
            "test_top1": float(logs["val_top1"]),
            "learning_rate": self.phase.learning_rate,
            "gate_learning_rate": self.phase.gate_learning_rate,
            "images_per_s": round(self.steps.steps * recipe.batch_size / (self.round_trained - self.round_began), 1),
            "seconds": round(training.seconds, 2),
        }
        real_gates = self.model.real_gates()
        if real_gates:
            row["gate_entropy"] = [round(float(gates.entropy(gate)), 5) for gate in real_gates]
        row["active_blocks"] = list(self.model.wiring().active_blocks)
        with open(training.workdir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with self.writer.as_default(step=training.step):
            for name, value in _scalars(row):
                tf.summary.scalar(name, value)
        self.writer.flush()
        training.save(self.model)
        done = training.step - self.first_step
        logs["minutes_left"] = (training.total_steps - training.step) * spent / done / 60


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row of metrics, a list's one by one."""
    for name, value in row.items():
        if isinstance(value, list):
            # Entropies are of the gates of modules 2 to M, active blocks of all modules.
            first = 2 if name == "gate_entropy" else 1
            yield from ((f"{name}/module{number}", item) for number, item in enumerate(value, start=first))
        elif name != "step":
            yield name, value


def _state(model: GatedResNeXt) -> dict[str, np.ndarray]:
    """Weights and optimizer state by name."""
    optimizer = {f"optimizer/{v.path}": keras.ops.convert_to_numpy(v) for v in model.optimizer.variables}
    return {**model.weights_by_name(), **optimizer}


def _assign(model: GatedResNeXt, state: dict[str, np.ndarray], *, with_optimizer: bool) -> None:
    """The inverse of `_state`."""
    try:
        model.assign_by_name({name: value for name, value in state.items() if not name.startswith("optimizer/")})
        if with_optimizer:
            for variable in model.optimizer.variables:
                variable.assign(state[f"optimizer/{variable.path}"])
    except (KeyError, ValueError) as error:
        raise UserError(f"the checkpoint is of another network ({error}); delete it to start anew") from None


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: else every wide tensor of a step is mapped and faulted in anew."""
    if not sys.platform.startswith("linux") or tf.config.list_logical_devices("GPU"):
        return
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 512 << 20)):
            libc.mallopt(option, value)
