"""Reproduces a table, a figure or an ablation: trains its rows and keeps a ledger, the paper's numbers beside ours.

    python -m gated_resnext.reproduce --table=3 --rows='cifar10_20_4_8_*'
    python -m gated_resnext.reproduce --figure=2 --dataset=cifar10 --epochs_scale=0.05 --seeds=2
    python -m gated_resnext.reproduce --ablation=gates --dataset=optical_digits

Trains one run after the other into --output, and writes <output>/<what>.md and .csv, of a figure also .svg, after each;
the same command again goes on where it stopped.
"""

from __future__ import annotations

import os
import pathlib
import shlex
from typing import Any

from absl import flags

from gated_resnext import errors, experiments, ledger, recipes, reproduction, training_flags, versions, zoo
from gated_resnext.drawing import canvas

TABLE = flags.DEFINE_enum("table", None, [f"{number}" for number in experiments.TABLES], "Table of the paper.")
FIGURE = flags.DEFINE_enum("figure", None, [f"{number}" for number in experiments.FIGURES], "Figure of the paper.")
ABLATION = flags.DEFINE_enum(
    "ablation", None, experiments.ABLATIONS, "Real-valued gates, the sum of Eq. 2, or random wirings, on {20,4,8}."
)
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    f"One of {', '.join(zoo.DATASETS)}. Default: that of the paper; of the ablations {experiments.ABLATED_ON}.",
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
    errors.check_given(DATASET, training_flags.RECIPE, OUTPUT, HARDWARE, DATA_DIR)
    experiment = reproduction.chosen(_experiment(), ROWS.value)
    whole = recipes.RECIPES[zoo.DATASETS[experiment.dataset].recipe]
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
        f"{experiment.title} on {experiment.dataset}: {len(outcomes)} runs ended, {diverged} of them diverged\n"
        f"  written   {folder}/{experiment.key}.md, .csv{' and .svg' if experiment.plots else ''}\n"
        f"  workdirs  {folder}/{experiment.key}/"
    )


def _experiment() -> experiments.Experiment:
    given = [flag for flag in (TABLE, FIGURE, ABLATION) if flag.value is not None]
    if len(given) != 1:
        received = " and ".join(f"--{flag.name}={flag.value}" for flag in given) or "none"
        raise errors.UserError(f"give one of --table, --figure and --ablation. Received: {received}")
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
    own = TABLE, FIGURE, ABLATION, DATASET, ROWS, SEEDS, training_flags.EPOCHS_SCALE, LIMIT
    told = *own, *training_flags.SCHEDULE, *training_flags.ARITHMETIC
    given = [flags.FLAGS[flag.name] for flag in told if flags.FLAGS[flag.name].present]
    command = " ".join(["python -m gated_resnext.reproduce", *(shlex.quote(flag.serialize()) for flag in given)])
    backend = versions.backend()
    return command if backend == "tensorflow" else f"KERAS_BACKEND={backend} {command}"


if __name__ == "__main__":
    errors.run(main)
