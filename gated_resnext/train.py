"""Trains a network of the zoo, or one on images of your own, through its four phases.

    python -m gated_resnext.train
    python -m gated_resnext.train --entry=cifar10_20_4_8_k1 --data_dir=~/tensorflow_datasets --workdir=runs/cifar10_k1
    python -m gated_resnext.train --entry=cifar10_20_4_8_k4 --wiring=runs/other/result.json --workdir=runs/given
    python -m gated_resnext.train --entry=cifar10_20_4_8_k4 --architecture='{"depth": 29, "fan_in": 2}'
    python -m gated_resnext.train --image_folder=photos --epochs_scale=0.1
    python -m gated_resnext.train --image_folder=photos --weights=cifar10_20_4_8_k4
    python -m gated_resnext.train --dataset=tf_flowers --architecture='{"width": 8}' --batch_size=32

Trains into --workdir; the same command again goes on where it stopped.
"""

from __future__ import annotations

import pathlib
import shlex
from typing import TYPE_CHECKING, Any

from absl import flags

from gated_resnext import errors, recipes, training_flags, versions, workdir, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.datasets.table import of_folder

if TYPE_CHECKING:
    from gated_resnext.start import Start

ENTRY = flags.DEFINE_string(
    "entry",
    None,
    f"Network of the zoo to train. Default: {zoo.DEFAULT}, or one that fits. For data of your own its shape is taken, "
    "not its weights, which --weights takes. See gated_resnext.zoo.names().",
)
DATASET = flags.DEFINE_string("dataset", None, "Any data set of tensorflow-datasets with `image` and `label`.")
IMAGE_FOLDER = flags.DEFINE_string(
    "image_folder", None, "Folder of images with a sub-folder for each class, or with such in train/ and test/."
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "A trained network to begin with, its weights and its wiring: a published one of the zoo, a workdir or a .keras "
    "file. Default schedule: the phases of smaller rates, with which the paper's end; default data: its own.",
)
WIRING = flags.DEFINE_string(
    "wiring",
    None,
    "A wiring that stays from the first step on, in place of the entry's: a .json file of Connectivity.to_json, or one "
    "that holds it as `connectivity`, as a training's result.json and a card of the zoo do.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<network>.")
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow-datasets ($TFDS_DATA_DIR or ~/tensorflow_datasets), or under JAX of gated_resnext.pack (.).",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, draws, shuffling and augmentation.", 0, 2**63 - 1)
flags.adopt_module_key_flags(training_flags)


def main(argv: list[str]) -> None:
    del argv
    given = ENTRY, DATASET, IMAGE_FOLDER, *training_flags.TEXTS, WEIGHTS, WIRING, WORKDIR, DATA_DIR
    errors.check_given(*given)
    errors.check_local(WORKDIR)
    if WEIGHTS.value is not None and (ENTRY.value or WIRING.value):
        raise errors.UserError("--weights says what the network and its wiring are: leave --entry and --wiring out")
    run = _wired(_run_of_the_zoo()) if _is_of_the_zoo() else None

    from gated_resnext import trainer

    options, begin = training_flags.options(), None
    if WEIGHTS.value is not None:
        from gated_resnext import start

        begin = start.read(WEIGHTS.value)
    run = run or _wired(_run_of_another(begin))
    folder = pathlib.Path(WORKDIR.value or f"runs/{run.entry}").expanduser()
    result = trainer.train(
        run,
        folder,
        data_dir=DATA_DIR.value,
        began=lambda devices: workdir.note_machine(folder, versions.of_training(), versions.hardware(devices)),
        start=begin,
        **options,
    )
    if not _writes(options["strategy"]):
        return
    print(
        f"\nTrained {result['entry']} on {result['dataset']}: {result['epochs']:g} epochs "
        f"({_share(run)} schedule {result['recipe']!r}), {result['seconds']:.0f} s\n"
        f"  top-1           {100 * result['top1']:.2f} % of {result['test_images']} test images, top-5 "
        f"{100 * result['top5']:.2f} %\n"
        f"  active blocks   {' '.join(map(str, result['active_blocks']))} of {' '.join(map(str, result['blocks']))}\n"
        f"  parameters      {result['parameters']:,}; {result['parameters_pruned']:,} after pruning\n"
        f"  written         {folder}/model.keras\n\n"
        f"Next: python -m export.prune_and_save {shlex.join([f'--workdir={folder}', *_data_for_export(result)])} "
        "--output=models"
    )


def _share(run: workdir.Run) -> str:
    """How much of which schedule it was: the whole one is that of the data set alone."""
    if training_flags.EPOCHS_SCALE.value != 1:
        return f"{training_flags.EPOCHS_SCALE.value:g} of the"
    own = zoo.DATASETS[run.dataset].recipe if run.dataset in zoo.DATASETS else run.recipe.name
    return "the whole" if run.recipe == recipes.RECIPES.get(own) else "of the"


def _data_for_export(result: dict[str, Any]) -> list[str]:
    """Where the export finds the images: not in what JAX was given, for the export reads them by TensorFlow."""
    return [f"--data_dir={DATA_DIR.value}"] if DATA_DIR.value and result["backend"] == "tensorflow" else []


def _writes(strategy: Any) -> bool:
    """Whether this process is the one of several workers that writes."""
    if strategy is None:
        return True
    from gated_resnext import distribution

    return distribution.is_chief(strategy)


def _is_of_the_zoo() -> bool:
    """Whether it is a network of the zoo on the data set that is its own."""
    return not (DATASET.value or IMAGE_FOLDER.value or training_flags.ARCHITECTURE.value or WEIGHTS.value)


def _run_of_the_zoo() -> workdir.Run:
    entry = ENTRY.value or zoo.DEFAULT
    recipe = training_flags.recipe(zoo.DATASETS[zoo.entry(entry).dataset].recipe)
    return workdir.Run.of(entry, recipe, seed=SEED.value)


def _run_of_another(begin: Start | None) -> workdir.Run:
    """The run of another network than the zoo's, on other data, or from the weights of a trained one."""
    if DATASET.value and IMAGE_FOLDER.value:
        raise errors.UserError("give one of --dataset=NAME and --image_folder=FOLDER")
    entry, dataset = ENTRY.value, of_folder(IMAGE_FOLDER.value) if IMAGE_FOLDER.value else DATASET.value
    if dataset is None and begin is not None:
        if begin.dataset is None:
            raise errors.UserError(f"{WEIGHTS.value} does not say on what to train: give --image_folder or --dataset")
        dataset = begin.dataset
    elif dataset is None:
        entry = entry or zoo.DEFAULT
        dataset = zoo.entry(entry).dataset
    from gated_resnext import own_data

    own_data.check_backend(dataset)
    return own_data.run_of(
        dataset,
        entry=entry,
        fields=training_flags.fields(),
        recipe=training_flags.recipe if begin is None else _fine_tuning,
        seed=SEED.value,
        data_dir=DATA_DIR.value,
        start=begin,
    )


def _fine_tuning(default: str) -> recipes.Recipe:
    """The end of the default schedule, or all of --recipe."""
    found = training_flags.recipe(default)
    return found if training_flags.RECIPE.value else found.fine_tuning()


def _wired(run: workdir.Run) -> workdir.Run:
    """The run with the wiring of --wiring, where there is one; a rate of the gates goes with learned ones alone."""
    run = run if WIRING.value is None else run.with_wiring(Connectivity.read(WIRING.value))
    learns = run.wiring == "learned" and run.architecture.learnable
    learns = learns and any(phase.gate_learning_rate for phase in run.recipe.phases)
    if training_flags.GATE_LEARNING_RATE.value is not None and not learns:
        if run.wiring == "learned" and run.architecture.learnable:
            raise errors.UserError(f"--gate_learning_rate: the schedule {run.recipe.name!r} learns no gates")
        kind = run.wiring if run.architecture.learnable else "full"
        raise errors.UserError(f"--gate_learning_rate is of gates that are learned; {run.entry} has a {kind} wiring")
    return run


if __name__ == "__main__":
    errors.run(main)
