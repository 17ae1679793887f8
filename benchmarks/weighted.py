"""Learned weights of the sums beside the mean, trained on the digits.

    python -m benchmarks.weighted

{11,4,4} with K = 2 on the handwritten digits that the package carries: a learned and a random wiring, each with the
mean and with weights. Every run is a training of its own in --workdir, so the same command again goes on where it
stopped.
"""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

import numpy as np
from absl import flags

from benchmarks import report
from gated_resnext import errors, markdown, recipes, zoo
from gated_resnext.workdir import Run

SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each, with the seeds from 0 on.", lower_bound=2)
EPOCHS_SCALE = flags.DEFINE_float("epochs_scale", 1.0, "Makes every phase longer or shorter, in proportion.")
SUMS = flags.DEFINE_list("sums", ["mean", "weighted"], "Kinds of sums.")
WIRINGS = flags.DEFINE_list("wirings", ["learned", "random"], "Kinds of wirings.")
WORKDIR = flags.DEFINE_string("workdir", "runs/weighted", "Folder of the trainings.")
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")
ENTRY = "digits_11_4_4_k2"


def main(argv: list[str]) -> None:
    del argv
    recipe = recipes.read("digits", EPOCHS_SCALE.value)
    networks = [(aggregation, wiring) for wiring in WIRINGS.value for aggregation in SUMS.value]
    found = {(network, seed): _trained(network, recipe, seed) for seed in range(SEEDS.value) for network in networks}
    head = [
        "sum",
        "wiring",
        "top-1, %",
        "each seed",
        "parameters",
        "pruned",
        "wired weights: mean ± std, least to most",
    ]
    rows = []
    for network in networks:
        results = [found[network, seed] for seed in range(SEEDS.value)]
        top1 = [100 * result["top1"] for result in results]
        cells = [*network, f"{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f}"]
        cells += [", ".join(f"{value:.2f}" for value in top1), f"{results[0]['parameters']:,}"]
        cells += [", ".join(f"{result['parameters_pruned']:,}" for result in results)]
        weights = np.concatenate([result["weights"] for result in results])
        cells += [f"{weights.mean():.2f} ± {weights.std():.2f}, {weights.min():.2f} to {weights.max():.2f}"]
        rows.append(cells)
    lines = [f"{recipe.epochs:g} epochs, {report.described(report.machine())}.", "", *markdown.table(head, rows)]
    report.publish(MARKDOWN.value, "weighted", "\n".join(lines))


def _trained(network: tuple[str, str], recipe: recipes.Recipe, seed: int) -> dict[str, Any]:
    """The result of a training, with the factors of the sums of all pairs that are wired and active."""
    from gated_resnext import trainer
    from gated_resnext.model import load
    from gated_resnext.pruning import prune

    aggregation, wiring = network
    arch = zoo.architecture(ENTRY).replace(aggregation=aggregation)
    name = f"{aggregation}_{wiring}_{seed}"
    folder = pathlib.Path(WORKDIR.value) / name
    result = trainer.train(Run(name, arch, wiring, "optical_digits", recipe, seed), folder)
    model = prune(load(folder / "model.keras"))
    factors = [np.full(2, 1 / arch.fan_in)]
    if aggregation == "weighted":
        used = model.wiring()
        factors = [
            np.asarray(gate.branch_weights)[used.binary_gates(module) > 0]
            for module, gate in enumerate(model.gates, start=2)
        ]
    return {**result, "weights": np.concatenate(factors)}


if __name__ == "__main__":
    errors.run(main)
