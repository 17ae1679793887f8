"""Where the time of an exported network goes: milliseconds of a call by kind of operation, beside ResNeXt's.

    python -m benchmarks.export_profile --entry=cifar10_20_4_8_k1 --batch=64

The compact SavedModel and that of Fixed-Full ResNeXt with the same {D, w, C}, in TensorFlow's own trace of one thread:
the median of --rounds calls, in turns.
"""

from __future__ import annotations

import collections
import pathlib
import statistics
import tempfile
from typing import Any

from absl import flags

from benchmarks import export_latency as latency_of
from benchmarks import report
from gated_resnext import errors, markdown

ENTRY = flags.DEFINE_string("entry", "cifar10_20_4_8_k1", "Network of the zoo.")
BATCH = flags.DEFINE_integer("batch", 64, "Images of a call.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    import numpy as np

    from export import saved_model
    from export.compact import compact
    from gated_resnext import GatedResNeXt

    model, wiring = latency_of.network(ENTRY.value)
    arch = model.architecture
    resnext = GatedResNeXt(arch.replace(aggregation="shared", fan_in=arch.cardinality), seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH.value, *arch.input_shape), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name, network_ in (("compact", model), ("resnext", resnext)):
            path = pathlib.Path(folder) / name
            saved_model.write(compact(network_), path)
            calls[name] = _traced(path, pixels)
        rounds = [{name: call() for name, call in calls.items()} for _ in range(latency_of.ROUNDS.value + 2)][2:]
    kinds = sorted({kind for taken in rounds for ops in taken.values() for kind in ops})
    print(f"{report.described(report.machine())}. {ENTRY.value} ({wiring} wiring), batch {BATCH.value}, one thread.\n")
    rows = [(kind, *(_median(rounds, name, kind) for name in calls)) for kind in kinds]
    slowest = sorted(rows, key=lambda row: -row[1][0])[:10]
    cells = [[kind, f"{a:.2f}", m, f"{b:.2f}", n] for kind, (a, m), (b, n) in slowest]
    totals = [sum(row[column][0] for row in rows) for column in (1, 2)]
    numbers = [sum(row[column][1] for row in rows) for column in (1, 2)]
    cells.append(["all", f"{totals[0]:.2f}", numbers[0], f"{totals[1]:.2f}", numbers[1]])
    print(*markdown.table(["operation", "compact: ms", "number", "resnext: ms", "number"], cells), sep="\n")


def _median(rounds: list[dict[str, Any]], name: str, kind: str) -> tuple[float, int]:
    found = [taken[name].get(kind, (0.0, 0)) for taken in rounds]
    return statistics.median(ms for ms, _ in found), found[0][1]


def _traced(path: pathlib.Path, pixels: Any) -> Any:
    """A call of the SavedModel that returns milliseconds and number of the operations of each kind."""
    import tensorflow as tf

    v1 = tf.compat.v1
    threads = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    session = v1.Session(graph=tf.Graph(), config=threads)
    with session.graph.as_default():
        signature = v1.saved_model.load(session, ["serve"], str(path)).signature_def["serving_default"]
    feed = {signature.inputs["images"].name: pixels}
    fetch = signature.outputs["probabilities"].name
    options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)

    def call() -> dict[str, tuple[float, int]]:
        metadata = v1.RunMetadata()
        session.run(fetch, feed, options, metadata)
        ms: dict[str, float] = collections.defaultdict(float)
        number: dict[str, int] = collections.defaultdict(int)
        for node in (node for device in metadata.step_stats.dev_stats for node in device.node_stats):
            kind = node.timeline_label.split(" = ")[-1].split("(")[0].lstrip("_") or node.node_name
            ms[kind] += node.op_end_rel_micros / 1000
            number[kind] += 1
        return {kind: (ms[kind], number[kind]) for kind in ms}

    return call


if __name__ == "__main__":
    errors.run(main)
