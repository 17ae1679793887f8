"""A training killed at any moment ends, started again, in the bytes of one that nothing stopped."""

import dataclasses
import json
import os
import pathlib
import random
import select
import signal
import time

import pytest
import tensorflow as tf
from processes import ended, in_a_fresh_process, start
from runs import assert_same_end, drawn, newest, rows, small_run

from gated_resnext import checkpoints, files, metrics, trainer, training
from gated_resnext.training import Training

RUNS = {
    # 3 rounds of 10 steps, 1 of 6.
    "learned": small_run((2.6, 0.1, 0.2), (0.5, 0.1)),
    # A pruned network from its first step: 2 rounds of 9 steps, 3 of 10.
    "random": dataclasses.replace(small_run((1.6, 0.1), (2.6, 0.01)), wiring="random"),
}
STEPS = {"learned": 36, "random": 48}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def train(run, folder, data_dir, **options):
    checkpoints.PARTS = 0  # with checkpoint_s=0: a checkpoint after every call of the compiled loop
    trainer.train(run, folder, data_dir=data_dir, checkpoint_s=0, **options)


# The kills. A number of calls after which, within a twelfth of a second, the process is killed from outside; None kills
# it before its first call has ended, while it still traces. Or where it kills itself: at which moment of writing the
# n-th file whose name begins so.

KILLS = {
    "learned": [
        None,
        ("not begun", "step", 2),
        2,
        ("half written", "step", 3),
        1,
        ("half written", "metrics.jsonl", 1),
        ("synced, not renamed", "step", 4),
        ("written", "metrics.jsonl", 1),
        2,
        ("half written", "gates.npz", 1),
        ("renamed, not synced", "gates.npz", 1),
        1,
    ],
    "random": [
        None,
        ("written, not synced", "step", 2),
        3,
        ("renamed, not synced", "step", 3),
        2,
        ("half written", "step", 2),
        5,
        ("half written", "model.keras", 1),
        ("renamed, not synced", "model.keras", 1),
        ("half written", "result.json", 1),
    ],
}


def die(moment, name, number):
    """Makes this process kill itself there."""
    left = [number]

    def is_it(path):
        if not pathlib.Path(path).name.startswith(name):
            return False
        left[0] -= 1
        return left[0] == 0

    if name == "metrics.jsonl":
        append = metrics.Metrics.append

        def appended(self, row):
            if moment == "half written":
                with open(self.path, "a") as file:
                    file.write(json.dumps(row)[:40])
            else:
                append(self, row)
            killed()

        metrics.Metrics.append = appended
    elif moment == "renamed, not synced":
        replace = os.replace

        def replaced(source, target):
            replace(source, target)
            if is_it(target):
                killed()

        os.replace = replaced
    else:
        sync = files._sync

        def synced(path):
            if not is_it(path):
                return sync(path)
            if moment == "not begun":
                path.unlink()
            elif moment == "half written":
                os.truncate(path, path.stat().st_size // 2)
            elif moment == "synced, not renamed":
                sync(path)
            killed()

        files._sync = synced


def attempt(run, folder, data_dir, pipe, death):
    """Trains, and tells the pipe of the end of every call of the compiled loop."""
    if death:
        die(*death)
    some_steps = Training._some_steps

    def told(self, *arguments):
        some_steps(self, *arguments)
        os.write(pipe, b".")

    Training._some_steps = told
    training.CALL_S = 0.03  # of one step or two
    train(run, folder, data_dir)


def kill_after(child, pipe, calls, rng):
    """Kills a child after it has told of so many calls."""
    if calls is None:
        select.select([pipe], [], [], rng.uniform(0.5, 1.5))
    for _ in range(calls or 0):
        if not os.read(pipe, 1):
            return
    time.sleep(rng.uniform(0, 1 / 12) if calls else 0)
    os.kill(child, signal.SIGKILL)


def partial_folders(folder):
    return {str(path) for path in folder.rglob(".*.partial")}


def chain(name, data_dir, folder):
    """Starts a run again after each of its kills, and once more; writes what it found after each."""
    run, workdir, rng, found = RUNS[name], folder / name, random.Random(20), []
    left_before = set()
    for death in [*KILLS[name], "none"]:
        reader, writer = os.pipe()
        of_its_own = death if isinstance(death, tuple) else None
        child = start(attempt, run, workdir, data_dir, writer, of_its_own, log=folder / f"{name}.log")
        os.close(writer)
        if death is None or isinstance(death, int):
            kill_after(child, reader, death, rng)
        status = ended(child)
        os.close(reader)
        said = []
        state = checkpoints.Checkpoints(workdir / "checkpoints").newest(said.append)
        left = partial_folders(workdir)
        found.append(
            {
                "kill": death,
                "status": status,
                "step": state[0].step if state else 0,
                "damaged": said,
                "partial": len(left),
                "not_cleared": sorted(left & left_before),
            }
        )
        left_before = left
    files.write_json(folder / f"{name}.json", found)


def harness(data_dir, folder):
    """Trains every run without a stop, and with kills, two processes at a time."""
    tf.config.threading.set_inter_op_parallelism_threads(0)  # raises where TensorFlow already has its threads
    folder = pathlib.Path(folder)
    whole = [start(train, RUNS[name], folder / f"{name}_whole", data_dir, log=folder / f"{name}.log") for name in RUNS]
    assert [ended(child) for child in whole] == [0, 0]
    chains = [start(chain, name, data_dir, folder, log=folder / f"{name}.log") for name in RUNS]
    assert [ended(child, within=800) for child in chains] == [0, 0]


@pytest.fixture(scope="module")
def killed_and_resumed(digits_dir, tmp_path_factory):
    """The folder of the workdirs, and for each run what was found after its kills."""
    folder = tmp_path_factory.mktemp("killed")
    in_a_fresh_process(harness, digits_dir, folder)
    found = {name: files.read_json(folder / f"{name}.json") for name in RUNS}
    print(json.dumps(found, indent=1))
    return folder, found


def test_every_kill_hit_a_training(killed_and_resumed):
    _, found = killed_and_resumed
    kills = [one for attempts in found.values() for one in attempts[:-1]]
    assert [one["status"] for one in kills] == [-signal.SIGKILL] * len(kills)
    assert len(kills) >= 20
    assert sum(isinstance(one["kill"], list) for one in kills) >= 6, "in the middle of writing"
    assert sum(isinstance(one["kill"], int) for one in kills) >= 6, "from outside, at any moment"
    assert sum(one["partial"] for one in kills) >= 6, "kills that left a part of a file"
    assert [attempts[-1]["status"] for attempts in found.values()] == [0, 0]


def test_every_kill_left_a_whole_checkpoint_and_no_step_was_lost(killed_and_resumed):
    _, found = killed_and_resumed
    for name, attempts in found.items():
        steps = [one["step"] for one in attempts]
        assert [one["damaged"] for one in attempts] == [[]] * len(attempts)
        assert steps == sorted(steps) and steps[-1] == STEPS[name]
        assert len(set(steps)) >= 6, f"the kills of {name} are at too few places: {steps}"


def test_the_next_start_clears_what_a_killed_one_had_half_written(killed_and_resumed):
    folder, found = killed_and_resumed
    for name, attempts in found.items():
        assert [one["not_cleared"] for one in attempts] == [[]] * len(attempts)
        assert partial_folders(folder / name) == set()


@pytest.mark.parametrize("name", RUNS)
def test_the_end_is_that_of_an_uninterrupted_training_to_the_byte(killed_and_resumed, name):
    folder, _ = killed_and_resumed
    assert newest(folder / name)["place"]["step"] == STEPS[name]
    assert_same_end(folder / name, folder / f"{name}_whole")
    times = [row["seconds"] for row in rows(folder / name)]
    assert times == sorted(times)
    tags = [(tag, step) for tag, step, _ in drawn(folder / name)]
    assert tags == [(tag, step) for tag, step, _ in drawn(folder / f"{name}_whole")]
