"""What the settings are worth that commands run with on a CPU: steps without one of them and with it, in turns.

    python -m benchmarks.settings --markdown=docs/performance.md

    keep    the process keeps freed memory (`gated_resnext.memory`)
    onednn  TensorFlow computes with oneDNN's kernels (`gated_resnext.onednn`)

The peer, PyTorch, needs torch (extra "benchmark"); --peer=false leaves it out.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any, NamedTuple

from absl import flags

from benchmarks import report
from benchmarks.sides import Side
from export import latency
from gated_resnext import errors, markdown


class Setting(NamedTuple):
    """The name of its table, what stands above the columns without and with it, and whether PyTorch has it."""

    table: str
    without: str
    told: str
    of_peer: bool = False


SETTINGS = {
    "keep": Setting("freed memory", "glibc's own way", "kept", of_peer=True),
    "onednn": Setting("onednn", "TensorFlow's own kernels", "oneDNN's"),
}
CHOSEN = flags.DEFINE_multi_enum("setting", list(SETTINGS), list(SETTINGS), "Which; again for more.")
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
    for name in CHOSEN.value:
        setting, rows = SETTINGS[name], []
        for batch in map(int, BATCHES.value):
            for network, spec in NETWORKS.items():
                if spec["side"] == "ours" or (PEER.value and setting.of_peer):
                    spec = {**spec, "depth": 20, "width": 4, "batch": batch}
                    rows.append([f"{network}, batch {batch}", *_cells(spec, name)])
                    print(rows[-1], file=sys.stderr, flush=True)
        head = ["{20,4,8}"]
        for what in ("training", "inference"):
            head += [f"{what}, images/s: {setting.without}", setting.told, "ratio"]
        lines = [f"{report.described(report.machine())}. {ROUNDS.value} turns of {STEPS.value} steps.", ""]
        report.publish(MARKDOWN.value, setting.table, "\n".join([*lines, *markdown.table(head, rows)]))


def _cells(spec: dict[str, Any], setting: str) -> list[str]:
    """Images a second without and with it, and how many times as fast the second is, of training and of inference."""
    sides = [Side({**spec, setting: is_set}) for is_set in (False, True)]
    cells = []
    for what in ("train", "infer"):
        turns = [[side.take(what, STEPS.value) for side in sides] for _ in range(ROUNDS.value)]
        without, told = map(list, zip(*turns, strict=True))
        cells += [f"{spec['batch'] / statistics.median(seconds):.1f}" for seconds in (without, told)]
        cells.append(f"{latency.ratio(without, told):.2f}")
    for side in sides:
        side.close()
    return cells


if __name__ == "__main__":
    errors.run(main)
