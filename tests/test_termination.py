"""SIGTERM and Ctrl-C save, SIGTERM ends in time; two trainings do not share a workdir."""

import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import ended, in_a_fresh_process, start
from runs import assert_same_end, contents, newest, small_run

from gated_resnext import checkpoints, files, loop, termination, trainer, training
from gated_resnext.training import Training

K1 = "digits_11_4_4_k1"


# The command


def command(folder, data_dir):
    """Starts the training that `trained` is the end of; what it prints goes to `folder`/log and err."""
    arguments = [f"--entry={K1}", "--epochs_scale=0.03", f"--data_dir={data_dir}", f"--workdir={folder / 'run'}"]
    path = os.pathsep.join(path for path in sys.path if path)
    with open(folder / "log", "w") as out, open(folder / "err", "w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "gated_resnext.train", *arguments],
            env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdout=out,
            stderr=err,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # of a shell's background it is ignored
        )


def wait_for(text, path, process):
    """Waits until a process has printed it."""
    deadline = time.monotonic() + 400
    while text not in path.read_text():
        assert process.poll() is None and time.monotonic() < deadline, (
            path.read_text() + path.with_name("err").read_text()
        )
        time.sleep(0.01)


@pytest.fixture(scope="module")
def commands(trained, digits_dir, tmp_path_factory):
    """What commands on one workdir did: each is (status, stdout, stderr, seconds from its signal to its end)."""
    folder, found = tmp_path_factory.mktemp("commands"), {}

    def end(process, asked):
        status = process.wait(timeout=240)
        return status, (folder / "log").read_text(), (folder / "err").read_text(), time.monotonic() - asked

    first = command(folder, digits_dir)
    try:
        wait_for("Phase 1 of 4", folder / "log", first)
        first.send_signal(signal.SIGSTOP)  # at work, and slow
        os.waitpid(first.pid, os.WUNTRACED)
        before = contents(folder / "run", but=())
        found["second"] = end(command(folder, digits_dir), time.monotonic())
        found["second changed"] = contents(folder / "run", but=()) != before
        found["first"] = first.pid
    finally:
        first.kill()
        first.wait()

    third = command(folder, digits_dir)
    try:
        wait_for("Phase 2 of 4", folder / "log", third)  # which is compiled anew, and so is what goes on: there is time
        third.send_signal(signal.SIGTERM)
        found["third"] = end(third, time.monotonic())
        found["third left"] = newest(folder / "run")["place"]
        interrupted = command(folder, digits_dir)
        wait_for("Resuming", folder / "log", interrupted)
        interrupted.send_signal(signal.SIGINT)
        found["interrupted"] = end(interrupted, time.monotonic())
        found["interrupted left"] = newest(folder / "run")["place"]
        found["fourth"] = end(command(folder, digits_dir), time.monotonic())
    finally:
        third.kill()
    return folder / "run", found


def test_a_second_training_on_a_workdir_is_refused_and_changes_nothing(commands):
    folder, found = commands
    status, printed, errors, _ = found["second"]
    assert (status, printed) == (1, "")
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        rf"error: another training \(process {found['first']} on \S+\) is at work in {folder}; wait for it or choose "
        "another folder",
        line,
    )
    assert "Traceback" not in errors
    assert not found["second changed"]


def test_a_killed_training_does_not_keep_its_workdir(commands):
    _, found = commands
    assert "Phase 1 of 4" in found["third"][1]


def test_sigterm_saves_and_ends_the_command_with_status_0(commands):
    _, found = commands
    status, printed, errors, seconds = found["third"]
    assert status == 0, errors
    assert termination.GRACE_S + 1 < 10 and seconds < 60  # the system may be slow to end it
    saved = re.search(r"^Saved after step (\d+) of 43; the same command goes on from there$", printed, re.M)
    if saved is None:  # a busy machine compiled longer than that
        assert "Stopped at once; the same command goes on from the newest checkpoint" in printed
        assert seconds >= termination.GRACE_S
    assert found["third left"]["step"] >= 16 and (saved is None or int(saved[1]) == found["third left"]["step"])
    assert "Traceback" not in errors and "\nerror:" not in errors and "\nTrained" not in printed


def test_ctrl_c_saves_and_ends_the_command_with_status_1(commands):
    _, found = commands
    status, printed, errors, _ = found["interrupted"]
    assert status == 1
    assert "\nSaving after this step; Ctrl-C again stops at once\n" in printed
    step = int(re.search(r"^Saved after step (\d+) of 43; the same command goes on from there$", printed, re.M)[1])
    assert step == found["interrupted left"]["step"] >= found["third left"]["step"]
    assert "error: interrupted; the same command starts again or goes on where it stopped\n" in errors
    assert "Traceback" not in errors and "\nTrained" not in printed


def test_the_same_command_goes_on_to_the_same_bytes(commands, trained):
    folder, found = commands
    status, printed, errors, _ = found["fourth"]
    assert status == 0, errors
    assert f"Resuming {K1} after step {found['interrupted left']['step']} of 43\n" in printed
    assert_same_end(folder, trained)


# Moments that a command is seldom at: a child sends the signal to itself

RUN = small_run((1.6, 0.1, 0.2), (0.5, 0.1))  # 2 rounds of 9 steps, 1 of 6


def asked_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def before_call(owner, name, number, act):
    """Does something before the `number`-th call of a method."""
    function, calls = getattr(owner, name), []

    def called(*arguments, **options):
        calls.append(None)
        if len(calls) == number:
            act()
        return function(*arguments, **options)

    setattr(owner, name, called)


def stuck():
    """Blocks in C, where no Python handler runs, and is asked to stop there."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    threading.Timer(0.2, asked_to_stop).start()
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


# In the order in which one workdir meets them.
MOMENTS = {
    "tracing": lambda: before_call(loop.Loop, "_train_step", 1, asked_to_stop),
    "training": lambda: before_call(loop.Loop, "train", 6, asked_to_stop),
    "evaluation": lambda: before_call(loop.Loop, "_test_step", 1, asked_to_stop),
    # Two calls a file, itself and its folder: run.json, metrics.jsonl, the gates of step 9 again; the gates and the
    # checkpoint of steps 10 and 11, the gates of step 12.
    "writing": lambda: before_call(files, "_sync", 17, asked_to_stop),
    "stuck in a step": lambda: before_call(loop.Loop, "train", 6, stuck),
    "stuck in the first step": lambda: before_call(loop.Loop, "train", 1, stuck),
    "the last evaluation": lambda: before_call(Training, "_finish", 1, asked_to_stop),
    "never": lambda: None,
}


def train(folder, data_dir, moment):
    training.CALL_S = 0  # calls of one step
    checkpoints.PARTS = 0
    termination.GRACE_S = 0.5 if moment.startswith("stuck") else 60
    MOMENTS[moment]()
    trainer.train(RUN, folder, data_dir=data_dir, checkpoint_s=0)


def harness(data_dir, folder):
    """A training asked to stop at one moment after the other, and one that is not."""
    folder, found = pathlib.Path(folder), {}
    whole = start(train, folder / "whole", data_dir, "never", log=folder / "whole.log")
    for moment in MOMENTS:
        log = folder / f"{moment}.log"
        status = ended(start(train, folder / "stopped", data_dir, moment, log=log))
        place, _ = checkpoints.Checkpoints(folder / "stopped" / "checkpoints").newest()
        found[moment] = {"status": status, "printed": log.read_text(), "step": place.step, "of_round": place.steps}
    assert ended(whole) == 0
    files.write_json(folder / "found.json", found)


@pytest.fixture(scope="module")
def stopped(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    in_a_fresh_process(harness, digits_dir, folder)
    return folder, files.read_json(folder / "found.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, step, of_round",
    # Every process goes on where the one before stopped; the sixth call is the sixth step. Asked while it writes the
    # checkpoint of step 12, it takes none after it.
    [("tracing", 1, 1), ("training", 7, 7), ("evaluation", 9, 9), ("writing", 12, 3), ("the last evaluation", 24, 0)],
)
def test_asked_to_stop_it_saves_the_step_it_is_at(stopped, moment, step, of_round):
    _, found = stopped
    one = found[moment]
    assert one["status"] == 0, one["printed"]
    assert f"\nSaved after step {step} of 24; the same command goes on from there\n" in one["printed"]
    assert (one["step"], one["of_round"]) == (step, of_round)
    assert "Traceback" not in one["printed"]


@pytest.mark.slow
@pytest.mark.parametrize("moment, step", [("stuck in a step", 17), ("stuck in the first step", 17)])
def test_a_step_that_does_not_end_is_left_and_the_checkpoint_before_it_stays(stopped, moment, step):
    _, found = stopped
    one = found[moment]
    assert one["status"] == 0, one["printed"]
    assert one["printed"].endswith("Stopped at once; the same command goes on from the newest checkpoint\n")
    assert one["step"] == step


@pytest.mark.slow
def test_stopped_and_resumed_ends_in_the_same_bytes(stopped):
    folder, found = stopped
    assert found["never"]["status"] == 0, found["never"]["printed"]
    assert_same_end(folder / "stopped", folder / "whole")


# The context manager


def test_the_handlers_of_before_are_back_after_a_training():
    def handler(*_):
        raise AssertionError("the test's own handler ran")

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with termination.Termination() as asked:
            assert not asked.asked
            signal.raise_signal(signal.SIGTERM)
            assert asked.asked
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.set_wakeup_fd(-1) == -1
        assert not any(
            isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate()
        )
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_ctrl_c_asks_and_a_second_one_interrupts(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with termination.Termination() as outer, termination.Termination() as inner:
            signal.raise_signal(signal.SIGINT)
            assert inner.asked and outer.asked
            assert capsys.readouterr().out == "\nSaving after this step; Ctrl-C again stops at once\n"
            for one in (inner, outer):
                with pytest.raises(KeyboardInterrupt):
                    one.end()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with termination.Termination() as next_one:
            assert not next_one.asked
            with pytest.raises(SystemExit):
                next_one.end()
    finally:
        signal.signal(signal.SIGINT, before)


class Unwritable:
    """A stdout whose reader is gone, is slow, or which is being written to as the signal comes."""

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), RuntimeError("reentrant call"), ValueError("closed file")])
def test_ctrl_c_asks_though_nobody_reads_what_is_printed(monkeypatch, error):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "stdout", Unwritable(error))
    try:
        with termination.Termination() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked.asked and asked.interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_last_moment_ends_the_process_though_nobody_reads_what_is_printed(monkeypatch):
    left = []
    monkeypatch.setattr(sys, "stdout", Unwritable(BrokenPipeError()))
    monkeypatch.setattr(termination.os, "_exit", left.append)
    termination._give_up()
    assert left == [0]


def test_the_last_moment_does_not_wait_for_a_slow_reader(run_python):
    """Of a pipe that is full and that nobody empties."""
    script = (
        "import fcntl, os, sys\nfrom gated_resnext import termination\nread, write = os.pipe()\n"
        "os.set_blocking(write, False)\n"
        "try:\n    while True: os.write(write, b'x' * 4096)\nexcept BlockingIOError: os.set_blocking(write, True)\n"
        "sys.stdout = os.fdopen(write, 'w')\ntermination._give_up()"
    )
    assert run_python("-c", script).returncode == 0


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "the program's"])
def test_a_way_of_ones_own_with_ctrl_c_stays(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with termination.Termination() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked.asked and signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_within_another_tells_it_of_a_signal_that_came_too_late():
    with termination.Termination() as outer:
        with termination.Termination() as inner:
            pass
        assert not inner.asked and not outer.asked
        with termination.Termination() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner.asked and not outer.asked
        assert outer.asked
    with termination.Termination() as alone:
        assert not alone.asked


def test_one_within_another_that_was_asked_is_asked_too():
    with termination.Termination() as outer:
        signal.raise_signal(signal.SIGTERM)
        with termination.Termination() as inner:
            assert outer.asked and inner.asked and not inner.interrupted
        outer.interrupted = True
        with termination.Termination() as inner:
            assert inner.interrupted


def test_in_another_thread_signals_are_left_to_the_program():
    previous, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with termination.Termination() as asked:
            found.append((asked.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, previous)]
