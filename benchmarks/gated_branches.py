"""Blocks of different kinds: learned gates beside the same blocks wired fully and at random.

    python -m benchmarks.gated_branches --markdown=docs/beyond.md
    python -m benchmarks.gated_branches --dataset=cifar10 --train_images=5000 --test_images=2000 --data_dir=DIR

Every module has a residual block of each kind; the last is read whole, the others as far as the wiring says. For each
wiring and seed a network is trained, pruned, trained on at a fifth of the rate and evaluated on the test images; one of
a fixed wiring is pruned at once, which changes nothing but the time. Images are not augmented.
"""

from __future__ import annotations

import collections
import math
import re
import statistics
import sys
import time
from typing import Any

from absl import flags

from benchmarks import report
from gated_resnext import errors, markdown
from gated_resnext.memory import keep_freed_memory

DATASET = flags.DEFINE_enum("dataset", "optical_digits", ["optical_digits", "cifar10"], "What to learn.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets. Default: ~/tensorflow_datasets.")
TRAIN = flags.DEFINE_integer("train_images", None, "Of them, from the first; all if not given.")
TEST = flags.DEFINE_integer("test_images", None, "Of them, from the first; all if not given.")
MODULES = flags.DEFINE_integer("modules", 4, "Modules.", lower_bound=2)
CHANNELS = flags.DEFINE_integer("channels", 12, "Of every block.", lower_bound=1)
EPOCHS = flags.DEFINE_list("epochs", ["12", "8"], "Passes over the images before and after pruning.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Networks of each wiring.", lower_bound=1)
GATE_RATE = flags.DEFINE_float("gate_learning_rate", 0.2, "Of the gates; the weights' is 0.1.")
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
WIRINGS = flags.DEFINE_string(
    "wirings",
    "full;random, K = 1;learned, K = 1;random, K = 2;learned, K = 2",
    "Rows of the table, between semicolons.",
)
BATCH = 64
KINDS = ("3x3", "separable", "5x5", "pool")
HEAD = (
    "wiring",
    "top-1, %",
    "parameters",
    "pruned",
    "active blocks before the last module",
    *(f"of them {kind}" for kind in KINDS),
    "entropy of the gates, nats",
)
Pair = tuple[Any, Any]


def block(kind: str, shape: tuple[int, int, int]) -> Any:
    """y = x + F(x), F of one kind of block with its batch norm."""
    from keras import Input, Model, layers

    x, channels = Input(shape), shape[-1]
    if kind == "3x3":
        f = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
    elif kind == "5x5":
        f = layers.Conv2D(channels, 5, padding="same", use_bias=False)(x)
    elif kind == "separable":
        f = layers.SeparableConv2D(channels, 3, padding="same", use_bias=False)(x)
    else:
        f = layers.Conv2D(channels, 1, use_bias=False)(layers.AveragePooling2D(3, 1, "same")(x))
    f = layers.BatchNormalization(momentum=0.9)(f)
    return Model(x, layers.Add()([x, f]), name=kind)


def network(wiring: str, input_shape: tuple[int, int, int], *, seed: int) -> Any:
    """A network of `MODULES` modules of a block of each kind."""
    import keras
    from keras import layers

    from gated_resnext import Connectivity, GatedBranches

    keras.utils.set_random_seed(seed)
    modules, count = MODULES.value, len(KINDS)
    kind, fan_in = wiring.split(",")[0], count if wiring == "full" else int(wiring[-1])
    fixed = Connectivity.full(modules, count) if kind == "full" else None
    if kind == "random":
        fixed = Connectivity.random(modules, count, fan_in, seed=seed)
    images = keras.Input(input_shape, dtype="uint8", name="images")
    x = layers.Conv2D(CHANNELS.value, 3, padding="same", use_bias=False)(layers.Rescaling(1 / 255, -0.5)(images))
    y: Any = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    if input_shape[0] > 8:
        y = layers.MaxPooling2D()(y)
    for module in range(modules):
        if module and module == modules // 2:
            y = [layers.MaxPooling2D()(each) for each in y]
        shape = (y[0] if module else y).shape[1:]
        sources = fixed.sources[module - 1] if fixed and module else None
        y = GatedBranches([block(kind, shape) for kind in KINDS], fan_in, sources=sources, seed=seed + module)(y)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Average()(y)))
    return keras.Model(images, layers.Dense(10, activation="softmax")(x))


def trained(wiring: str, train: Pair, test: Pair, *, seed: int) -> dict[str, Any]:
    """What became of a network."""
    import gated_resnext
    from gated_resnext import gates
    from gated_resnext.optimizer import GateConnectSGD

    model = network(wiring, train[0].shape[1:], seed=seed)
    parameters, learns = _parameters(model), wiring.startswith("learned")
    if not learns:
        active, model = gated_resnext.wiring(model).active, gated_resnext.prune(model)
    entropy = None
    for (rate, gate_rate), epochs in zip(((0.1, GATE_RATE.value), (0.02, 0.0)), map(int, EPOCHS.value), strict=True):
        model.compile(
            GateConnectSGD(rate, gate_learning_rate=gate_rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        model.fit(*train, BATCH, epochs, verbose=0)
        if learns and entropy is None:
            learned = [v for v in model.trainable_variables if v.path.endswith("real_gates")]
            entropy = statistics.fmean(float(gates.entropy(each)) for each in learned)
            active, model = gated_resnext.wiring(model).active, gated_resnext.prune(model)
    _, top1 = model.evaluate(*test, batch_size=250, verbose=0)
    return {
        "top1": 100 * top1,
        "parameters": parameters,
        "pruned": _parameters(model),
        "entropy": entropy,
        "kinds": collections.Counter(KINDS[place] for module in active[:-1] for place in module),
    }


def _parameters(model: Any) -> int:
    """Trainable weights that are no gates."""
    return sum(math.prod(v.shape) for v in model.trainable_variables if not v.path.endswith("real_gates"))


def main(argv: list[str]) -> None:
    del argv
    wirings = WIRINGS.value.split(";")
    for wiring in wirings:
        if not re.fullmatch(f"full|(random|learned), K = [1-{len(KINDS)}]", wiring):
            raise errors.UserError(
                f"--wirings are full, or random or learned like 'learned, K = 1', K up to {len(KINDS)}. "
                f"Received: {wiring!r}"
            )
    if not re.fullmatch("[1-9][0-9]*,[1-9][0-9]*", ",".join(EPOCHS.value)):
        raise errors.UserError(
            f"--epochs are those before and those after pruning, like 12,8. Received: {','.join(EPOCHS.value)}"
        )
    from gated_resnext.data import Images
    from gated_resnext.datasets.table import DATASETS
    from gated_resnext.recipes import RECIPES

    keep_freed_memory()
    source = Images(DATASET.value, RECIPES[DATASETS[DATASET.value].recipe], DATA_DIR.value)
    train, test = source.arrays("train"), source.arrays("test")
    train, test = (train[0][: TRAIN.value], train[1][: TRAIN.value]), (test[0][: TEST.value], test[1][: TEST.value])
    lines = [
        f"{DATASET.value}: {len(train[0]):,} training and {len(test[0]):,} test images, {SEEDS.value} seeds, "
        f"{' + '.join(EPOCHS.value)} epochs. {report.described(report.machine())}.",
        "",
    ]
    rows = []
    for wiring in wirings:
        runs = []
        for seed in range(SEEDS.value):
            start = time.perf_counter()
            runs.append(trained(wiring, train, test, seed=seed))
            took = time.perf_counter() - start
            print(f"{wiring}, seed {seed}: {runs[-1]['top1']:.2f} %, {took:.0f} s", file=sys.stderr, flush=True)
        rows.append(_cells(wiring, runs))
    lines += markdown.table(HEAD, rows)
    report.publish(MARKDOWN.value, f"gated branches on {DATASET.value}", "\n".join(lines))


def _cells(wiring: str, runs: list[dict[str, Any]]) -> list[str]:
    """A row of the table: means over the seeds, of top-1 with the standard deviation."""
    top1 = [run["top1"] for run in runs]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    kinds = [statistics.fmean(run["kinds"][kind] for run in runs) for kind in KINDS]
    entropy = [run["entropy"] for run in runs if run["entropy"] is not None]
    return [
        wiring,
        f"{statistics.fmean(top1):.2f}{spread}",
        f"{runs[0]['parameters']:,}",
        f"{statistics.fmean(run['pruned'] for run in runs):,.0f}",
        f"{sum(kinds):.1f} of {len(KINDS) * (MODULES.value - 1)}",
        *(f"{count:.1f}" for count in kinds),
        f"{statistics.fmean(entropy):.3f}" if entropy else "",
    ]


if __name__ == "__main__":
    errors.run(main)
