"""A process of its own that takes steps when told to (`benchmarks.steps`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from gated_resnext import errors


class Side:
    """A process that takes steps when told to."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.peak, self.before = spec, 0, 0
        command = [sys.executable, "-m", "benchmarks.steps", json.dumps(spec)]
        # What stands beside it, PyTorch and the machine's limits, is on the CPU (`benchmarks.accelerator` is on a GPU).
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._answer()

    def take(self, what: str, count: int = 1) -> float:
        """Seconds of a step."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {count}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peak, self.before = answer["peak"], answer["before"]
        return float(answer["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise errors.UserError(f"the process of {json.dumps(self.spec)} ended with status {self.process.wait()}")
        return dict(json.loads(line))
