"""How often a training step reads and writes a wide tensor: by theory, and in the graph that TensorFlow runs.

    python -m benchmarks.wide_passes --markdown=docs/performance.md

A wide tensor holds what all blocks of a module write, (C, batch, height, width, channels). Counted are the operations
of one module without a change of size, its gate and its gradient, after TensorFlow's graph optimizer. A tensor of half
the size counts half; operations that only give a tensor another shape move nothing.
"""

from __future__ import annotations

import collections
from typing import Any

from absl import flags

from benchmarks import report
from benchmarks.traffic import THEORY
from gated_resnext import errors
from gated_resnext import markdown as tables

MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")

BLOCKS, BATCH, SIZE, FILTERS, WIDTH, FAN_IN = 8, 8, 32, 64, 4, 4
MOVES_NOTHING = {
    "Reshape",
    "Identity",
    "Placeholder",
    "Squeeze",
    "ExpandDims",
    "Const",
    "StridedSlice",
    "Shape",
    "NoOp",
}
VARIANTS: dict[str, dict[str, Any]] = {"learned": {}, "learned, remat": {"remat": True}, "frozen": {"fixed": True}}


def main(argv: list[str]) -> None:
    del argv
    import tensorflow as tf

    counted = markdown({name: passes(**how) for name, how in VARIANTS.items()})
    report.publish(MARKDOWN.value, "wide passes", f"Graphs of tensorflow {tf.__version__}.\n\n{counted}")


def passes(remat: bool = False, fixed: bool = False) -> dict[str, tuple[float, float]]:
    """Wide tensors read and written by each kind of operation in a step of one module."""
    import tensorflow as tf
    from tensorflow.python.grappler import tf_optimizer

    from gated_resnext.aggregation import GatedAggregation
    from gated_resnext.connectivity import Connectivity
    from gated_resnext.layers import MultiBranchModule

    shape = (BLOCKS, BATCH, SIZE, SIZE, FILTERS)
    sources = Connectivity.random(2, BLOCKS, FAN_IN, seed=0).sources[0] if fixed else None
    gate = GatedAggregation(FAN_IN, sources=sources, remat=remat, seed=0)
    module = MultiBranchModule(BLOCKS, WIDTH, FILTERS, seed=0)
    module(gate(tf.zeros((BLOCKS, 1, *shape[2:])), training=True), training=True)
    weights = gate.trainable_variables + module.trainable_variables

    def step(y: Any, of_next: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(y)
            loss = module(gate(y, training=True), training=True)
        return loss, tape.gradient(loss, [y, *(weight.value for weight in weights)], of_next)

    graph = tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec(shape), tf.TensorSpec(shape)).graph
    for output in graph.outputs:
        graph.add_to_collection("train_op", output)
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    optimized = tf.Graph()
    with optimized.as_default():
        tf.import_graph_def(tf_optimizer.OptimizeGraph(tf.compat.v1.ConfigProto(), meta), name="")
    wide = BLOCKS * BATCH * SIZE * SIZE * FILTERS
    found: dict[str, tuple[float, float]] = collections.defaultdict(lambda: (0.0, 0.0))
    for operation in optimized.get_operations():
        if operation.type in MOVES_NOTHING:
            continue
        read, written = (
            sum(_part(tensor, graph, wide) for tensor in tensors) for tensors in (operation.inputs, operation.outputs)
        )
        if read or written:
            before = found[operation.type]
            found[operation.type] = before[0] + read, before[1] + written
    return dict(found)


def _part(tensor: Any, before: Any, wide: int) -> float:
    """The size of a tensor beside a wide one; 0 for those under a third of it.

    The optimizer's graph does not tell all sizes; what it made anew is named after the one before.
    """
    elements = tensor.shape.num_elements()
    if elements is None:
        name = tensor.op.name.replace("ArithmeticOptimizer/FoldTransposeIntoMatMul_", "")
        elements = before.get_operation_by_name(name).outputs[tensor.value_index].shape.num_elements()
        if elements is None:
            raise ValueError(f"the size of {tensor.name} is not known")
    return elements / wide if elements >= wide / 3 else 0.0


def markdown(found: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Both tables."""
    read, wrote = sum(row[2] for row in THEORY), sum(row[3] for row in THEORY)
    theory = [*THEORY, ("", "all", read, wrote, f"{read + wrote} in all")]
    lines = [*tables.table(["pass", "operation", "wide read", "wide written", "why"], theory), ""]
    head = ["operation in TensorFlow's graph", *(f"{name}: read, written" for name in found)]
    rows = [
        [kind, *(", ".join(f"{value:.3g}" for value in counts.get(kind, (0, 0))) for counts in found.values())]
        for kind in sorted({kind for counts in found.values() for kind in counts})
    ]
    rows.append(["all", *(f"{sum(sum(counts) for counts in of.values()):.3g} in all" for of in found.values())])
    return "\n".join([*lines, *tables.table(head, rows)])


if __name__ == "__main__":
    errors.run(main)
