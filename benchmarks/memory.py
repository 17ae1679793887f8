"""Peak memory of a training step against the batch size, and the account that foretells it.

    python -m benchmarks.memory --markdown=docs/performance.md

Each step runs in a process of its own; what Python and TensorFlow took before there was a network is subtracted.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from benchmarks import report
from benchmarks.sides import Side
from benchmarks.steps import architecture
from gated_resnext import errors, markdown
from gated_resnext.architecture import Architecture

BATCHES = flags.DEFINE_list("small_batches", ["16", "32", "64", "128"], "Images a step of {20,4,8}, K = 4, learned.")
ENTRY = flags.DEFINE_string("large", "imagenet_50_4_32_k16", "Of the zoo: a network for 224x224.")
LARGE = flags.DEFINE_list("large_batches", ["1", "2"], "Images a real step of it; none to leave it out.")
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
DEVICE = flags.DEFINE_list("device_batches", ["16", "32", "64"], "Images a device that the account is drawn up for.")
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "remat": False},
    "float32, remat": {"precision": "float32", "remat": True},
    "bfloat16": {"precision": "mixed_bfloat16", "remat": False},
    "bfloat16, remat": {"precision": "mixed_bfloat16", "remat": True},
}
# Wide tensors of the largest module in flight in the backward pass: dy, the narrowing's part of dx, their sum, ds.
IN_FLIGHT = 4


def account(arch: Architecture, batch: int, precision: str, remat: bool) -> float:
    """Bytes of a training step of learned gates: what is kept for the backward pass, what is in flight, the weights.

    A module after the first keeps y of the module before, for the gates, and, without `remat`, x. Of each block's
    narrow tensors, about 6 are kept in float32: of each batch norm its centred input, and what the ReLU gave, twice.
    """
    size, kept, largest = (2 if precision == "mixed_bfloat16" else 4), 0.0, 0.0
    for index, plan in enumerate(arch.plan()):
        before, after = (batch * rows * columns * arch.cardinality for rows, columns in (plan.in_size, plan.out_size))
        if index:
            kept += (1 if remat else 2) * size * before * plan.in_channels
        kept += 4 * plan.width * (3 * before + 3 * after)
        largest = max(largest, size * after * plan.filters)
    return kept + IN_FLIGHT * largest + 3 * 4 * arch.parameters()


def main(argv: list[str]) -> None:
    del argv
    lines = [f"{report.described(report.machine())}.", ""]
    lines += _measured({"depth": 20, "width": 4, "fan_in": 4}, "{20,4,8}", list(map(int, BATCHES.value)))
    if LARGE.value:
        lines += ["", *_measured({"entry": ENTRY.value}, f"`{ENTRY.value}`", list(map(int, LARGE.value)))]
    head = [f"`{ENTRY.value}`, GiB by the account", *WAYS]
    arch = architecture({"entry": ENTRY.value})
    rows = [
        [f"batch {batch}", *(f"{account(arch, batch, **way) / 2**30:.1f}" for way in WAYS.values())]
        for batch in map(int, DEVICE.value)
    ]
    lines += ["", *markdown.table(head, rows)]
    report.publish(MARKDOWN.value, "memory", "\n".join(lines))


def _measured(network: dict[str, Any], name: str, batches: list[int]) -> list[str]:
    head = [f"{name}, GiB measured (by the account)", *WAYS]
    rows = []
    for batch in batches:
        cells = [f"batch {batch}"]
        for way in WAYS.values():
            spec = {**network, **way, "side": "ours", "kind": "learned", "batch": batch, "warm": []}
            side = Side(spec)
            seconds = [side.take("train") for _ in range(2)]
            side.close()
            taken = (side.peak - side.before) / 2**30
            cells.append(f"{taken:.2f} ({account(architecture(spec), batch, **way) / 2**30:.2f})")
            print(f"{name}, batch {batch}, {way}: {seconds[1]:.1f} s a step", file=sys.stderr, flush=True)
        rows.append(cells)
    return markdown.table(head, rows)


if __name__ == "__main__":
    errors.run(main)
