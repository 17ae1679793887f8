"""Where an accelerator's time goes: the kernels of some steps, from the trace of JAX's profiler."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Kernels(NamedTuple):
    """What ran on the device: seconds in all kernels, from the first one's start to the last one's end, and of each."""

    busy: float
    span: float
    of_each: list[tuple[str, float, int]]  # name, seconds, times it ran; the longest first


def traced(call: Callable[[], Any]) -> Kernels:
    """The kernels of a call; none on a CPU."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=False):
            call()
        files = sorted(pathlib.Path(folder).rglob("*.trace.json.gz"))
        return summed(json.loads(gzip.decompress(files[-1].read_bytes()))["traceEvents"] if files else [])


def summed(events: Sequence[dict[str, Any]]) -> Kernels:
    """The kernels among the events of a trace in Chrome's format, whose times are microseconds."""
    names = {
        (event["name"], event["pid"], event.get("tid")): event["args"] for event in events if event.get("ph") == "M"
    }

    def on_device(event: dict[str, Any]) -> bool:
        process = names.get(("process_name", event["pid"], None), {}).get("name", "")
        thread = names.get(("thread_name", event["pid"], event["tid"]), {}).get("name", "")
        return "/device:GPU" in process and "Stream" in thread

    kernels = [event for event in events if event.get("ph") == "X" and on_device(event)]
    seconds: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        seconds[kernel["name"]] += kernel["dur"] * 1e-6
        times[kernel["name"]] += 1
    ends = [kernel["ts"] + kernel["dur"] for kernel in kernels]
    span = (max(ends) - min(kernel["ts"] for kernel in kernels)) * 1e-6 if kernels else 0.0
    return Kernels(sum(seconds.values()), span, [(name, value, times[name]) for name, value in seconds.most_common()])
