"""Times of one run in a file of pyperf, which knows how to show and to compare them.

    python -m pyperf stats training.json
    python -m pyperf compare_to before.json after.json --table

pyperf's own runner gives every benchmark processes of its own, one after the other; here the sides of a ratio take
turns, and the file holds the turns in their order. pyperf describes the machine, its load and Python; beside that stand
the versions of what computes and, where the benchmark measures them, the machine's limits.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from absl import flags

from gated_resnext import files
from gated_resnext.errors import UserError

JSON = flags.DEFINE_string("json", None, "File of pyperf for all times.")
COMPUTES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "torch", "jax")


class Times(NamedTuple):
    """What one thing took, and what is to be known about it, a value a name."""

    name: str
    seconds: Sequence[float]
    about: Mapping[str, int | float | str] = {}


def check() -> None:
    """Before anything is measured.

    Raises:
        UserError: if a file is wanted and pyperf is not there to write it.
    """
    if JSON.value is not None and _version("pyperf") is None:
        raise UserError("--json is written by pyperf: pip install -e '.[benchmark]'")


def save(measured: Iterable[Times], about: Mapping[str, int | float | str] | None = None) -> None:
    """Writes the file of --json; without it, nothing. A file in its place goes when the new one is whole.

    Args:
        measured: what was measured, no name twice.
        about: what is to be known about all.
    """
    if JSON.value is None:
        return
    import pyperf

    common = {f"{name}_version": version for name in COMPUTES if (version := _version(name))} | dict(about or {})
    found = []
    for name, seconds, more in measured:
        run = pyperf.Run(list(seconds), metadata={**common, **more, "name": name})
        if "mem_max_rss" not in more:
            run._metadata.pop("mem_max_rss", None)  # pyperf's, of this process: it is of no side
        found.append(pyperf.Benchmark([run]))
    with files.replacing(pathlib.Path(JSON.value).expanduser()) as temporary:
        pyperf.BenchmarkSuite(found).dump(str(temporary))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
