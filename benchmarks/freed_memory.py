"""What it is worth that the process keeps freed memory: steps with `keep_freed_memory` and without, in turns.

    python -m benchmarks.freed_memory --markdown=docs/performance.md

The peer, PyTorch, needs torch (extra "benchmark"); --peer=false leaves it out.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from absl import flags

from benchmarks import report
from benchmarks.sides import Side
from export import latency
from gated_resnext import errors, markdown

BATCHES = flags.DEFINE_list("batches", ["32", "128"], "Images a step of {20,4,8}.")
PEER = flags.DEFINE_bool("peer", True, "PyTorch's steps too.")
ROUNDS = flags.DEFINE_integer("rounds", 4, "Turns of each.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Steps in a turn.", lower_bound=1)
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
NETWORKS: dict[str, dict[str, Any]] = {
    "learned K=4": {"side": "ours", "kind": "learned", "fan_in": 4},
    "full": {"side": "ours", "kind": "full", "fan_in": 8},
    "torch learned K=4": {"side": "peer", "kind": "learned", "fan_in": 4},
}


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for batch in map(int, BATCHES.value):
        for name, network in NETWORKS.items():
            if network["side"] == "ours" or PEER.value:
                rows.append([f"{name}, batch {batch}", *_cells({**network, "depth": 20, "width": 4, "batch": batch})])
                print(rows[-1], file=sys.stderr, flush=True)
    head = ["{20,4,8}"]
    for what in ("training", "inference"):
        head += [f"{what}, images/s: glibc's own way", "kept", "ratio"]
    lines = [f"{report.described(report.machine())}. {ROUNDS.value} turns of {STEPS.value} steps.", ""]
    report.publish(MARKDOWN.value, "freed memory", "\n".join([*lines, *markdown.table(head, rows)]))


def _cells(spec: dict[str, Any]) -> list[str]:
    """Images a second of both ways, and how many times as fast the second is, of training and of inference."""
    sides = [Side({**spec, "keep": keep}) for keep in (False, True)]
    cells = []
    for what in ("train", "infer"):
        turns = [[side.take(what, STEPS.value) for side in sides] for _ in range(ROUNDS.value)]
        freed, kept = map(list, zip(*turns, strict=True))
        cells += [f"{spec['batch'] / statistics.median(seconds):.1f}" for seconds in (freed, kept)]
        cells.append(f"{latency.ratio(freed, kept):.2f}")
    for side in sides:
        side.close()
    return cells


if __name__ == "__main__":
    errors.run(main)
