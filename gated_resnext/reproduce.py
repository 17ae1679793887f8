"""Reproduces a table, a figure or an ablation: trains its rows and keeps a ledger, the paper's numbers beside ours.

Or compares the wirings of the paper's tables on images of your own.

    python -m gated_resnext.reproduce --table=3 --rows='cifar10_20_4_8_*'
    python -m gated_resnext.reproduce --figure=2 --dataset=cifar10 --epochs_scale=0.05 --seeds=2
    python -m gated_resnext.reproduce --ablation=gates --dataset=optical_digits
    python -m gated_resnext.reproduce --image_folder=photos --seeds=2

Trains one run after the other into --output, and writes <output>/<what>.md and .csv, of a figure also .svg, after each;
the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
from typing import Any

from absl import flags

from gated_resnext import errors, experiments, ledger, recipes, reproduction, training_flags, versions, zoo
from gated_resnext.datasets.table import FOLDER, of_folder
from gated_resnext.drawing import canvas

TABLE = flags.DEFINE_enum("table", None, [f"{number}" for number in experiments.TABLES], "Table of the paper.")
FIGURE = flags.DEFINE_enum("figure", None, [f"{number}" for number in experiments.FIGURES], "Figure of the paper.")
ABLATION = flags.DEFINE_enum(
    "ablation", None, experiments.ABLATIONS, "Real-valued gates, the sum of Eq. 2, or random wirings, on {20,4,8}."
)
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    f"One of {', '.join(zoo.DATASETS)}. Default: that of the paper; of the ablations {experiments.ABLATED_ON}. "
    "With none of the three: compare wirings on it, any data set of tensorflow-datasets with `image` and `label`.",
)
IMAGE_FOLDER = flags.DEFINE_string("image_folder", None, "Or compare wirings on a folder of images, as train takes it.")
ENTRY = flags.DEFINE_string(
    "entry", None, "The zoo's network whose shape is compared on own images. Default: a small one."
)
ROWS = flags.DEFINE_list("rows", ["*"], "Names of the rows to run, as shell patterns.", allow_overwrite=False)
SEEDS = flags.DEFINE_integer("seeds", 4, "How many seeds, from 0 on. The paper has 4.", 1, 10_000)
LIMIT = flags.DEFINE_integer(
    "limit", None, "Train on the first so many images alone; the test images stay whole.", lower_bound=1
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow-datasets ($TFDS_DATA_DIR or ~/tensorflow_datasets), or under JAX of gated_resnext.pack (.).",
)
OUTPUT = flags.DEFINE_string("output", "runs/reproduce", "Folder of workdirs, Markdown and CSV.")
HARDWARE = flags.DEFINE_string(
    "hardware", None, "What it is trained on, for the header. Default: devices, cores and system."
)
flags.adopt_module_key_flags(training_flags)


def main(argv: list[str]) -> None:
    del argv
    errors.check_given(DATASET, IMAGE_FOLDER, ENTRY, *training_flags.TEXTS, OUTPUT, HARDWARE, DATA_DIR)
    errors.check_local(OUTPUT)
    experiment, whole = _of_ones_own() if _is_of_ones_own() else _of_the_paper()
    experiment = reproduction.chosen(experiment, ROWS.value)
    recipe = training_flags.recipe(whole.name)
    machine = versions.of_training(), HARDWARE.value or ""
    setting = ledger.Setting(_command(), recipe, whole, SEEDS.value, LIMIT.value, *machine)
    if experiment.plots:
        canvas.check()
    folder = pathlib.Path(OUTPUT.value).expanduser()
    outcomes = reproduction.reproduce(
        experiment,
        setting,
        folder,
        data_dir=DATA_DIR.value,
        options=_options,
        again=training_flags.ON_NAN.value == "rollback",
    )
    diverged = sum(one.diverged is not None for one in outcomes)
    print(
        f"\n{ledger.table(experiment, setting, outcomes)}\n\n"
        f"{experiment.title} on {experiment.dataset.removeprefix(FOLDER)}: {len(outcomes)} runs ended, {diverged} of "
        "them diverged\n"
        f"  written   {folder}/{experiment.key}.md, .csv{' and .svg' if experiment.plots else ''}\n"
        f"  workdirs  {folder}/{experiment.key}/"
    )


def _is_of_ones_own() -> bool:
    return bool(IMAGE_FOLDER.value or (DATASET.value and not (TABLE.value or FIGURE.value or ABLATION.value)))


def _of_ones_own() -> tuple[experiments.Experiment, recipes.Recipe]:
    """Wirings on a folder or a data set, and the schedule that fits it."""
    if TABLE.value or FIGURE.value or ABLATION.value or (DATASET.value and IMAGE_FOLDER.value):
        raise errors.UserError("--image_folder compares wirings: leave --table, --figure, --ablation and --dataset out")
    from gated_resnext import own_data

    dataset = of_folder(IMAGE_FOLDER.value) if IMAGE_FOLDER.value else DATASET.value
    own_data.check_backend(dataset)
    fields = training_flags.fields()
    return own_data.wirings(dataset, entry=ENTRY.value, fields=fields, data_dir=DATA_DIR.value)


def _of_the_paper() -> tuple[experiments.Experiment, recipes.Recipe]:
    """What --table, --figure or --ablation asks for, and the schedule of its data set."""
    if ENTRY.value or training_flags.ARCHITECTURE.value:
        raise errors.UserError("--entry and --architecture are of a comparison on --image_folder or --dataset alone")
    experiment = _experiment()
    return experiment, recipes.RECIPES[zoo.DATASETS[experiment.dataset].recipe]


def _experiment() -> experiments.Experiment:
    given = [flag for flag in (TABLE, FIGURE, ABLATION) if flag.value is not None]
    if len(given) != 1:
        received = " and ".join(f"--{flag.name}={flag.value}" for flag in given) or "none"
        raise errors.UserError(
            "give one of --table, --figure and --ablation, or, to compare wirings, --image_folder or --dataset. "
            f"Received: {received}"
        )
    if TABLE.value:
        return experiments.table(int(TABLE.value), DATASET.value)
    if FIGURE.value:
        return experiments.figure(int(FIGURE.value), DATASET.value)
    return experiments.ablation(ABLATION.value, DATASET.value)


def _options() -> dict[str, Any]:
    chosen = training_flags.STRATEGY.value
    if chosen == "multi_worker" or (chosen == "auto" and os.environ.get("TF_CONFIG")):
        raise errors.UserError(
            "reproduce trains on one machine: give --strategy=one_device or mirrored, or train each row on all workers "
            "by python -m gated_resnext.train"
        )
    return training_flags.options()


def _command() -> str:
    """The command as given, without the folders of this machine."""
    own = TABLE, FIGURE, ABLATION, DATASET, ENTRY, ROWS, SEEDS, training_flags.EPOCHS_SCALE, LIMIT
    told = *own, *training_flags.SCHEDULE, *training_flags.ARITHMETIC
    given = [flags.FLAGS[flag.name] for flag in told if flags.FLAGS[flag.name].present]
    options = [flag.serialize() for flag in given]
    if IMAGE_FOLDER.value:
        options.insert(0, f"--image_folder={pathlib.PurePath(IMAGE_FOLDER.value).name}")
    if training_flags.ARCHITECTURE.value:
        options.append(f"--architecture={json.dumps(training_flags.fields())}")
    command = shlex.join(["python", "-m", "gated_resnext.reproduce", *options])
    backend = versions.backend()
    return command if backend == "tensorflow" else f"KERAS_BACKEND={backend} {command}"


if __name__ == "__main__":
    errors.run(main)
