"""What benchmarks share: the machine and its limits, and where their tables go."""

from __future__ import annotations

import importlib.metadata
import pathlib
import time
from collections.abc import Callable
from typing import Any

import gated_resnext
from export import latency
from gated_resnext import files
from gated_resnext.errors import UserError
from gated_resnext.memory import keep_freed_memory


def machine() -> dict[str, Any]:
    """Processor, cores and versions, PyTorch's and JAX's where they are installed."""
    found = latency.machine()
    found["versions"] = {"gated_resnext": gated_resnext.__version__, **found["versions"]}
    for name in ("torch", "jax"):
        try:
            found["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def described(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cores']} cores of {machine['processor']}, {machine['system']}, {versions}"


def limits() -> dict[str, float]:
    """The best of several: bytes a second of adding two tensors of 256 MiB, and float32 operations a second of a
    product of two matrices of 2048."""
    import tensorflow as tf

    keep_freed_memory()
    with tf.device("CPU:0"):
        long, second = tf.zeros(64 << 20), tf.ones(64 << 20)
        square = tf.ones((2048, 2048))
        add, product = tf.function(lambda a, b: a + b), tf.function(lambda: square @ square)
        return {
            "copy": 3 * 4 * (64 << 20) / _least(lambda: add(long, second)[0].numpy()),
            "product": 2 * 2048**3 / _least(lambda: product().numpy()),
        }


def publish(path: str, name: str, text: str) -> None:
    """Puts a table between the comments of its name in a file, or prints it where the path is "-".

    Raises:
        UserError: if the file does not have the comments.
    """
    if path == "-":
        print(text)
        return
    file = pathlib.Path(path)
    begin, end = f"<!-- {name}: written by its benchmark -->", f"<!-- end of {name} -->"
    whole = file.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise UserError(f"{path} has no lines {begin} and {end}")
    before, after = whole.split(begin)[0], whole.split(end)[1]
    with files.replacing(file) as temporary:
        temporary.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def _least(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
