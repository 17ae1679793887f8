"""What a training's workdir says of itself: its run, its metrics so far, the machines, and who is at work in it.

Nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

from gated_resnext import files, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.datasets.table import FOLDER
from gated_resnext.errors import UserError
from gated_resnext.recipes import Recipe

# Versions and hardware, of each machine in turn where a training went on.
TRAINED_ON = "trained_on.json"
LONGEST = 100  # letters of two values that are told apart
NOT_RECORDED = "not recorded"
# Beside `run.json`: the loss was not finite, so that nobody trains it to that step again.
DIVERGED = "diverged.json"
# Of which a training that kept anything has one.
KEPT = ("checkpoints", "metrics.jsonl", "result.json", "model.keras", DIVERGED)
NUMBERS = "top1", "top5", "epochs", "seconds", "test_images", "parameters", "parameters_pruned"  # of a result.json
WIRINGS = ("learned", "random", "full", "given")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained: all that the result depends on but for the arithmetic, which the checkpoints keep.

    Args:
        entry: name in the zoo.
        architecture: the network.
        wiring: "learned", "random", "full" or "given".
        dataset: name in `gated_resnext.datasets.table`.
        recipe: the schedule, already scaled.
        seed: of weights, draws, shuffling and augmentation.
        limit: of the training images, only the first so many; None for all.
        connectivity: the wiring that is given, which stays from the first step to the last; None of the other kinds.
        weights: whose it begins with, as `start.Start.name` says; None for fresh ones.
    """

    entry: str
    architecture: Architecture
    wiring: str
    dataset: str
    recipe: Recipe
    seed: int
    limit: int | None = None
    connectivity: Connectivity | None = None
    weights: str | None = None

    @classmethod
    def of(cls, entry: str, recipe: Recipe, *, seed: int) -> Run:
        """The run of a zoo entry."""
        row = zoo.entry(entry)
        return cls(entry, zoo.architecture(entry), row.wiring, row.dataset, recipe, seed)

    def with_wiring(self, connectivity: Connectivity) -> Run:
        """The same run of a wiring that is given: nothing is drawn and nothing learned of it.

        Raises:
            UserError: if the network does not take it.
        """
        shape = self.architecture
        if not shape.has_binary_gates:
            raise UserError(f"{self.entry} takes no wiring: it has no binary gates")
        expected = (shape.cardinality,) * shape.modules
        if connectivity.blocks != expected:
            raise UserError(
                f"{self.entry} has {shape.modules} modules of {shape.cardinality} blocks. Received: a wiring of "
                f"{' '.join(map(str, connectivity.blocks))} blocks"
            )
        fan_ins = sorted({len(block) for module in connectivity.sources for block in module} - {shape.fan_in})
        if fan_ins:
            raise UserError(
                f"every block of {self.entry} reads K = {shape.fan_in} blocks. Received: a wiring with blocks that "
                f"read {' or '.join(map(str, fan_ins))}"
            )
        return dataclasses.replace(self, wiring="given", connectivity=connectivity)

    def initial_wiring(self) -> Connectivity | None:
        """The wiring that training starts from: None for "learned" and "full", whose graphs need none."""
        shape = self.architecture
        if self.wiring == "random":
            return Connectivity.random(shape.modules, shape.cardinality, shape.fan_in, seed=self.seed)
        return self.connectivity

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; a limit, a given wiring and weights only where there are some."""
        return {
            "entry": self.entry,
            "architecture": self.architecture.to_dict(),
            "wiring": self.wiring,
            "dataset": self.dataset,
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            **({} if self.limit is None else {"limit": self.limit}),
            **({} if self.connectivity is None else {"connectivity": self.connectivity.to_dict()}),
            **({} if self.weights is None else {"weights": self.weights}),
        }

    @classmethod
    def read(cls, workdir: str | os.PathLike[str]) -> Run:
        """The run of a workdir.

        Raises:
            UserError: if there is none, or its description is damaged.
        """
        path = pathlib.Path(workdir) / "run.json"
        if not path.is_file():
            raise UserError(f"{workdir} is no training's workdir: there is no run.json in it")
        fields = files.read_json(path)
        try:
            shape, recipe = Architecture.from_dict(fields["architecture"]), Recipe.from_dict(fields["recipe"])
            limit = fields.get("limit")
            run = cls(fields["entry"], shape, fields["wiring"], fields["dataset"], recipe, fields["seed"], limit)
            run = dataclasses.replace(run, weights=fields.get("weights"))
            named = isinstance(run.entry, str) and run.entry and "/" not in run.entry and isinstance(run.dataset, str)
            if not named or run.wiring not in WIRINGS or type(run.seed) is not int or not 0 <= run.seed < 2**63:
                raise ValueError("entry, dataset, wiring or seed is not what it should be")
            if not isinstance(run.weights, str | None):
                raise ValueError(f"weights must be a name. Received: weights={run.weights!r}")
            if limit is not None and not (type(limit) is int and limit >= 1):
                raise ValueError(f"limit must be a whole number of at least 1. Received: limit={limit!r}")
            if (run.wiring == "given") != ("connectivity" in fields):
                raise ValueError(f"wiring is {run.wiring!r}, and connectivity goes with 'given' alone")
            return run.with_wiring(Connectivity.from_dict(fields["connectivity"])) if run.wiring == "given" else run
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} does not describe a run: {error}") from None


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a last line cut short by a kill is left out.

    Raises:
        UserError: if another line is no row.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = row["phase"], row["round"], row["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"line {number} of {path} is no row of a training; mend or remove it") from None
        rows.append(row)
    return rows


def gate_entropies(workdir: str | os.PathLike[str]) -> list[float] | None:
    """Of the gates of each module, in nats, in the last round that learned them; None where none did."""
    rows = [row["gate_entropy"] for row in read_metrics(workdir) if "gate_entropy" in row]
    return rows[-1] if rows else None


def note_machine(workdir: str | os.PathLike[str], versions: str, hardware: str) -> None:
    """Adds versions and hardware to those that the run was trained on before, where they are others."""
    now, before = {"versions": versions, "hardware": hardware}, machines(workdir)
    if now not in before:
        files.write_json(pathlib.Path(workdir) / TRAINED_ON, [*before, now])


def machines(workdir: str | os.PathLike[str]) -> list[dict[str, str]]:
    """What `note_machine` wrote; empty where nothing did.

    Raises:
        UserError: if it is damaged.
    """
    path = pathlib.Path(workdir) / TRAINED_ON
    found = files.read_json(path) if path.is_file() else []
    whole = isinstance(found, list) and all(
        isinstance(one, dict) and [type(one.get(name)) for name in ("versions", "hardware")] == [str, str]
        for one in found
    )
    if not whole:
        raise UserError(f"{path} names no versions and hardware; delete it, and they count as not recorded")
    return found


def trained_on(workdir: str | os.PathLike[str]) -> dict[str, str]:
    """`versions` and `hardware` of all machines in turn, or "not recorded".

    Raises:
        UserError: if what is told of them is damaged.
    """
    found = machines(workdir)
    return {
        name: ", then ".join(dict.fromkeys(one[name] for one in found)) or NOT_RECORDED
        for name in ("versions", "hardware")
    }


def read_result(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """What a training that ended came to.

    Raises:
        UserError: if `result.json` is not there, or is not what a training writes.
    """
    path = pathlib.Path(workdir) / "result.json"
    result = files.read_json(path)
    whole = isinstance(result, dict) and all(isinstance(result.get(name), int | float) for name in NUMBERS)
    if not (whole and all(isinstance(result.get(name), list) for name in ("blocks", "active_blocks"))):
        raise UserError(f"{path} holds no result; delete it, and the same training writes it anew")
    return result


def check(run: Run, workdir: pathlib.Path, *, choose: str = "--workdir", free: bool = True) -> None:
    """Finds that the workdir is this run's, or that nothing is in it; else tells to choose another.

    A run that kept nothing, such as one for which there was not enough memory, leaves the workdir to another, where
    it is `free`: nobody can be at work there now.
    """
    if (workdir / "run.json").is_file():
        found = Run.read(workdir)
        if run.dataset.startswith(FOLDER) and _is_gone(found.dataset):  # it moved; the checkpoints know its files
            found = dataclasses.replace(found, dataset=run.dataset)
        kept = not free or any((workdir / name).exists() for name in KEPT)
        if kept and found != run:
            differing = [
                field.name
                for field in dataclasses.fields(Run)
                if getattr(found, field.name) != getattr(run, field.name)
            ]
            if "entry" in differing:  # the rest follows from it
                differing = [name for name in differing if name not in ("architecture", "wiring", "dataset")]
            if "wiring" in differing and "connectivity" in differing:
                differing.remove("connectivity")
            values = ", ".join(_difference(name, getattr(found, name), getattr(run, name)) for name in differing)
            raise UserError(f"{workdir} belongs to another run ({values}); choose another {choose}")
        return
    if workdir.is_dir() and any(not path.name.startswith(".") for path in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run; choose another {choose}")


def _is_gone(dataset: str) -> bool:
    """Whether it is a folder that is not there any more."""
    return dataset.startswith(FOLDER) and not pathlib.Path(dataset.removeprefix(FOLDER)).exists()


@contextlib.contextmanager
def alone(workdir: pathlib.Path, chief: bool = True) -> Iterator[bool]:
    """Holds the workdir, so that no second training writes into it; the system lets go of it when the process ends.

    Gives whether nobody else can hold it now: False where the system or the file system has no locks.

    Args:
        workdir: made if it is not there.
        chief: False for a worker that only reads; it holds nothing.

    Raises:
        UserError: if another process holds it.
    """
    if not chief:
        yield True  # the first worker sees to that
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+", encoding="utf-8") as file:
        locked = _lock(file, workdir)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for partial in [*workdir.glob(".*.partial"), *workdir.glob("*/.*.partial")] if locked else ():
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed while it wrote
        yield locked


def _lock(file: Any, workdir: pathlib.Path) -> bool:
    """Whether nobody else can hold it now."""
    try:
        import fcntl
    except ImportError:  # Windows: without a lock
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"another training ({file.read() or 'just started'}) is at work in {workdir}; wait for it or choose "
            "another folder"
        ) from None
    except OSError:  # a file system without locks
        return False
    return True


def _difference(name: str, there: Any, here: Any) -> str:
    """Between two values of a field; of values that look alike between what they are made of."""
    if _brief(there) != _brief(here) or not dataclasses.is_dataclass(there):
        return f"{name} is {_brief(there)} there and {_brief(here)} here"
    parts = []
    for field in (field.name for field in dataclasses.fields(there)):
        a, b = str(getattr(there, field)), str(getattr(here, field))
        if a != b:
            told = f": {a} there and {b} here" if len(a) + len(b) < LONGEST else ""
            parts.append(f"{field} of the {name} differ{'' if field.endswith('s') else 's'}{told}")
    return ", ".join(parts)


def _brief(value: Any) -> str:
    if isinstance(value, Connectivity):
        return f"one of {' '.join(map(str, value.active_blocks))} active blocks"
    return f"{value.name} of {value.epochs:g} epochs" if isinstance(value, Recipe) else str(value)
