"""Seconds that imports take, in processes of their own, in turns.

python -m benchmarks.imports
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from absl import flags

from benchmarks import report
from gated_resnext import errors, markdown

ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each.", lower_bound=1)
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
PROGRAMS = {
    "nothing": "",
    "`gated_resnext`": "import gated_resnext",
    "`gated_resnext.zoo.names()`": "import gated_resnext; gated_resnext.zoo.names()",
    "`keras`": "import keras",
    "`keras`, then `gated_resnext` and all that it offers": (
        "import keras, gated_resnext; [getattr(gated_resnext, name) for name in gated_resnext.__all__]"
    ),
}
TIMED = "import time; start = time.perf_counter(); exec({!r}); print(time.perf_counter() - start)"


def main(argv: list[str]) -> None:
    del argv
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS.value):
        for name, program in PROGRAMS.items():
            command = [sys.executable, "-c", TIMED.format(program)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            times[name].append(float(found.stdout.splitlines()[-1]))
    rows = [(name, f"{statistics.median(found):.3f}") for name, found in times.items()]
    lines = [f"{report.described(report.machine())}. Medians of {ROUNDS.value} turns.", ""]
    lines += markdown.table(["import", "seconds"], rows)
    report.publish(MARKDOWN.value, "imports", "\n".join(lines))


if __name__ == "__main__":
    errors.run(main)
