"""Training under JAX on an accelerator: images a second, and how near the machine's limits that is.

    KERAS_BACKEND=jax python -m benchmarks.accelerator --json=accelerator.json

Networks train on noise, 32x32, through `gated_resnext.jax_loop`, as the trainer calls it; TensorFlow is not needed. The
machine's limits are measured beside them: bytes a second of adding to a tensor, operations a second of a product of two
bfloat16 matrices. Before that, parts of one module are computed in several ways, in turns. Its wide part: writing what
its blocks write (y), and never; then the next input is ReLU(G x + G o), G o being one dense product of all blocks'
narrow tensors with the gated, stacked kernels. Its 3x3 convolutions: apart, grouped, and as one dense one.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks import times
from benchmarks.traffic import by_theory, wide_bytes
from gated_resnext import errors, markdown
from gated_resnext.architecture import Architecture
from gated_resnext.recipes import RECIPES

NETWORKS = flags.DEFINE_list("networks", ["20-4", "29-8", "29-64"], "Depth-width, 8 blocks a module.")
BATCH = flags.DEFINE_integer("batch", 128, "Images a step.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 100, "Steps a turn, in one call.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns.", lower_bound=1)
PRECISION = flags.DEFINE_string("precision", "mixed_bfloat16", "Of the arithmetic.")
MEBI = flags.DEFINE_integer("mebi", 256, "Of the tensors that the machine's limits are measured with.", lower_bound=1)
KINDS: dict[str, dict[str, Any]] = {
    "learned K=4": {"fan_in": 4},
    "learned K=1": {"fan_in": 1},
    "full": {"fan_in": 8, "aggregation": "shared"},
}


def main(argv: list[str]) -> None:
    del argv
    times.check()
    import jax

    limit = _limits()
    about = {"device": jax.devices()[0].device_kind, "precision": PRECISION.value, "batch": BATCH.value}
    about |= {"copy_bytes_per_s": limit["copy"], "product_flop_per_s": limit["product"]}
    print(
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: {limit['copy'] / 1e9:.0f} GB/s, "
        f"{limit['product'] / 1e12:.2f} TFLOP/s in bfloat16\n"
    )
    print(*markdown.table(["one module, forward and backward", "ms"], []), sep="\n")
    rows = []
    networks = [(int(depth), int(width)) for depth, width in (network.split("-") for network in NETWORKS.value)]
    ways = _two_ways()
    for width in dict.fromkeys(width for _, width in networks):
        ways |= _convolutions(width)
    for name, seconds in ways.items():
        print(markdown.row([name, f"{1e3 * statistics.median(seconds):.3f}"]), flush=True)
        rows.append(times.Times(f"one module, {name}", seconds))
    times.save(rows, about)  # and again after each network: a machine that is lent may go at any time
    head = [f"network, batch {BATCH.value}, {PRECISION.value}", "images/s", "of the matrix rate"]
    head += [f"of the bandwidth, by {by_theory()} wide passes a module", "to compile, s"]
    print("", *markdown.table(head, []), sep="\n")
    for depth, width in networks:
        for kind, fields in KINDS.items():
            arch = Architecture(
                depth=depth, width=width, cardinality=8, stem_filters=64 if width == 64 else 16, **fields
            )
            compiling, seconds = _training(arch)
            step = statistics.median(seconds)
            size = 2 if "16" in PRECISION.value else 4
            wide = wide_bytes(arch, (arch.cardinality,) * arch.modules, BATCH.value, size) / step
            operations = 6 * arch.multiply_adds() * BATCH.value / step
            cells = [f"{{{depth},{width},8}}, {kind}", f"{BATCH.value / step:,.0f}"]
            cells += [f"{100 * operations / limit['product']:.1f} %"]
            cells += ["" if arch.aggregation == "shared" else f"{100 * by_theory() * wide / limit['copy']:.0f} %"]
            print(markdown.row([*cells, f"{compiling:.0f}"]), flush=True)
            rows.append(times.Times(f"{cells[0]}, train", seconds, {"loops": STEPS.value}))
            times.save(rows, about)


def _training(arch: Architecture) -> tuple[float, list[float]]:
    """Seconds until the first call ended, and seconds of a step, a number for each turn."""
    import jax
    import numpy as np
    from jax import numpy as jnp

    from gated_resnext import GatedResNeXt
    from gated_resnext.jax_loop import Batches, JaxLoop, Plan
    from gated_resnext.optimizer import GateConnectSGD

    rng, size = np.random.default_rng(0), 4 * BATCH.value
    model = GatedResNeXt(arch, None, None, precision=PRECISION.value, seed=0)
    optimizer = GateConnectSGD(learning_rate=1e-3)
    optimizer.build(model.trainable_variables)
    loop = JaxLoop(model, BATCH.value, optimizer)
    recipe = dataclasses.replace(RECIPES["cifar"], batch_size=BATCH.value)
    pixels = jnp.asarray(rng.integers(0, 256, (size, *arch.input_shape), np.uint8))
    labels, fill = jnp.asarray(rng.integers(0, arch.classes, size)), jnp.zeros(3, jnp.uint8)
    batches = Batches(Plan(recipe, arch.input_shape, 4), (pixels, labels, fill, jax.random.key(0)), 0)

    def turn() -> None:
        if len(loop.train(batches, STEPS.value)) != STEPS.value:  # it ends where a loss is not finite
            raise errors.UserError(f"the loss of {arch} is not finite: a turn had fewer steps than {STEPS.value}")

    return _seconds(turn), [_seconds(turn) / STEPS.value for _ in range(ROUNDS.value)]


def _limits() -> dict[str, float]:
    import jax
    from jax import numpy as jnp

    # Of random numbers, as a chip's clock is higher where all are zero; many calls to one wait.
    side, calls = (8192, 20) if MEBI.value >= 256 else (1024, 2)
    long = jax.random.normal(jax.random.key(0), (MEBI.value << 18,))
    square = jax.random.normal(jax.random.key(1), (side, side), jnp.bfloat16)
    add, product = jax.jit(lambda a: a + 1), jax.jit(lambda a: a @ a)

    def least(call: Callable[[], Any]) -> float:
        jax.block_until_ready(call())
        return min(_seconds(lambda: jax.block_until_ready([call() for _ in range(calls)])) for _ in range(7)) / calls

    return {
        "copy": 2 * long.nbytes / least(lambda: add(long)),
        "product": 2 * side**3 / least(lambda: product(square)),
    }


def _two_ways() -> dict[str, list[float]]:
    """Seconds of one module's wide part, forward and backward, with y and without; both give the same."""
    import jax
    import numpy as np
    from jax import numpy as jnp

    blocks, size, filters, width = 8, 32, 64, 4
    rows, dtype = BATCH.value * size * size, jnp.bfloat16 if "16" in PRECISION.value else jnp.float32
    keys = jax.random.split(jax.random.key(0), 4)
    gates = jax.random.bernoulli(keys[0], 0.5, (blocks, blocks)).astype(dtype) / 4
    x = jax.random.normal(keys[1], (blocks, rows, filters), dtype)
    h = jax.random.normal(keys[2], (blocks, rows, width), dtype)
    kernel = jax.random.normal(keys[3], (blocks, width, filters), dtype)

    def written(gates: Any, x: Any, h: Any, kernel: Any) -> Any:
        y = x + h @ kernel
        return jax.nn.relu((gates @ y.reshape(blocks, -1)).reshape(x.shape))

    def never(gates: Any, x: Any, h: Any, kernel: Any) -> Any:
        gated = jnp.einsum("jk,kwf->jkwf", gates, kernel).reshape(blocks, blocks * width, filters)
        beside = h.transpose(1, 0, 2).reshape(rows, -1)
        return jax.nn.relu((gates @ x.reshape(blocks, -1)).reshape(x.shape) + beside @ gated)

    inputs = gates, x, h, kernel
    close = np.allclose(written(*inputs).astype(jnp.float32), never(*inputs).astype(jnp.float32), atol=0.2, rtol=0.05)
    assert close, "the two ways differ"

    def gradients(way: Callable[..., Any]) -> Any:
        return jax.jit(jax.grad(lambda *given: jnp.sum(jnp.square(way(*given))).astype(jnp.float32), (0, 1, 2, 3)))

    return _in_turns({"y written": gradients(written), "y never written": gradients(never)}, inputs)


def _convolutions(width: int, blocks: int = 8, size: int = 32) -> dict[str, list[float]]:
    """Seconds of a module's 3x3 convolutions, forward and backward, in three forms that give the same.

    Apart, a convolution a block, is what `gated_resnext.layers` does, which is best on a CPU; grouped is one with as
    many groups as blocks; dense is one of all channels, whose kernel has zeros between the blocks.
    """
    import jax
    import numpy as np
    from jax import lax
    from jax import numpy as jnp

    dtype = jnp.bfloat16 if "16" in PRECISION.value else jnp.float32
    h = jax.random.normal(jax.random.key(0), (blocks, BATCH.value, size, size, width), dtype)
    kernel = jax.random.normal(jax.random.key(1), (blocks, 3, 3, width, width), dtype) / (3 * width**0.5)
    of = ("NHWC", "HWIO", "NHWC")

    def convolved(h: Any, kernel: Any, groups: int = 1) -> Any:
        return lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=of, feature_group_count=groups)

    def apart(h: Any, kernel: Any) -> Any:
        return jnp.stack([convolved(h[block], kernel[block]) for block in range(blocks)])

    def beside(h: Any) -> Any:
        return h.transpose(1, 2, 3, 0, 4).reshape(*h.shape[1:4], -1)

    def back(h: Any) -> Any:
        return h.reshape(*h.shape[:3], blocks, width).transpose(3, 0, 1, 2, 4)

    def grouped(h: Any, kernel: Any) -> Any:
        return back(convolved(beside(h), kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, width, -1), blocks))

    def dense(h: Any, kernel: Any) -> Any:
        between = jnp.einsum("jhwio,jk->hwjiko", kernel, jnp.eye(blocks, dtype=dtype))
        return back(convolved(beside(h), between.reshape(3, 3, blocks * width, blocks * width)))

    ways = {"apart": apart, "grouped": grouped, "dense": dense}
    expected = np.asarray(apart(h, kernel), np.float32)
    for name, way in ways.items():
        close = np.allclose(np.asarray(way(h, kernel), np.float32), expected, atol=0.1, rtol=0.05)
        assert close, f"{name} differs from apart"

    def gradients(way: Callable[..., Any]) -> Any:
        return jax.jit(jax.grad(lambda *given: jnp.sum(jnp.square(way(*given))).astype(jnp.float32), (0, 1)))

    calls = {f"3x3 of width {width}, {name}": gradients(way) for name, way in ways.items()}
    return _in_turns(calls, (h, kernel))


def _in_turns(calls: dict[str, Callable[..., Any]], inputs: tuple[Any, ...]) -> dict[str, list[float]]:
    """Seconds of each call, one after the other, a round after the first."""
    import jax

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call(*inputs))
    for _ in range(ROUNDS.value):
        for name, call in calls.items():
            seconds[name].append(_seconds(lambda call=call: jax.block_until_ready(call(*inputs))))  # type: ignore[misc]
    return seconds


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    errors.run(main)
