import io
import re
import sys
import types

import pytest

from gated_resnext import progress
from gated_resnext.progress import EVERY_S, Count, Progress

MEANS = {"loss": 1.25, "top1": 0.5, "top5": 0.9}
TESTS = {"loss": 1.5, "top1": 0.4567, "top5": 0.8}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.fixture
def terminal(monkeypatch):
    """Standard output counts as a terminal."""
    stdout = types.SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stdout=stdout))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_cannot_be_printed_are_told_all_the_same(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    Progress(1, 1, 64).say("images of folder:/data/caf\udce9")
    stream.flush()
    assert stream.buffer.getvalue() == b"images of folder:/data/caf\\udce9\n"


def test_nothing_is_known_before_the_first_step():
    shown = Progress(100, 10, 64)
    assert (shown.images_per_s, shown.minutes_left(0, 0)) == (0, 0)


def test_the_time_left_is_that_of_all_steps_and_tests_to_come():
    shown = Progress(steps=1000, rounds=10, batch_size=64)
    shown.stepped(20, 4.0)
    shown.stepped(20, 6.0)
    assert shown.images_per_s == pytest.approx(64 * 40 / 10)
    assert shown.minutes_left(step=40, rounds=0) == pytest.approx((1000 - 40) * 0.25 / 60)
    shown.tested(30.0)
    shown.tested(10.0)
    assert shown.minutes_left(step=520, rounds=7) == pytest.approx((480 * 0.25 + 3 * 20.0) / 60)
    assert shown.minutes_left(step=1000, rounds=10) == 0


def test_outside_a_terminal_a_line_comes_every_half_minute(clock, capsys):
    shown = Progress(1000, 10, 64)
    shown.stepped(100, 20.0)
    for step in range(100, 110):
        shown.show("phase 1, round 2 of 3", step, 300, step, 0, MEANS)
        clock(EVERY_S / 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"  phase 1, round 2 of 3, step {step} of 300: loss 1.2500, top-1 50.00 %, 320 images/s, "
        f"{(1000 - step) * 0.2 / 60:.1f} min left"
        for step in (104, 108)
    ]


def test_the_line_of_a_round_starts_another_half_minute(clock, capsys):
    shown = Progress(1000, 10, 64)
    clock(EVERY_S - 1)
    shown.show_round("phase 1, round 1 of 3", 100, 1, MEANS, TESTS)
    assert capsys.readouterr().out == (
        "  phase 1, round 1 of 3: loss 1.2500, top-1 50.00 %; test loss 1.5000, test top-1 45.67 %; "
        "speed not known yet\n"
    )
    clock(EVERY_S - 1)
    shown.show("phase 1, round 2 of 3", 1, 100, 101, 1, MEANS)
    assert capsys.readouterr().out == ""
    clock(1)
    shown.show("phase 1, round 2 of 3", 2, 100, 102, 1, MEANS)
    assert "round 2 of 3, step 2 of 100" in capsys.readouterr().out


def test_on_a_terminal_a_bar_grows_once_a_round(clock, terminal, capsys):
    shown = Progress(1000, 10, 64)
    shown.show("round 0", 1, 100, 1, 0, MEANS)
    assert "images_per_s" not in capsys.readouterr().out  # before anything is known
    shown.show_round("round 0", 100, 1, MEANS, TESTS)
    shown.stepped(100, 20.0)
    capsys.readouterr()
    for round_ in (1, 2):
        for step in (50, 100):
            clock(1)
            shown.show(f"round {round_}", step, 100, step, 0, MEANS)
        shown.show_round(f"round {round_}", 100, 1, MEANS, TESTS)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if re.fullmatch(r"round \d", line)] == ["round 1", "round 2"]
    for part in ("50/100", "100/100", "loss: 1.25", "images_per_s", "minutes_left"):
        assert printed.count(part) >= 2, part
    assert printed.count("test top-1 45.67 %") == 2


def test_a_silent_worker_says_nothing(clock, terminal, capsys):
    shown = Progress(1000, 10, 64, silent=True)
    shown.say("hello")
    shown.stepped(10, 1.0)
    clock(10 * EVERY_S)
    shown.show("round 1", 1, 100, 1, 0, MEANS)
    shown.show_round("round 1", 100, 1, MEANS, TESTS)
    assert capsys.readouterr().out == ""
    assert shown.images_per_s == 640, "which the metrics of the chief hold"


def test_images_are_told_every_half_minute(clock, capsys):
    counted = Count(4000)
    for _ in range(4):
        clock(EVERY_S / 2)
        counted.add(600)
    assert capsys.readouterr().out.splitlines() == [
        "  image 1,200 of 4,000: 40 images/s, 1.2 min left",
        "  image 2,400 of 4,000: 40 images/s, 0.7 min left",
    ]


def test_a_terminal_counts_images_in_a_bar(terminal, capsys):
    counted = Count(20)
    counted.add(10)
    counted.add(10)
    out = capsys.readouterr().out
    assert "10/20" in out and "20/20" in out


def test_without_a_stdout_there_is_no_sign_and_no_failure(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    shown = Progress(10, 2, 64)
    shown.say("a line")
    shown.show("round 1", 1, 5, 1, 0, MEANS)
    shown.show_round("round 1", 5, 1, MEANS, TESTS)
    Count(10).add(5)
