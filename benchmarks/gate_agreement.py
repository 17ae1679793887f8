"""Whether the blocks of a module learn to read the same, and through which path: the gradient of their gates in parts.

    python -m benchmarks.gate_agreement --entry=cifar10_20_4_8_k4 --data_dir=~/tensorflow_datasets

A block passes the gradient of its output to its gates twice: through the shortcut as it is, and through the residual.
The gradients of the first steps of a training are added up for each part, and how far the rows of a module agree is the
mean cosine of two of them, less their means, which the projection of the gates undoes: 1 where all blocks are pulled
alike, 0 where each is pulled on its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from absl import flags

from benchmarks import report
from gated_resnext import errors, markdown, recipes, zoo
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError

ENTRY = flags.DEFINE_string("entry", "cifar10_20_4_8_k4", "Network of the zoo, with a learned wiring.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
STEPS = flags.DEFINE_integer("steps", 100, "Of the training, from its first.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 64, "Images a step.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of weights, draws, shuffling and augmentation.")
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
PARTS = "all", "shortcut", "residual"


def main(argv: list[str]) -> None:
    del argv
    entry, arch = zoo.entry(ENTRY.value), zoo.architecture(ENTRY.value)
    if entry.wiring != "learned":
        raise UserError(f"--entry must have a learned wiring. Received: {ENTRY.value}, whose wiring is {entry.wiring}")
    import tensorflow as tf

    from gated_resnext.data import Images
    from gated_resnext.model import GatedResNeXt
    from gated_resnext.optimizer import GateConnectSGD

    recipe = dataclasses.replace(recipes.RECIPES[DATASETS[entry.dataset].recipe], batch_size=BATCH.value)
    images = Images(entry.dataset, recipe, DATA_DIR.value, arch.input_shape)
    model = GatedResNeXt(arch, classifier_activation=None, seed=SEED.value)
    model.get_layer("standardize").mean_image.assign(images.mean_image())
    phase = recipe.phases[0]
    rates = {"learning_rate": phase.learning_rate, "gate_learning_rate": phase.gate_learning_rate}
    optimizer = GateConnectSGD(**rates, l2=recipe.weight_decay, momentum=recipe.momentum)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step(batch: tf.Tensor, classes: tf.Tensor) -> dict[tuple[int, str], tf.Tensor]:
        gradients, variables = of_gates(model, batch, classes)
        optimizer.apply(variables, model.trainable_variables)
        return gradients

    sums: dict[tuple[int, str], np.ndarray] = {}
    for batch, classes in images.train(SEED.value, 0, STEPS.value):
        gradients = step(batch, classes)
        for key, gradient in gradients.items():
            sums[key] = sums.get(key, 0.0) + gradient.numpy()
    report.publish(MARKDOWN.value, "gate agreement", _table(sums, model))


def of_gates(model: Any, images: Any, classes: Any) -> tuple[dict[tuple[int, str], Any], list[Any]]:
    """The gradients of a step of training.

    Args:
        model: a `GatedResNeXt` that learns its gates and ends in logits.
        images: (batch, height, width, channels).
        classes: (batch,).

    Returns:
        Those of the gates by module and one of `PARTS`, (C, C) each, the last two of modules with identity shortcuts
        alone; and those of all trainable variables, in their order.
    """
    import tensorflow as tf

    from gated_resnext.aggregation import GatedAggregation
    from gated_resnext.layers import MultiBranchModule

    read: dict[int, tuple[Any, Any, Any, Any]] = {}
    with tf.GradientTape() as tape:
        x, y, module = images, None, 0
        for layer in model.layers[1:]:
            if isinstance(layer, GatedAggregation):
                y = x
            splits = isinstance(layer, MultiBranchModule) and y is not None and not layer.projects
            module += isinstance(layer, MultiBranchModule)
            if splits:  # y = x + F(x): zeros added to one x and the other, whose gradients are those of the two paths
                shortcut, residual = tf.zeros_like(x), tf.zeros_like(x)
                tape.watch((shortcut, residual))
                read[module] = x, y, shortcut, residual
                x = layer(x + residual, training=True) + shortcut - residual
            else:
                x = layer(x, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, x))
    variables = [variable.value for variable in model.trainable_variables]
    zeros = [pair[2:] for pair in read.values()]
    of_variables, of_zeros = tape.gradient(loss, (variables, zeros))
    found = {}
    paths = [variable.path for variable in model.trainable_variables]
    for number, gate in enumerate(model.gates, start=2):
        found[number, "all"] = of_variables[paths.index(gate.real_gates.path)]
        if number in read:
            x, y = read[number][:2]
            factor = 1 / gate.fan_in if gate.aggregation == "mean" else 1.0
            for name, of_x in zip(PARTS[1:], of_zeros[[*read].index(number)], strict=True):
                of_sum = tf.reshape(tf.where(x > 0, of_x, 0.0), (x.shape[0], -1))
                found[number, name] = factor * tf.matmul(of_sum, tf.reshape(y, (y.shape[0], -1)), transpose_b=True)
    return found, of_variables


def agreement(rows: np.ndarray) -> float:
    """Mean cosine of two rows, each less its mean; NaN where a row is constant.

    Example:

    >>> agreement(np.array([[1.0, 0.0, 0.0], [4.0, 1.0, 1.0]])), agreement(np.array([[1.0, 0.0], [0.0, 1.0]]))
    (1.0, -1.0)
    """
    centred = rows - rows.mean(1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    count = len(rows)
    return round(float((np.sum(unit @ unit.T) - count) / (count * (count - 1))), 6)


def _table(sums: dict[tuple[int, str], np.ndarray], model: Any) -> str:
    head = ["module", "rows of the gates", *(f"gradient, {name}" for name in PARTS), "size of shortcut / residual"]
    about = f"{ENTRY.value}, {STEPS.value} steps of {BATCH.value} images, seed {SEED.value}. "
    about += f"{report.described(report.machine())}."
    modules = []
    for number, gate in enumerate(model.real_gates(), start=2):
        found = [sums.get((number, name)) for name in PARTS]
        cells = [f"{number}", *("" if rows is None else f"{agreement(rows):.2f}" for rows in (gate, *found))]
        sizes = [0.0 if rows is None else float(np.linalg.norm(rows - rows.mean(1, keepdims=True))) for rows in found]
        cells += [f"{sizes[1] / sizes[2]:.2f}" if sizes[2] else ""]
        modules.append(cells)
    return "\n".join([about, "", *markdown.table(head, modules)])


if __name__ == "__main__":
    errors.run(main)
