"""How long calls take beside each other: in turns, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gated_resnext.versions import version

WARM_UP = 2
TURN_MS = 20.0


def interleaved(calls: Mapping[str, Callable[[], Any]], *, rounds: int = 15) -> dict[str, list[float]]:
    """Times every call once a round, one after the other: A B A B ...

    Args:
        calls: what to time, by name.
        rounds: turns of each, a call repeated for about `TURN_MS`.

    Returns:
        Milliseconds of one call, a list of `rounds` for each name.
    """
    repeats = {name: max(1, round(TURN_MS / max(_warm(call), 1e-3))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_turn_ms(call, repeats[name]))
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as long one takes as the other: the median over the rounds of one by the other.

    Example:

    >>> ratio([2.0, 4.0, 90.0], [1.0, 2.0, 30.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine() -> dict[str, Any]:
    """What the times were taken on: processor, cores and the versions of what computes."""
    names = ("tensorflow", "keras", "ai-edge-litert", "numpy")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in names},
    }


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _warm(call: Callable[[], Any]) -> float:
    """Milliseconds of a call once it is warm."""
    return min(_turn_ms(call, 1) for _ in range(WARM_UP))


def _turn_ms(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1000 * (time.perf_counter() - start) / repeats
