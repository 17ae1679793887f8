"""How a training tells where it is: a bar on a terminal, elsewhere a line every half minute, and one a round."""

from __future__ import annotations

import sys
import time
from typing import Any

import keras

EVERY_S = 30.0
SPEED = "images_per_s", "minutes_left"


class Progress:
    """Speed, and the time left of the whole schedule.

    Args:
        steps: of the whole schedule.
        rounds: of the whole schedule.
        batch_size: images of a step.
        silent: says nothing, as every worker but the first.
    """

    def __init__(self, steps: int, rounds: int, batch_size: int, *, silent: bool = False) -> None:
        self.steps, self.rounds, self.batch_size, self.silent = steps, rounds, batch_size, silent
        self._train_s = self._test_s = 0.0
        self._trained = self._tested = 0
        self._spoken = time.monotonic()
        self._bar: Any = None

    def say(self, line: str) -> None:
        """A line of its own; what goes on after it has a new bar."""
        self._bar = None
        if not self.silent:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(
                line.encode(encoding, "backslashreplace").decode(encoding), flush=True
            )  # names of folders are any bytes

    def stepped(self, count: int, seconds: float) -> None:
        """Counts steps. Leave out a call that was compiled first."""
        self._trained, self._train_s = self._trained + count, self._train_s + seconds

    def tested(self, seconds: float) -> None:
        """Counts an evaluation on the test images."""
        self._tested, self._test_s = self._tested + 1, self._test_s + seconds

    @property
    def images_per_s(self) -> float:
        """Of training, since this process began; 0 before it is known."""
        return self.batch_size * self._trained / self._train_s if self._train_s else 0.0

    def minutes_left(self, step: int, rounds: int) -> float:
        """Until the end of the schedule, after `step` steps and `rounds` rounds; 0 before anything is known."""
        training = (self.steps - step) * self._train_s / max(1, self._trained)
        testing = (self.rounds - rounds) * self._test_s / max(1, self._tested)
        return (training + testing) / 60

    def _speed(self, step: int, rounds: int) -> dict[str, float]:
        """By the names of `SPEED`; empty before anything is known, while there is something left."""
        if not self._trained and step < self.steps:
            return {}
        return dict(zip(SPEED, (self.images_per_s, self.minutes_left(step, rounds)), strict=True))

    def show(self, place: str, done: int, of: int, step: int, rounds: int, means: dict[str, float]) -> None:
        """A sign of life after some steps of a round.

        Args:
            place: which round it is.
            done: steps done in this round.
            of: steps of this round.
            step: steps done of the whole schedule.
            rounds: rounds done of the whole schedule.
            means: loss and accuracy so far.
        """
        if self.silent:
            return
        speed = self._speed(step, rounds)
        if on_terminal():
            if self._bar is None:
                print(place)
                self._bar = keras.utils.Progbar(of, stateful_metrics=["loss", "top1", *SPEED])
            self._bar.update(done, [("loss", means["loss"]), ("top1", means["top1"]), *speed.items()])
        elif time.monotonic() - self._spoken >= EVERY_S:
            self._spoken = time.monotonic()
            print(f"  {place}, step {done} of {of}: {_signs(means)}, {_told(speed)}", flush=True)

    def show_round(self, place: str, step: int, rounds: int, means: dict[str, float], tests: dict[str, float]) -> None:
        """The line at the end of a round."""
        self._bar = None
        self._spoken = time.monotonic()
        speed = self._speed(step, rounds)
        test = f"test loss {tests['loss']:.4f}, test top-1 {100 * tests['top1']:.2f} %"
        self.say(f"  {place}: {_signs(means)}; {test}; {_told(speed)}")


class Count:
    """Images done of so many.

    Args:
        total: images.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._began = self._spoken = time.monotonic()
        self._bar = keras.utils.Progbar(total, unit_name="image") if on_terminal() else None

    def add(self, images: int) -> None:
        """Counts images; tells of them when it is time."""
        self.done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self.done)
        elif now - self._spoken >= EVERY_S:
            self._spoken = now
            speed = self.done / (now - self._began)
            left = (self.total - self.done) / speed / 60
            print(f"  image {self.done:,} of {self.total:,}: {speed:.0f} images/s, {left:.1f} min left", flush=True)


def on_terminal() -> bool:
    """Whether what is printed is seen at once; not where there is no stdout, as in a daemon."""
    return bool(getattr(sys.stdout, "isatty", bool)())


def _signs(means: dict[str, float]) -> str:
    return f"loss {means['loss']:.4f}, top-1 {100 * means['top1']:.2f} %"


def _told(speed: dict[str, float]) -> str:
    if not speed:
        return "speed not known yet"
    return f"{speed['images_per_s']:.0f} images/s, {speed['minutes_left']:.1f} min left"
