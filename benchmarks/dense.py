"""A DenseNet that learns its skip connections beside one that reads everything and one of random connections.

    python -m benchmarks.dense

On the handwritten digits that the package carries: a 3x3 convolution of 16 filters, a dense block and a transition at
8x8, a dense block at 4x4, average pool and classifier. Every layer reads K of the maps before it, the transition
`--transition_fan_in` of all. The gates are learned in the first phase of the recipe; then the network is pruned, and
what is left is trained through the others. `--dataset=cifar10 --images=5000` takes the first images of CIFAR-10.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
from absl import flags

from benchmarks import report
from gated_resnext import errors, markdown, recipes
from gated_resnext.dense_wiring import DenseWiring

DATASET = flags.DEFINE_string("dataset", "optical_digits", "Data set of the zoo.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
IMAGES = flags.DEFINE_integer("images", 0, "Training images, from the first; 0 for all.", lower_bound=0)
RECIPE = flags.DEFINE_string("recipe", "digits", "Its phases, and its crops.")
EPOCHS_SCALE = flags.DEFINE_float("epochs_scale", 0.5, "Makes every phase longer or shorter, in proportion.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each, with the seeds from 0 on.", lower_bound=2)
LAYERS = flags.DEFINE_integer("layers", 6, "Of each block.", lower_bound=1)
GROWTH = flags.DEFINE_integer("growth", 8, "Channels that a layer writes.", lower_bound=1)
FAN_IN = flags.DEFINE_integer("fan_in", 2, "K of the layers.", lower_bound=1)
TRANSITION_FAN_IN = flags.DEFINE_integer("transition_fan_in", 3, "K of the transition.", lower_bound=1)
GATE_RATE = flags.DEFINE_float("gate_rate", 0.2, "Learning rate of the gates in the first phase.", lower_bound=0)
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
STEM, TRANSITION = 16, 32
BLOCKS = "block1", "block2"


def main(argv: list[str]) -> None:
    del argv
    recipe = recipes.read(RECIPE.value, EPOCHS_SCALE.value)
    images = _images(recipe)
    kinds = {
        "all maps (DenseNet)": "full",
        f"learned, K = {FAN_IN.value}": "learned",
        f"random, K = {FAN_IN.value}": "random",
    }
    found = {(kind, seed): _trained(kind, images, seed) for seed in range(SEEDS.value) for kind in kinds.values()}
    head = ["skip connections", "top-1, %", "each seed", "parameters", "pruned", "layers left", "entropy / log maps"]
    lines = [
        f"{DATASET.value}, {images.size:,} training and {len(images):,} test images, {recipe.epochs:g} epochs, "
        f"{report.described(report.machine())}.",
        "",
    ]
    rows = []
    for name, kind in kinds.items():
        runs = [found[kind, seed] for seed in range(SEEDS.value)]
        top1 = [100 * run["top1"] for run in runs]
        cells = [name, f"{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f}"]
        cells += [", ".join(f"{value:.2f}" for value in top1), f"{runs[0]['parameters']:,}"]
        cells += [", ".join(f"{run['pruned']:,}" for run in runs), ", ".join(run["layers"] for run in runs)]
        cells += [", ".join(filter(None, (run["entropy"] for run in runs)))]
        rows.append(cells)
    report.publish(MARKDOWN.value, "dense", "\n".join([*lines, *markdown.table(head, rows)]))


def _images(recipe: recipes.Recipe) -> Any:
    """The data set, of whose training images the first `--images` are there."""
    from gated_resnext.data import Images

    return Images(DATASET.value, recipe, DATA_DIR.value, limit=IMAGES.value or None)


def network(kind: str, images: Any, *, seed: int) -> Any:
    """The network of a kind, from raw pixels to logits.

    Args:
        kind: "full", "learned" or "random".
        images: what it is for.
        seed: of the weights, the draws and the random wiring.
    """
    import keras

    from gated_resnext.dense_block import GatedDenseBlock
    from gated_resnext.layers import ReplicaMeanNormalization, Standardize
    from gated_resnext.norm import EPSILON, MOMENTUM

    layers, growth, count = LAYERS.value, GROWTH.value, len(images.labels)
    fan_in, at_the_end = (layers + 1, None) if kind == "full" else (FAN_IN.value, TRANSITION_FAN_IN.value)
    sources: list[Any] = [None, None]
    if kind == "random":
        ends = at_the_end, None
        sources = [
            DenseWiring.random(layers, fan_in, end, seed=2 * seed + place).sources for place, end in enumerate(ends)
        ]
    x = inputs = keras.Input(images.input_shape, name="images", dtype="uint8")
    x = Standardize(name="standardize")(x)
    conv = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=seed)
    x = keras.layers.Conv2D(STEM, 3, padding="same", use_bias=False, kernel_initializer=conv, name="stem")(x)
    x = GatedDenseBlock(
        layers, growth, fan_in, TRANSITION, at_the_end, sources=sources[0], seed=2 * seed, name=BLOCKS[0]
    )(x)
    x = keras.layers.AveragePooling2D(2, name="pool1")(x)
    x = GatedDenseBlock(layers, growth, fan_in, sources=sources[1], seed=2 * seed + 1, name=BLOCKS[1])(x)
    x = ReplicaMeanNormalization(momentum=MOMENTUM, epsilon=EPSILON, name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool2")(keras.layers.ReLU(name="relu")(x))
    last = keras.layers.Dense(count, kernel_initializer=keras.initializers.GlorotUniform(seed=seed), name="classifier")
    return keras.Model(inputs, last(x))


def _trained(kind: str, images: Any, seed: int) -> dict[str, Any]:
    """Top-1 of the pruned network after all phases, and its size."""
    import tensorflow as tf

    from gated_resnext import gates, prune
    from gated_resnext.data import WHOLE
    from gated_resnext.loop import Loop
    from gated_resnext.memory import keep_freed_memory
    from gated_resnext.optimizer import GateConnectSGD, restart
    from gated_resnext.scores import Scores

    keep_freed_memory()
    recipe, step, began = images.recipe, 0, time.monotonic()
    model, entropy = network(kind, images, seed=seed), ""
    loop: Any = None
    model.get_layer("standardize").mean_image.assign(images.mean_image())
    before, learning = _parameters(model), kind == "learned"
    if not learning:
        model = prune(model)
    for phase, steps in zip(recipe.phases, recipe.steps(images.steps_per_epoch), strict=True):
        if learning and phase.gate_learning_rate == 0:
            readers = [reader for name in BLOCKS for reader in model.get_layer(name).readers if reader.learns]
            shares = [float(gates.entropy(r.real_gates)) / np.log(r.real_gates.shape[0]) for r in readers]
            entropy = f"{np.mean(shares):.3f}" if shares else ""
            model, learning, loop = prune(model), False, None
        if loop is None:
            optimizer = GateConnectSGD(
                0.0, gate_learning_rate=GATE_RATE.value, l2=recipe.weight_decay, momentum=recipe.momentum
            )
            optimizer.build(model.trainable_variables)
            loop = Loop(model, tf.distribute.get_strategy(), recipe.batch_size, optimizer)
        restart(optimizer)
        optimizer.learning_rate = phase.learning_rate
        total = steps.total
        scores = loop.train(iter(images.train(seed, step, total)), total)
        step += total
        if len(scores) < total:
            raise errors.UserError(f"the loss of {kind} is no longer finite at step {step - total + len(scores)}")
    test = sum(loop.test(images.test_shard(WHOLE)), Scores())
    top1 = test.means()["top1"]
    print(f"{kind}, seed {seed}: {100 * top1:.2f} % in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {
        "top1": top1,
        "parameters": before,
        "pruned": _parameters(model),
        "layers": " + ".join(str(model.get_layer(name).layer_count) for name in BLOCKS),
        "entropy": entropy,
    }


def _parameters(model: Any) -> int:
    """Trainable weights, gates not counted."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables if not v.path.endswith("/real_gates"))


if __name__ == "__main__":
    errors.run(main)
