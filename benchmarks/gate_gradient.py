"""What learning the gates costs: forms of the one product that a frozen wiring does not need, dL/dG = dS Y^T.

    python -m benchmarks.gate_gradient --markdown=docs/performance.md

dS and Y have a row a block and a column for every pixel and channel of a batch, as in the first stage of {20,4,8}. Each
form is held to numpy in float64 before it is timed; they take turns. "Reading both" adds all numbers of the two
tensors, which any form has to read. Then there is the same product, and the gated sum, of tensors whose images, not
their blocks, come first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import report
from export import latency
from gated_resnext import errors
from gated_resnext import markdown as tables

BATCH = flags.DEFINE_integer("batch", 32, "Images.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 25, "Turns.", lower_bound=1)
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose table is written anew; - prints it.")
BLOCKS, SIZE, FILTERS = 8, 32, 64
OURS = "one product"


def main(argv: list[str]) -> None:
    del argv
    report.publish(MARKDOWN.value, "gate gradient", markdown(times(BATCH.value, ROUNDS.value)))


def forms() -> dict[str, Callable[[Any, Any], Any]]:
    """The product in several forms, of dS (J, N) and Y (C, N)."""
    import tensorflow as tf

    from gated_resnext import gates

    def in_pieces(upstream: Any, y: Any) -> Any:
        return tf.einsum("jpn,kpn->jk", *(tf.reshape(one, (BLOCKS, 64, -1)) for one in (upstream, y)))

    def batched(upstream: Any, y: Any) -> Any:
        rows = [tf.transpose(tf.reshape(one, (BLOCKS, 2, -1)), (1, 0, 2)) for one in (upstream, y)]
        return tf.reduce_sum(tf.matmul(*rows, transpose_b=True), 0)

    def diagonal(count: int) -> Callable[[Any, Any], Any]:
        """Every piece of a row by every piece of another: of the (J, count, C, count) only the diagonal is wanted."""

        def product(upstream: Any, y: Any) -> Any:
            wide = [tf.reshape(one, (BLOCKS * count, -1)) for one in (upstream, y)]
            found = tf.reshape(tf.matmul(*wide, transpose_b=True), (BLOCKS, count, BLOCKS, count))
            return tf.einsum("jpkp->jk", found)

        return product

    found: dict[str, Callable[[Any, Any], Any]] = {
        OURS: lambda upstream, y: gates._product_gradient(tf.zeros((BLOCKS, BLOCKS)), y, upstream)[0],
        "two halves of Y": lambda upstream, y: tf.concat(
            [tf.matmul(upstream, part, transpose_b=True) for part in tf.split(y, 2)], 1
        ),
        "two halves of dS": lambda upstream, y: tf.concat(
            [tf.matmul(part, y, transpose_b=True) for part in tf.split(upstream, 2)], 0
        ),
        "a row at a time": lambda upstream, y: tf.concat(
            [tf.matmul(upstream[j : j + 1], y, transpose_b=True) for j in range(BLOCKS)], 0
        ),
        "a column at a time": lambda upstream, y: tf.stack(
            [tf.linalg.matvec(upstream, y[k]) for k in range(BLOCKS)], 1
        ),
        "transposed": lambda upstream, y: tf.transpose(tf.matmul(y, upstream, transpose_b=True)),
        "halves of the columns": batched,
        "einsum over pieces": in_pieces,
        **{f"{count} pieces of a row by all": diagonal(count) for count in (2, 4)},
    }
    compiled = {name: tf.function(form, autograph=False) for name, form in found.items()}
    compiled[f"{OURS}, XLA"] = tf.function(found[OURS], autograph=False, jit_compile=True)
    return compiled


def times(batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each form and of reading both tensors, a number for each turn.

    Raises:
        AssertionError: if a form gives another product.
    """
    import tensorflow as tf

    found = forms()
    small = np.random.default_rng(0).normal(size=(2, BLOCKS, 4096))
    for name, form in found.items():
        result = form(*(tf.constant(one, tf.float32) for one in small))
        np.testing.assert_allclose(result, small[0] @ small[1].T, rtol=0, atol=1e-3, err_msg=name)
    shape = BLOCKS, batch * SIZE * SIZE * FILTERS
    tensors = [tf.random.stateless_normal(shape, (0, seed)) for seed in range(2)]
    weights = tf.ones((BLOCKS, BLOCKS)) / BLOCKS

    def with_images_first(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda a, b: call(*(tf.reshape(one, (batch, BLOCKS, -1)) for one in (a, b)))

    others = {
        "reading both": lambda a, b: tf.reduce_sum(a) + tf.reduce_sum(b),
        "images first, an image at a time": with_images_first(
            lambda a, b: tf.reduce_sum(tf.matmul(a, b, transpose_b=True), 0)
        ),
        "the gated sum": lambda a, b: tf.matmul(weights, b),
        "the gated sum, images first": with_images_first(lambda a, b: tf.matmul(weights, b)),
    }
    found.update({name: tf.function(call, autograph=False) for name, call in others.items()})
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(-2, rounds):
        for name, form in found.items():
            start = time.perf_counter()
            tf.reshape(form(*tensors), (-1,))[0].numpy()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def markdown(seconds: dict[str, list[float]]) -> str:
    """The median times, and what each form takes of ours."""
    ours = seconds[OURS]
    rows = [
        [name, f"{1e3 * statistics.median(spent):.2f}", f"{latency.ratio(spent, ours):.2f}"]
        for name, spent in seconds.items()
    ]
    lines = [f"{report.described(report.machine())}. {len(ours)} turns.", ""]
    return "\n".join([*lines, *tables.table(["form", "ms", "of ours"], rows)])


if __name__ == "__main__":
    errors.run(main)
