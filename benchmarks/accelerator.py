"""Training under JAX on an accelerator: images a second, and how near the machine's limits that is.

    KERAS_BACKEND=jax python -m benchmarks.accelerator --json=accelerator.json

Networks train on noise, 32x32, through `gated_resnext.jax_loop`, as the trainer calls it; TensorFlow is not needed. The
machine's limits are measured beside them: bytes a second of adding to a tensor, operations a second of a product of two
bfloat16 matrices. Before that, parts of one module are computed in several ways, in turns, such as its wide part:
writing what its blocks write (y), and never; then the next input is ReLU(G x + G o), G o being one dense product of all
blocks' narrow tensors with the gated, stacked kernels.

`--profile` tells which kernels a step of each network spends its time in. On a machine that is lent for minutes:

    ... --networks=20-4 --profile
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from benchmarks import times
from benchmarks.accelerator_kernels import Kernels, traced
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
PART = flags.DEFINE_string("part", "", "Of a module, the parts whose names have this in them.")
PROFILE = flags.DEFINE_boolean("profile", False, "Whether to tell the kernels of a step, on a GPU.")
ROUNDING = 0.02  # relative: of bfloat16, after a few operations
MOST_KERNELS = 25
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
    print(*markdown.table(["one module, stage 1", "ms"], []), sep="\n")
    rows = []
    networks = [(int(depth), int(width)) for depth, width in (network.split("-") for network in NETWORKS.value)]
    for width in dict.fromkeys([4, *(width for _, width in networks)]):
        for name, seconds in _parts(width):
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
            compiling, seconds, kernels = _training(arch)
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
            if kernels is not None:
                _tell(kernels)


def _tell(kernels: Kernels) -> None:
    if not kernels.of_each:
        print("No kernel of a GPU was seen")
        return
    steps, most, idle = STEPS.value, MOST_KERNELS, 100 * (1 - kernels.busy / kernels.span)
    head = [f"kernel, {1e6 * kernels.busy / steps:.0f} us a step in all, {idle:.0f} % idle", "us a step", "a step"]
    cells = [[name, f"{1e6 * s / steps:.1f}", f"{n / steps:.1f}"] for name, s, n in kernels.of_each[:most]]
    print("", *markdown.table(head, cells), "", sep="\n", flush=True)


def _training(arch: Architecture) -> tuple[float, list[float], Kernels | None]:
    """Seconds until the first call ended, seconds of a step, a number for each turn, and the kernels of a turn."""
    import jax
    import numpy as np
    from jax import numpy as jnp

    from gated_resnext import GatedResNeXt
    from gated_resnext.jax_loop import Batches, JaxLoop, Plan
    from gated_resnext.optimizer import GateConnectSGD

    rng, size = np.random.default_rng(0), STEPS.value * BATCH.value
    model = GatedResNeXt(arch, None, None, precision=PRECISION.value, seed=0)
    optimizer = GateConnectSGD(learning_rate=1e-3)
    optimizer.build(model.trainable_variables)
    loop = JaxLoop(model, BATCH.value, optimizer)
    recipe = dataclasses.replace(RECIPES["cifar"], batch_size=BATCH.value)
    pixels = jnp.asarray(rng.integers(0, 256, (size, *arch.input_shape), np.uint8))
    labels, fill = jnp.asarray(rng.integers(0, arch.classes, size)), jnp.zeros(3, jnp.uint8)
    batches = Batches(Plan(recipe, arch.input_shape, STEPS.value), (pixels, labels, fill, jax.random.key(0)), 0)

    def turn() -> None:
        if len(loop.train(batches, STEPS.value)) != STEPS.value:  # it ends where a loss is not finite
            raise errors.UserError(f"the loss of {arch} is not finite: a turn had fewer steps than {STEPS.value}")

    compiling, seconds = _seconds(turn), [_seconds(turn) / STEPS.value for _ in range(ROUNDS.value)]
    return compiling, seconds, traced(turn) if PROFILE.value else None


def _limits() -> dict[str, float]:
    import jax
    from jax import numpy as jnp

    # Of random numbers, as a chip's clock is higher where all are zero; many calls to one wait.
    side, calls = 8192 if MEBI.value >= 256 else 1024, _calls()
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


def _parts(width: int) -> Iterator[tuple[str, list[float]]]:
    """Seconds of a call of each way of each part, in turns; the ways of a part give the same.

    Raises:
        UserError: if one does not, by more than the rounding of 16 bits.
    """
    import jax
    from jax import numpy as jnp

    from benchmarks.accelerator_parts import PARTS, Sizes, largest_difference

    sizes = Sizes(BATCH.value, jnp.bfloat16 if "16" in PRECISION.value else jnp.float32, width)
    wide = sizes.wide(0)
    yield "a wide tensor read and written", _in_turns({"": jax.jit(lambda x: x + 1)}, (wide,))[""]
    del wide
    for part, made in PARTS.items():
        if PART.value not in part:
            continue
        inputs, ways = made(sizes)
        calls = {way: jax.jit(function) for way, function in ways.items()}
        expected = next(iter(calls.values()))(*inputs)
        for way, call in calls.items():
            if not (difference := largest_difference(call(*inputs), expected)) < ROUNDING:
                raise errors.UserError(f"{part}, {way}: differs from the first way by {difference:.3g}")
        for way, seconds in _in_turns(calls, inputs).items():
            yield f"{part}, width {width}, {way}", seconds


def _in_turns(calls: Mapping[str, Callable[..., Any]], inputs: tuple[Any, ...]) -> dict[str, list[float]]:
    """Seconds of each call, one after the other, a round after the first; each as often as one wait is to hide."""
    import jax

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call(*inputs))
    for _ in range(ROUNDS.value):
        for name, call in calls.items():
            whole = _seconds(lambda call=call: jax.block_until_ready([call(*inputs) for _ in range(_calls())]))  # type: ignore[misc]
            seconds[name].append(whole / _calls())
    return seconds


def _calls() -> int:
    """To one wait: one where the work is small, as where this is tried on a CPU, which may compute two at once."""
    return 20 if MEBI.value >= 256 else 1


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    errors.run(main)
