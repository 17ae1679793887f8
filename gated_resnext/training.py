"""One training: its phases, what it keeps on disk, and how it goes on from there."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import gated_resnext
from gated_resnext import files, gates, workdir
from gated_resnext.checkpoints import Checkpoints, Place
from gated_resnext.connectivity import Connectivity
from gated_resnext.engines import Engine, Loop, TrainingImages
from gated_resnext.errors import DivergedError, UserError
from gated_resnext.gate_history import GateHistory
from gated_resnext.memory import keep_freed_memory
from gated_resnext.metrics import Metrics
from gated_resnext.phase_networks import OPTIONS, Options, PhaseNetworks, state_of
from gated_resnext.progress import Progress
from gated_resnext.pruning import Weights
from gated_resnext.recipes import Phase, Rounds
from gated_resnext.scores import Scores
from gated_resnext.start import Start
from gated_resnext.termination import Termination
from gated_resnext.workdir import Run

MOST_ROLLBACKS = 5
UNUSED = "unused/"  # of a checkpoint's blocks that are not trained any more
# Seconds of one call of the compiled loop: often enough to stop, to save and to tell, seldom enough to cost nothing.
CALL_S = 0.5
TOGETHER_S = 2.0  # within which all workers are told to stop that are told by the same hand
UNDECIDED = 0.99  # of log C: above it gates differ from 1/C by less than about a fifth, for C = 8
FEW = 0.02 * 0.2 * 46_800  # rate times steps of learning, of those that the paper has on CIFAR


class Diverged(Exception):
    """The loss is not finite; `step` is the first whose weights are not to be gone on from."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what)
        self.step = step


class Training:
    """The state of one run: the network of the current phase and where it stands.

    Args:
        run: what to train.
        folder: the workdir.
        images: what `engine` gave.
        engine: what computes.
        options: of the network and its arithmetic.
        on_nan: "stop" or "rollback", where a loss is not finite.
        checkpoint_s: seconds of work that may be lost.
        termination: what tells whether to stop; None for what nobody asks.
        began: called with what trains, before the first step.
        on_round: called with every new row of the metrics.
        start: the network it begins with, where it is not a fresh one.
    """

    def __init__(
        self,
        run: Run,
        folder: pathlib.Path,
        images: TrainingImages,
        engine: Engine,
        options: Options = OPTIONS,
        on_nan: str = "stop",
        checkpoint_s: float = 60.0,
        termination: Termination | None = None,
        began: Callable[[str], None] = lambda devices: None,
        on_round: Callable[[dict[str, Any]], None] = lambda row: None,
        start: Start | None = None,
    ) -> None:
        self.run, self.folder, self.images, self.engine = run, folder, images, engine
        self.on_nan, self.began, self.on_round, self.start = on_nan, began, on_round, start
        self.termination = termination or Termination()
        self.chief = engine.chief
        if self.chief and not (folder / "run.json").is_file():
            files.write_json(folder / "run.json", run.to_dict())
        if engine.on_cpu:
            keep_freed_memory()
        self.checkpoints = Checkpoints(folder / "checkpoints", checkpoint_s)
        self.schedule: tuple[Rounds, ...] = run.recipe.steps(images.steps_per_epoch)
        self.history = GateHistory(folder, self._learning_steps)
        first = None if start is None else functools.partial(start.fitted, labels=images.labels)
        self.networks = PhaseNetworks(run, engine, images.mean_image, options, first)
        self.place = self._start()
        self.saved = (-1, -1)
        self.rates: dict[int, float] = {}  # by phase, where one was rolled back
        self.call_steps = 1
        self.progress = Progress(
            self.total_steps,
            sum(steps.rounds for steps in self.schedule),
            run.recipe.batch_size,
            silent=not self.chief,
        )

    def _start(self) -> Place:
        """The place of a run before its first step."""
        return Place(images=self.images.digest(), arithmetic=self._arithmetic)

    @property
    def _arithmetic(self) -> dict[str, Any]:
        """What a run keeps to its end beside `Run`: the result depends on it."""
        options = self.networks.options
        parts = 1 if options.synchronized else self.engine.replicas
        return {
            "backend": keras.backend.backend(),
            "precision": options.precision,
            "batch_norm_images": self.run.recipe.batch_size // parts,
            "jit_compile": self.engine.jit_compile,
        }

    @property
    def total_steps(self) -> int:
        return sum(steps.total for steps in self.schedule)

    @property
    def _learning_steps(self) -> int:
        """Those in which gates are learned."""
        if self.run.wiring != "learned" or not self.run.architecture.learnable:
            return 0
        phases = zip(self.run.recipe.phases, self.schedule, strict=True)
        return sum(steps.total for phase, steps in phases if phase.gate_learning_rate > 0)

    @property
    def rounds_done(self) -> int:
        return sum(steps.rounds for steps in self.schedule[: self.place.phase]) + self.place.round

    def run_phases(self) -> dict[str, Any]:
        """All that is left of the schedule, then the evaluation."""
        state, momenta = self._restore(), True
        self.began_at = self.place.step
        if self.place.phase < len(self.schedule):
            self.progress.say(self._on_what())
            if state is None:
                self.images.check()
            if self.chief:
                self.began(self.engine.devices)
        while self.place.phase < len(self.schedule):
            phase, steps = self.run.recipe.phases[self.place.phase], self.schedule[self.place.phase]
            fresh = self.place.round == self.place.steps == 0
            if state is None and self.start is not None:
                kept = "" if self.start.tells_apart(self.images.labels) else ", its classifier anew"
                self.progress.say(f"Beginning with the weights of {self.start.name}{kept}")
            if phase.gate_learning_rate == 0 and self.networks.wiring is None:
                state = self._freeze(state)
            loop = self.networks.loop(phase, self._rate(phase), state, fresh=fresh or not momenta)
            if fresh:
                self.progress.say(self._headline(phase, steps))
            try:
                self._run_phase(loop, phase, steps)
            except Diverged as error:
                state, momenta = self._roll_back(error), False  # they go on at the rate that led there
                continue
            state, momenta = state_of(loop), True
            self.place.begin_next_phase()
        return self._finish(state)

    def _on_what(self) -> str:
        """Devices and images."""
        images = self.images
        line = (
            f"Training on {self.engine.devices}: {len(images.labels)} classes, {images.count('train'):,} training and "
            f"{len(images):,} test images of {images.name}"
        )
        return f"{line}; left alone there: {images.left_alone}" if images.left_alone else line

    def _headline(self, phase: Phase, steps: Rounds) -> str:
        rate = phase.gate_learning_rate
        gates_are = f"gates learned at rate {rate:g}" if rate else "gates kept"
        arch, learning = self.run.architecture, self._learning_steps
        decide = arch.has_binary_gates and arch.fan_in < arch.cardinality and self.place.phase == 0
        if decide and 0 < rate * learning < FEW:
            gates_are += f" in {learning:,} steps, few to decide them (--gate_learning_rate, in a new --workdir)"
        if self.networks.wiring is not None:
            gates_are = "wiring fixed"
        if not self.run.architecture.learnable:
            gates_are = "no gates"
        passes = steps.total / self.images.steps_per_epoch
        which = f"Phase {self.place.phase + 1} of {len(self.schedule)}"
        return f"{which}: {passes:.3g} epochs at rate {self._rate(phase):g}, {gates_are}"

    def _rate(self, phase: Phase) -> float:
        return phase.learning_rate * self.place.rate

    def _freeze(self, state: Weights | None) -> Weights | None:
        """Fixes the wiring, and keeps the gates for the record."""
        state, real_gates = self.networks.freeze(state)
        if real_gates and self.chief:
            arrays = {f"module{i}": gate for i, gate in enumerate(real_gates, start=2)}
            files.write_arrays(self.folder / "gates.npz", arrays)
            self.progress.say(self._frozen(real_gates))
        return state

    def _frozen(self, real_gates: list[np.ndarray]) -> str:
        """What the gates came to, and what to do where they were hardly moved."""
        arch, wiring = self.run.architecture, self.networks.wiring
        assert wiring is not None
        entropy, most = float(np.mean([gates.entropy(gate) for gate in real_gates])), math.log(arch.cardinality)
        line = (
            f"Wiring frozen: active blocks {' '.join(map(str, wiring.active_blocks))} of {arch.cardinality}, entropy "
            f"of the gates {entropy:.3f} of {most:.3f} nats"
        )
        rate = self.run.recipe.phases[0].gate_learning_rate
        if entropy < UNDECIDED * most or not rate or arch.fan_in == arch.cardinality:
            return line
        hint = f"more epochs decide them, or --gate_learning_rate above {rate:g}, in a new --workdir"
        return f"{line}: hardly decided; {hint}"

    # One phase

    def _run_phase(self, loop: Loop, phase: Phase, steps: Rounds) -> None:
        place = self.place
        left = (steps.rounds - place.round) * steps.steps - place.steps
        batches = self.engine.train_batches(self.images, self.run.seed, place.step, left)
        self._record_gates(loop)
        while place.round < steps.rounds:
            while place.steps < steps.steps:
                self._some_steps(loop, batches, steps.steps - place.steps, phase)
                self._record_gates(loop)
                if self.checkpoints.due():
                    self.save(loop)
                self._stop_if_asked(loop)
                self.progress.show(
                    self._round_of(steps),
                    place.steps,
                    steps.steps,
                    place.step,
                    self.rounds_done,
                    place.scores.means(),
                )
            self._end_round(loop, phase, steps)
            self._stop_if_asked(loop)

    def _round_of(self, steps: Rounds) -> str:
        return f"phase {self.place.phase + 1}, round {self.place.round + 1} of {steps.rounds}"

    def _some_steps(self, loop: Loop, batches: Iterator[Any], left: int, phase: Phase) -> None:
        """One call of the compiled loop, of as many steps as take about `CALL_S`."""
        place, began = self.place, time.monotonic()
        scores = loop.train(batches, int(min(left, self.call_steps, self.history.until_next(place.step))))
        spent = time.monotonic() - began
        place.seconds += spent
        for row in scores:
            place.scores += row
        place.step += len(scores)
        place.steps += len(scores)
        if not np.isfinite(scores[-1][0]):
            raise Diverged(
                f"the loss is {scores[-1][0]} at step {place.step}, in phase {place.phase + 1} at learning rate "
                f"{self._rate(phase):g}",
                place.step - 1,  # the weights before this step gave that loss
            )
        if loop.compiled:
            self.progress.stepped(len(scores), spent)
            fitting = math.floor(CALL_S * len(scores) / max(spent, 1e-3))
            self.call_steps = max(1, min(2 * self.call_steps, fitting, self.engine.most_steps))
        loop.compiled = True

    def _record_gates(self, loop: Loop) -> None:
        """Before the checkpoint of the same step, so that none is of a step whose recording a kill prevented."""
        if self.chief and self.history.due(self.place.step) and (real_gates := loop.model.real_gates()):
            self.history.write(self.place.step, real_gates)

    def _end_round(self, loop: Loop, phase: Phase, steps: Rounds) -> None:
        """Evaluation, a row of metrics, a checkpoint."""
        place, began = self.place, time.monotonic()
        means = place.scores.means()
        tests = self._evaluate(loop).means()
        if not math.isfinite(tests["loss"]):
            raise Diverged(
                f"the test loss is {tests['loss']} after step {place.step}, in phase {place.phase + 1} at learning "
                f"rate {self._rate(phase):g}",
                place.step,
            )
        spent = time.monotonic() - began
        place.seconds += spent
        self.progress.tested(spent)
        which = self._round_of(steps)
        place.round, place.steps, place.scores = place.round + 1, 0, Scores()
        row: dict[str, Any] = {
            "phase": place.phase + 1,
            "round": place.round,
            "step": place.step,
            "epoch": round(place.step / self.images.steps_per_epoch, 4),
            **means,
            **{f"test_{name}": value for name, value in tests.items()},
            "learning_rate": self._rate(phase),
            "gate_learning_rate": phase.gate_learning_rate,
            "images_per_s": round(self.progress.images_per_s, 1),
            "seconds": round(place.seconds, 2),
        }
        real_gates = loop.model.real_gates()
        if real_gates:
            row["gate_entropy"] = [round(float(gates.entropy(gate)), 5) for gate in real_gates]
        row["active_blocks"] = list((self.networks.wiring or loop.model.wiring()).active_blocks)
        if self.chief:
            self.metrics.append(row)
            self.on_round(row)
        self.save(loop)
        self.progress.show_round(which, place.step, self.rounds_done, means, tests)

    def _evaluate(self, loop: Loop) -> Scores:
        """The scores of all test images."""
        total = Scores()
        for scores in loop.test(self.engine.test_batches(self.images)):
            total += scores
            self._stop_if_asked(loop)
        return total

    def _stop_if_asked(self, loop: Loop) -> None:
        if not self.engine.any_asked(self.termination.asked):
            return
        place = self.place
        if loop.optimizer is not None and self.saved != (place.step, place.round):
            self.save(loop)
        with contextlib.suppress(OSError):
            self.progress.say(
                f"Saved after step {place.step} of {self.total_steps}; the same command goes on from there"
            )
        if not self.termination.asked_within(TOGETHER_S):
            raise UserError(
                f"another worker was told to stop; all did, after step {place.step}: started again on all of them, the "
                "same command goes on from there"
            )
        self.termination.end()

    # The state on disk

    def save(self, loop: Loop) -> None:
        """Writes a checkpoint of this moment."""
        if not self.chief:
            return
        wiring, unused = self.networks.wiring, self.networks.unused
        self.place.wiring = wiring.to_dict() if wiring else None
        self.checkpoints.write(
            self.place, {**state_of(loop), **{f"{UNUSED}{name}": value for name, value in unused.items()}}
        )
        self.saved = self.place.step, self.place.round

    def _restore(self) -> Weights | None:
        """The state of the newest checkpoint, and this object set to its place; None at the start of a run."""
        found = self.checkpoints.newest(self.progress.say)
        if found is None:
            self._check_that_nothing_was_trained()
            if self.run.weights and self.start is None:
                raise UserError(f"there is no checkpoint, and the weights {self.run.weights} were not given: start=")
            if self.chief:  # what a run left that kept nothing
                self.history.discard(-1)
                for name in (workdir.TRAINED_ON, "gates.npz"):
                    (self.folder / name).unlink(missing_ok=True)
        return self._go_on_from(found)

    def _go_on_from(self, found: tuple[Place, Weights] | None) -> Weights | None:
        """The state of a checkpoint, or none, and this object and its folder set to its place."""
        state: Weights | None = None
        if found is not None:
            self.place, state = found
            self._check_place()
            unused = {name: state.pop(name) for name in [*state] if name.startswith(UNUSED)}
            self.networks.go_on_from(
                Connectivity.from_dict(self.place.wiring) if self.place.wiring else None,
                {name.removeprefix(UNUSED): value for name, value in unused.items()},
            )
            self.progress.say(f"Resuming {self.run.entry} after step {self.place.step} of {self.total_steps}")
        self.engine.check_together(self.place.step)
        if self.chief:
            self.checkpoints.discard(self.place.step + 1)  # those that are damaged
            files.write_json(self.folder / "run.json", self.run.to_dict())  # the folder of its images may have moved
            self.history.discard(self.place.step)
            self.metrics = Metrics(self.folder, (self.place.phase + 1, self.place.round))
        if self.place.round == self.schedule[self.place.phase].rounds:
            self.place.begin_next_phase()
        return state

    def _check_that_nothing_was_trained(self) -> None:
        """A kill before the first checkpoint leaves one row at most."""
        if (self.folder / "result.json").exists() or len(workdir.read_metrics(self.folder)) > 1:
            raise UserError(
                f"{self.folder} is of a training whose checkpoints are gone; put checkpoints/ back, or choose another "
                "folder to start anew"
            )

    def _check_place(self) -> None:
        place = self.place
        if not 0 <= place.phase < len(self.schedule):
            raise UserError(
                f"the checkpoints in {self.checkpoints.folder} are of another run; choose another --workdir"
            )
        began = {**self._arithmetic, "jit_compile": False, **(place.arithmetic or {})}
        changed = [name for name, value in self._arithmetic.items() if began[name] != value]
        if changed:
            texts = {
                "backend": "KERAS_BACKEND={}",
                "precision": "--precision={}",
                "batch_norm_images": "batch norm over {} images, which --strategy and --sync_batch_norm decide",
                "jit_compile": "--jit_compile={}",
            }
            told = " and ".join(texts[name].format(began[name]) for name in changed)
            raise UserError(f"the run began with {told}; go on with that, or begin in another folder")
        if place.images not in self.images.digests():
            raise UserError(
                f"the run began with other images of {self.run.dataset}; restore them or choose another --workdir"
            )
        place.arithmetic, place.images = began, self.images.digest()

    def _roll_back(self, error: Diverged) -> Weights | None:
        """The state of the newest good checkpoint, from which to go on at half the rate; bad ones are removed.

        Raises:
            DivergedError: if the run is to stop, or that did not help several times.
        """
        what, step, rollbacks, phase = str(error), self.place.step, self.place.rollbacks, self.place.phase
        self.rates[phase] = self.place.rate
        if self.chief:
            self.checkpoints.discard(error.step)
        try:
            found = self.checkpoints.newest(self.progress.say, error.step)
        except UserError as damaged:
            raise DivergedError(f"{what}; {damaged}", step) from None
        kept = f"the last good checkpoint is that of step {found[0].step}" if found else "there is no checkpoint before"
        if self.on_nan == "stop":
            raise DivergedError(f"{what}; {kept}. --on_nan=rollback goes on from it at half the rate", step)
        if rollbacks == MOST_ROLLBACKS:
            raise DivergedError(
                f"{what}, after {rollbacks} rollbacks; {kept}. Lower the rates in a recipe of your own", step
            )
        self.place, self.saved = self._start(), (-1, -1)
        self.networks.go_on_from(self.run.initial_wiring(), {})
        state = self._go_on_from(found)
        # Of the phase before, its own rate, as it was there at last: at that the same steps would lead here again.
        self.place.rollbacks = rollbacks + 1
        self.place.rate = min(self.place.rate, self.rates.get(self.place.phase, 1.0)) / 2
        self.rates[self.place.phase] = self.place.rate
        self.progress.say(f"Rolled back: {what}; on from step {self.place.step} at half the rate")
        return state

    def _finish(self, state: Weights | None) -> dict[str, Any]:
        """Writes the network, all its blocks, and what it reaches on the test images."""
        assert state is not None
        if self.networks.wiring is None:  # the schedule learned the gates to its end
            state = self._freeze(state)
            assert state is not None
        loop = self.networks.whole(state)
        tests = self._evaluate(loop).means()
        arch, model, wiring = self.run.architecture, loop.model, loop.model.wiring()
        result = {
            "entry": self.run.entry,
            "dataset": self.run.dataset,
            **({} if self.run.weights is None else {"weights": self.run.weights}),
            "recipe": self.run.recipe.name,
            "epochs": round(self.place.step / self.images.steps_per_epoch, 3),
            "steps": self.place.step,
            "seed": self.run.seed,
            "backend": self._arithmetic["backend"],
            "precision": self._arithmetic["precision"],
            "batch_norm_images": self._arithmetic["batch_norm_images"],
            "jit_compile": self._arithmetic["jit_compile"],
            "seconds": round(self.place.seconds, 1),
            "rollbacks": self.place.rollbacks,
            "top1": tests["top1"],
            "top5": tests["top5"],
            "test_images": len(self.images),
            "blocks": list(wiring.blocks),
            "active_blocks": list(wiring.active_blocks),
            "parameters": arch.parameters(wiring.blocks),
            "parameters_pruned": arch.parameters(wiring.active_blocks),
            "connectivity": None if model.connectivity is None else model.connectivity.to_dict(),
            "labels": self.images.labels,
            "images_digest": self.images.digest(),
            "resize": self.images.resize,
            "version": self._version(),
        }
        if self.chief:
            with files.replacing(self.folder / "model.keras") as temporary:
                model.save(temporary)
            files.write_json(self.folder / "result.json", result)
        return result

    def _version(self) -> str:
        """Of this package that trained: an evaluation alone, of a run that had ended, keeps what its result says."""
        if self.began_at == self.place.step:
            with contextlib.suppress(UserError, OSError, AttributeError):
                version = files.read_json(self.folder / "result.json").get("version")
                if isinstance(version, str):
                    return version
        return gated_resnext.__version__
