"""Runs an experiment row by row and seed by seed, and keeps its ledger.

The folder holds a workdir a run, `<key>/<row>-<seed>`, and what is written anew after each run: the ledger of all that
ended, `<key>.md` and `<key>.csv`, and of a figure the picture, `<key>.svg`. Finished runs are read, half-done ones gone
on with.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import gc
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gated_resnext
from gated_resnext import files, ledger, versions, workdir
from gated_resnext.errors import DivergedError, UserError
from gated_resnext.experiments import Experiment, Row
from gated_resnext.ledger import Outcome, Setting
from gated_resnext.termination import Termination
from gated_resnext.workdir import DIVERGED, Run


def chosen(experiment: Experiment, patterns: Sequence[str]) -> Experiment:
    """The experiment with the rows alone whose names match one of the shell patterns.

    Raises:
        UserError: if a pattern matches none.

    Example:

    >>> from gated_resnext import experiments
    >>> len(chosen(experiments.table(3), ["cifar10_20_4_8_*"]).rows)
    4
    """
    names = [row.name for row in experiment.rows]
    for pattern in patterns or [""]:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{experiment.title} has the rows {', '.join(names)}. Received: {pattern!r}")
    rows = [row for row in experiment.rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]
    return experiment._replace(rows=tuple(rows))


def _say(line: str) -> None:
    print(line, flush=True)


def reproduce(
    experiment: Experiment,
    setting: Setting,
    folder: pathlib.Path,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    options: Callable[[], dict[str, Any]] = dict,
    again: bool = False,
    say: Callable[[str], None] = _say,
) -> list[Outcome]:
    """Trains what is left of an experiment, all rows of a seed before the next seed, and writes its ledger.

    Stopped anywhere, the same call goes on. SIGTERM saves and raises SystemExit(0), Ctrl-C KeyboardInterrupt.

    Args:
        experiment: the rows.
        setting: schedule, seeds and limit; and what the ledger's header says.
        folder: of workdirs and ledger.
        data_dir: folder of tensorflow-datasets; under JAX, of what `gated_resnext.pack` wrote.
        options: called before the first run that trains; what else `trainer.train` is to know, such as `precision`.
        again: whether runs that diverged go on from their last good checkpoint, which helps with another `on_nan`.
        say: is told of progress.

    Returns:
        Every run that ended, a diverged one among them, in the order of the rows.

    Raises:
        UserError: if a workdir is of another run, or the data is not there.
    """
    runs = [
        (row, row.run(setting.recipe, seed=seed, limit=setting.limit))
        for seed in range(setting.seeds)
        for row in experiment.rows
    ]
    for _, run in runs:
        workdir.check(run, _place(folder, experiment, run), choose="--output")
    with Termination() as termination:
        ended = {(row.name, run.seed): _ended(row, run, folder, experiment, again) for row, run in runs}
        if any(ended.values()):
            write(experiment, setting, _in_order(experiment, ended), folder)
        given: dict[str, Any] | None = None
        for number, (row, run) in enumerate(runs, start=1):
            if ended[row.name, run.seed] is None:  # another command may have trained it meanwhile
                ended[row.name, run.seed] = _ended(row, run, folder, experiment, again)
            if ended[row.name, run.seed] is not None:
                continue
            from gated_resnext import trainer  # seconds, and not needed where all runs have ended

            if termination.asked:
                termination.end()
            given = options() if given is None else given
            say(f"\nRun {number} of {len(runs)}: {row.name}, seed {run.seed}{_time_left(runs, ended)}")
            place = _place(folder, experiment, run)
            try:
                note = functools.partial(_note, setting, place)
                trainer.train(run, place, data_dir=data_dir, began=note, **given)
            except DivergedError as error:
                how = {"precision": given.get("precision", "float32"), "jit_compile": given.get("jit_compile", False)}
                how |= {"backend": versions.backend(), "version": gated_resnext.__version__}
                told = {"step": error.step, "message": str(error), **how}
                files.write_json(place / DIVERGED, told)
                say(f"Diverged: {str(error).split(';')[0]}")
            _forget()
            ended[row.name, run.seed] = _ended(row, run, folder, experiment, False)
            write(experiment, setting, _in_order(experiment, ended), folder)
    return _in_order(experiment, ended)


def write(experiment: Experiment, setting: Setting, outcomes: Sequence[Outcome], folder: pathlib.Path) -> None:
    """The ledger's files, each whole or not there."""
    texts = {
        "md": ledger.markdown(experiment, setting, outcomes),
        "csv": ledger.csv_lines(setting, outcomes),
    }
    for suffix, text in texts.items():
        with files.replacing(folder / f"{experiment.key}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    if experiment.plots and any(one.result for one in outcomes):
        ledger.picture(experiment, setting, outcomes, folder / f"{experiment.key}.svg")


def _place(folder: pathlib.Path, experiment: Experiment, run: Run) -> pathlib.Path:
    return folder / experiment.key / f"{run.entry}-{run.seed}"


def _note(setting: Setting, place: pathlib.Path, devices: str) -> None:
    workdir.note_machine(place, setting.versions, setting.hardware or versions.hardware(devices))


def _forget() -> None:
    """Frees the network that was trained: its compiled steps refer to it, and Keras counts its names.

    TensorFlow keeps the graphs of custom gradients for good, so that memory grows a little with every run; started
    again, the same command goes on without them.
    """
    import keras

    keras.backend.clear_session()
    gc.collect()


def _ended(row: Row, run: Run, folder: pathlib.Path, experiment: Experiment, again: bool) -> Outcome | None:
    """What came out of a run, or of an equal one for another experiment in this folder; None if it has not ended.

    Raises:
        UserError: if its files are damaged.
    """
    places = [_place(folder, experiment, run), *_elsewhere(run, folder)]
    for place in places:
        if (place / "result.json").is_file():
            entropies = workdir.gate_entropies(place)
            return Outcome(row, run.seed, _result(place), entropy=statistics.fmean(entropies) if entropies else None)
    for place in () if again else places:
        if (place / DIVERGED).is_file():
            found = files.read_json(place / DIVERGED)
            if not isinstance(found, dict) or type(found.get("step")) is not int:
                raise UserError(f"{place / DIVERGED} names no step; delete it, and the same command goes on from there")
            how = {name: found[name] for name in ("backend", "precision", "jit_compile", "version") if name in found}
            return Outcome(row, run.seed, None, diverged=found["step"], how=how)
    return None


def _result(place: pathlib.Path) -> dict[str, Any]:
    """A run's `result.json`, with the versions and the hardware that trained it."""
    return {**workdir.read_result(place), **workdir.trained_on(place)}


def _elsewhere(run: Run, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Workdirs of an equal run in the folder or one below it, as tables, figures and ablations share rows."""
    name = f"{run.entry}-{run.seed}"
    for place in sorted(path.parent for pattern in (name, f"*/{name}") for path in folder.glob(f"{pattern}/run.json")):
        with contextlib.suppress(UserError):  # damaged, and none of ours
            if Run.read(place) == run:
                yield place


def _in_order(experiment: Experiment, ended: dict[tuple[str, int], Outcome | None]) -> list[Outcome]:
    """By row, then by seed."""
    names = [row.name for row in experiment.rows]
    found = [one for one in ended.values() if one is not None]
    return sorted(found, key=lambda one: (names.index(one.row.name), one.seed))


def _time_left(runs: Sequence[tuple[Row, Run]], ended: dict[tuple[str, int], Outcome | None]) -> str:
    """Until all runs have ended, by the multiply-adds and the seconds of those that did; nothing before the first."""
    done = left = seconds = 0.0
    for row, run in runs:
        outcome, cost = ended[row.name, run.seed], float(run.architecture.multiply_adds())
        if outcome is None:
            left += cost
        elif outcome.result is not None:
            done, seconds = done + cost, seconds + outcome.result["seconds"]
    return f"; about {left * seconds / done / 60:.0f} min left for all runs" if done else ""
