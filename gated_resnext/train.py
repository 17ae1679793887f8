"""Trains a network of the zoo through its four phases.

    python -m gated_resnext.train
    python -m gated_resnext.train --entry=cifar10_20_4_8_k1 --data_dir=~/tensorflow_datasets --workdir=runs/cifar10_k1

Trains into --workdir; the same command again goes on where it stopped.
"""

from __future__ import annotations

import pathlib

from absl import flags

from gated_resnext import errors, recipes, zoo

ENTRY = flags.DEFINE_string("entry", zoo.DEFAULT, "Network of the zoo to train; see gated_resnext.zoo.names().")
RECIPE = flags.DEFINE_string("recipe", None, f"Schedule: {', '.join(recipes.RECIPES)}. Default: that of the data set.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<entry>.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets. Default: ~/tensorflow_datasets.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, draws, shuffling and augmentation.", lower_bound=0)
EPOCHS_SCALE = flags.DEFINE_float("epochs_scale", 1.0, "Makes every phase longer or shorter, in proportion.")
STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device or mirrored.")


def main(argv: list[str]) -> None:
    del argv
    row = zoo.entry(ENTRY.value)
    name = RECIPE.value or zoo.DATASETS[row.dataset].recipe
    if name not in recipes.RECIPES:
        raise errors.UserError(f"recipe must be one of {', '.join(recipes.RECIPES)}. Received: {name!r}")
    if not 0 < EPOCHS_SCALE.value < float("inf"):
        raise errors.UserError(f"epochs_scale must be above 0. Received: {EPOCHS_SCALE.value}")
    recipe = recipes.RECIPES[name].scaled(EPOCHS_SCALE.value)
    workdir = pathlib.Path(WORKDIR.value or f"runs/{ENTRY.value}").expanduser()

    from gated_resnext import trainer

    scope = trainer.strategy(STRATEGY.value)
    run = trainer.Run.of(ENTRY.value, recipe, seed=SEED.value)
    result = trainer.train(run, workdir, data_dir=DATA_DIR.value, scope=scope)
    print(
        f"\nTrained {result['entry']} on {result['dataset']}: {result['epochs']:g} epochs "
        f"({'the whole' if EPOCHS_SCALE.value == 1 else f'{EPOCHS_SCALE.value:g} of the'} schedule {name!r}), "
        f"{result['seconds']:.0f} s\n"
        f"  top-1           {100 * result['top1']:.2f} % of {result['test_images']} test images\n"
        f"  active blocks   {' '.join(map(str, result['active_blocks']))} of {' '.join(map(str, result['blocks']))}\n"
        f"  parameters      {result['parameters']:,}; {result['parameters_pruned']:,} after pruning\n"
        f"  written         {workdir}/model.keras\n\n"
        f"Next: python -m export.prune_and_save --workdir={workdir} --output=models"
    )


if __name__ == "__main__":
    errors.run(main)
