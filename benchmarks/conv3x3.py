"""The 3x3 convolutions of a group of blocks: one a block, one grouped, or dense with zeros between the blocks.

    python -m benchmarks.conv3x3 --json=conv3x3.json

A group is the blocks that read the same input: one merged 1x1 convolution narrows it, then each block has a 3x3
convolution of its own. Compared are the bottlenecks up to there, and, with --read=each, the split that hands every
block its own channels on. All compute the same; in one run, in turns, medians.

    split     a convolution a block
    grouped   one grouped convolution
    merged    one dense convolution, zeros between the blocks
    bundled   dense convolutions of as many blocks as fit into 16 channels, as `export.compact` builds them
"""

from __future__ import annotations

import itertools
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks import times
from export.bundles import BUNDLE_CHANNELS, bundles
from gated_resnext import errors

KINDS = ("split", "grouped", "merged", "bundled")
BLOCKS = flags.DEFINE_list("blocks", ["2", "4", "8"], "Blocks in the group.")
WIDTHS = flags.DEFINE_list("widths", ["4", "8", "64"], "Width of a block in the first stage; it doubles with each.")
STAGES = flags.DEFINE_list(
    "stages", ["1", "2", "3"], "1: 32x32 pixels and 64 channels, 2: 16x16 and 128, 3: 8x8 and 256."
)
BATCHES = flags.DEFINE_list("batches", ["1", "64"], "Images a call.")
READ = flags.DEFINE_list("read", ["each", "together"], "What follows reads the blocks one by one, or side by side.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    times.check()
    rows = []
    print(f"time of split by time of the other, above 1 where the other is faster; then ms of {', '.join(KINDS)}")
    for stage, width, blocks, read in itertools.product(STAGES.value, WIDTHS.value, BLOCKS.value, READ.value):
        for row in _measured(int(stage), int(width), int(blocks), read):
            rows.append(row)
            print(_line(row), flush=True)
    times.save(
        times.Times(" ".join([*_what(row).split(), kind]), [ms / 1000 for ms in row["ms"][kind]])
        for row in rows
        for kind in KINDS
    )


def _measured(stage: int, width: int, blocks: int, read: str) -> list[dict[str, Any]]:
    from export import latency

    size, wide, width = 64 >> stage, 32 << stage, width << (stage - 1)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            kind: _runners(_bottleneck(kind, size, wide, width, blocks, read), pathlib.Path(folder) / kind)
            for kind in KINDS
        }
        rows = []
        for runtime, batch in itertools.product(("tensorflow", "tflite"), map(int, BATCHES.value)):
            calls = {kind: runs[kind][runtime](batch) for kind in KINDS}
            row = {"runtime": runtime, "size": size, "width": width, "blocks": blocks, "read": read, "batch": batch}
            rows.append({**row, "ms": latency.interleaved(calls, rounds=ROUNDS.value)})
    return rows


def _line(row: dict[str, Any]) -> str:
    from export import latency

    ratios = "  ".join(f"{kind} x{latency.ratio(row['ms']['split'], row['ms'][kind]):5.2f}" for kind in KINDS[1:])
    medians = "  ".join(f"{statistics.median(row['ms'][kind]):8.3f}" for kind in KINDS)
    return f"{_what(row)}  {ratios}   {medians}"


def _what(row: dict[str, Any]) -> str:
    what = f"{row['runtime']:10} {row['size']:2}x{row['size']:<2} w={row['width']:<3} n={row['blocks']}"
    return f"{what} {row['read']:8} batch {row['batch']:<2}"


def _bottleneck(kind: str, size: int, wide: int, width: int, blocks: int, read: str) -> Any:
    import keras
    from keras import layers

    x = keras.Input((size, size, wide))
    h = layers.Conv2D(blocks * width, 1, activation="relu")(x)
    channels = {"split": 0, "bundled": BUNDLE_CHANNELS}.get(kind, blocks * width)
    widths = [width * len(bundle) for bundle in bundles(range(blocks), width, channels)]
    convs = [
        layers.Conv2D(channels, 3, padding="same", activation="relu", groups=blocks if kind == "grouped" else 1)(part)
        for channels, part in zip(widths, _split(h, widths), strict=True)
    ]
    if read == "together":
        return keras.Model(x, layers.Concatenate()(convs) if len(convs) > 1 else convs)
    return keras.Model(x, [part for conv in convs for part in _split(conv, [width] * (conv.shape[-1] // width))])


def _split(x: Any, widths: list[int]) -> list[Any]:
    import keras
    import numpy as np

    return [x] if len(widths) == 1 else keras.ops.split(x, np.cumsum(widths)[:-1].tolist(), axis=-1)


def _runners(model: Any, folder: pathlib.Path) -> dict[str, Callable[[int], Callable[[], Any]]]:
    """For each runtime, a function from a batch size to a call on that many random images."""
    import numpy as np
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)

    def outputs(x: Any) -> dict[str, Any]:
        return {f"y{number}": y for number, y in enumerate(tf.nest.flatten(model(x, training=False)))}

    module.serve = tf.function(outputs, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    loaded = tf.saved_model.load(str(folder))
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()

    def pixels(batch: int) -> Any:
        return np.random.default_rng(0).normal(size=(batch, *model.input_shape[1:])).astype(np.float32)

    def tensorflow(batch: int) -> Callable[[], Any]:
        x, serve = tf.constant(pixels(batch)), loaded.signatures["serving_default"]
        return lambda: tf.nest.map_structure(lambda y: y.numpy(), serve(x=x))

    def tflite(batch: int) -> Callable[[], Any]:
        interpreter, x = Interpreter(model_content=content, num_threads=2), pixels(batch)
        serve = interpreter.get_signature_runner()
        return lambda: serve(x=x)

    return {"tensorflow": tensorflow, "tflite": tflite}


if __name__ == "__main__":
    errors.run(main)
