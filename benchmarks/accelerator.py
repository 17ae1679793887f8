"""Training under JAX on an accelerator: images a second, and how near the machine's limits that is.

    KERAS_BACKEND=jax python -m benchmarks.accelerator --json=accelerator.json

Networks train on noise, 32x32, through `gated_resnext.jax_loop`, as the trainer calls it; TensorFlow is not needed. The
machine's limits are measured beside them: bytes a second of adding to a tensor, operations a second of a product of two
bfloat16 matrices. Then one module is computed in two ways, in turns: writing what its blocks write (y), and never. Then
the next input is ReLU(G x + G o), G o being one dense product of all blocks' narrow tensors with the gated, stacked
kernels.
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
from gated_resnext import errors
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
    print(
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: {limit['copy'] / 1e9:.0f} GB/s, "
        f"{limit['product'] / 1e12:.2f} TFLOP/s in bfloat16\n\n"
        f"| network, batch {BATCH.value}, {PRECISION.value} | images/s | of the matrix rate | of the bandwidth, by "
        f"{by_theory()} wide passes a module |\n|---|---|---|---|"
    )
    rows = []
    for network in NETWORKS.value:
        depth, width = map(int, network.split("-"))
        for kind, fields in KINDS.items():
            arch = Architecture(
                depth=depth, width=width, cardinality=8, stem_filters=64 if width == 64 else 16, **fields
            )
            seconds = _training(arch)
            step = statistics.median(seconds)
            size = 2 if "16" in PRECISION.value else 4
            wide = wide_bytes(arch, (arch.cardinality,) * arch.modules, BATCH.value, size) / step
            operations = 6 * arch.multiply_adds() * BATCH.value / step
            cells = [f"{{{depth},{width},8}}, {kind}", f"{BATCH.value / step:,.0f}"]
            cells += [f"{100 * operations / limit['product']:.1f} %"]
            cells += ["" if arch.aggregation == "shared" else f"{100 * by_theory() * wide / limit['copy']:.0f} %"]
            print("| " + " | ".join(cells) + " |", flush=True)
            rows.append(times.Times(f"{cells[0]}, train", seconds, {"loops": STEPS.value}))
    ways = _two_ways()
    first, second = (statistics.median(ways[name]) for name in ("y written", "y never written"))
    print(f"\nOne module, forward and backward: {1e3 * first:.2f} ms with y, {1e3 * second:.2f} ms without")
    about = {"device": jax.devices()[0].device_kind, "precision": PRECISION.value, "batch": BATCH.value}
    about |= {"copy_bytes_per_s": limit["copy"], "product_flop_per_s": limit["product"]}
    times.save([*rows, *(times.Times(f"one module, {name}", seconds) for name, seconds in ways.items())], about)


def _training(arch: Architecture) -> list[float]:
    """Seconds of a step, a number for each turn."""
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
    loop.train(batches, STEPS.value)
    return [_seconds(lambda: loop.train(batches, STEPS.value)) / STEPS.value for _ in range(ROUNDS.value)]


def _limits() -> dict[str, float]:
    from jax import jit
    from jax import numpy as jnp

    side = 4096 if MEBI.value >= 256 else 1024
    long, square = jnp.zeros(MEBI.value << 18), jnp.ones((side, side), jnp.bfloat16)
    add, product = jit(lambda a: a + 1), jit(lambda a: a @ a)
    add(long).block_until_ready(), product(square).block_until_ready()
    return {
        "copy": 2 * long.nbytes / min(_seconds(lambda: add(long).block_until_ready()) for _ in range(7)),
        "product": 2 * side**3 / min(_seconds(lambda: product(square).block_until_ready()) for _ in range(7)),
    }


def _two_ways(blocks: int = 8, size: int = 32, filters: int = 64, width: int = 4) -> dict[str, list[float]]:
    """Seconds of one module's wide part, forward and backward, with y and without; both give the same."""
    import jax
    import numpy as np
    from jax import numpy as jnp

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

    calls = {"y written": gradients(written), "y never written": gradients(never)}
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
