"""The metrics of a run, a row a round: `metrics.jsonl`, and TensorBoard's view of it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from gated_resnext import devices, files
from gated_resnext.workdir import read_metrics

Row = dict[str, Any]


class Metrics:
    """Those of a workdir, cut to the rounds that its checkpoint has completed.

    Args:
        workdir: of the run.
        completed: number of the phase, from 1, and of the last round in it that is completed.
    """

    def __init__(self, workdir: pathlib.Path, completed: tuple[int, int]) -> None:
        self.path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if (row["phase"], row["round"]) <= completed]
        for events in (workdir / "tensorboard").glob("events.*"):
            with contextlib.suppress(OSError):  # somebody else's, or open on Windows
                events.unlink()
        if rows or self.path.exists():
            with files.replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            import tensorflow as tf
        except ImportError:  # a machine with JAX alone: metrics.jsonl is all there is
            self.tf = None
        else:
            devices.leave_gpus(tf)
            self.tf, self.writer = tf, tf.summary.create_file_writer(os.fsencode(workdir / "tensorboard"))
        for row in rows:
            self._draw(row)

    def append(self, row: Row) -> None:
        """Adds the row of the round that ended."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that says that the round has ended
        self._draw(row)

    def _draw(self, row: Row) -> None:
        if self.tf is None:
            return
        with self.writer.as_default(step=row["step"]):
            for name, value in _scalars(row):
                self.tf.summary.scalar(name, value)
        self.writer.flush()


def _scalars(row: Row) -> Iterator[tuple[str, float]]:
    """The numbers of a row, a list's one by one."""
    for name, value in row.items():
        if isinstance(value, list):
            # Entropies are of the gates of modules 2 to M, active blocks of all modules.
            first = 2 if name == "gate_entropy" else 1
            yield from ((f"{name}/module{number}", item) for number, item in enumerate(value, start=first))
        elif name != "step":
            yield name, value
