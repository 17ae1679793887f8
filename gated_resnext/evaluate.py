"""Evaluates a trained network on images whose classes are known.

    python -m gated_resnext.evaluate --entry=digits_11_4_4_k1
    python -m gated_resnext.evaluate --workdir=runs/digits_11_4_4_k1 --output=evaluation
    python -m gated_resnext.evaluate --model=odd_or_even.keras --image_folder=photos
    python -m gated_resnext.evaluate --saved_model=models/digits_11_4_4_k1/1 --image_folder=photos --split=all

Top-1 with its interval, top-5, loss, calibration error and the accuracy of every class, on the test images of what the
network was trained on or of any other data set with the same classes. --output=FOLDER keeps them as evaluation.json,
with the confusion matrix as confusion.png and confusion.svg.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

from absl import flags

from gated_resnext import errors, files, trained
from gated_resnext.datasets.names import readable
from gated_resnext.datasets.table import DATASETS, of_folder
from gated_resnext.drawing import canvas
from gated_resnext.evaluation import BINS as DEFAULT_BINS
from gated_resnext.evaluation import LEAST, Evaluation

ENTRY = flags.DEFINE_string("entry", None, "Network of the zoo with published weights.")
WORKDIR = flags.DEFINE_string("workdir", None, "Or the folder of a finished training.")
MODEL = flags.DEFINE_string("model", None, "Or a .keras file, with --dataset or --image_folder.")
SAVED_MODEL = flags.DEFINE_string("saved_model", None, "Or a SavedModel folder or .tflite file, exported here or not.")
DATASET = flags.DEFINE_string(
    "dataset", None, f"Images to try it on: {', '.join(DATASETS)} or any of tensorflow-datasets. Default: its own."
)
IMAGE_FOLDER = flags.DEFINE_string("image_folder", None, "Or a folder of images with a sub-folder for each class.")
SPLIT = flags.DEFINE_enum("split", "test", trained.SPLITS, "Which of them; training images as they are, not augmented.")
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow-datasets, or of gated_resnext.pack. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
)
IMAGES = flags.DEFINE_integer(
    "images", None, "How many: the first, of a folder evenly spaced ones. Default: all.", lower_bound=1
)
BINS = flags.DEFINE_integer("bins", DEFAULT_BINS, "Bins of the calibration error.", 1, 1000)
WHITE = flags.DEFINE_float("white", 255.0, "A white pixel in a SavedModel's input of floats: 255 or 1.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for evaluation.json, confusion.png and confusion.svg.")
SHOWN = 5


def main(argv: list[str]) -> None:
    del argv
    sources = {flag.name: flag.value for flag in (ENTRY, WORKDIR, MODEL, SAVED_MODEL)}
    trained.check_one(sources)
    if DATASET.value and IMAGE_FOLDER.value:
        raise errors.UserError("give one of --dataset=NAME and --image_folder=FOLDER")
    errors.check_given(ENTRY, WORKDIR, MODEL, SAVED_MODEL, DATASET, IMAGE_FOLDER, OUTPUT, DATA_DIR)
    errors.check_local(OUTPUT)
    dataset = DATASET.value
    if IMAGE_FOLDER.value:
        dataset = of_folder(IMAGE_FOLDER.value)

    network = trained.of_one(sources, dataset=dataset, white=WHITE.value)
    from gated_resnext.progress import Count

    images = trained.images_for(network, dataset, DATA_DIR.value)
    if dataset is None and (note := trained.changed(network, images)):
        print(f"note: {note}")
    folder = pathlib.Path(OUTPUT.value).expanduser() if OUTPUT.value else None
    if folder:
        canvas.check()
        folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the work
    total = min(images.count(SPLIT.value), IMAGES.value or 1 << 62)
    what = f"{total:,} {'' if SPLIT.value == 'all' else SPLIT.value + ' '}images of {images.name}"
    print(f"Running {network.name} ({network.source}) on {what}", flush=True)
    found, logits = trained.evaluate(
        network, images, split=SPLIT.value, count=IMAGES.value, bins=BINS.value, seen=Count(total).add
    )
    print(f"\n{network.name} on {what}\n{_receipt(_named(found), logits)}")
    if folder:
        _write(found, network, what, folder)


def _named(found: Evaluation) -> Evaluation:
    """The same for people: with names in the place of WordNet ids."""
    return dataclasses.replace(found, labels=tuple(readable(found.labels)))


def _receipt(found: Evaluation, logits: bool) -> str:
    low, high = (100 * bound for bound in found.top1_interval)
    lines = [
        f"  top-1              {100 * found.top1:.2f} %, 95 % interval {low:.2f} to {high:.2f} %",
        f"  top-5              {100 * found.top5:.2f} %",
        f"  loss               {found.loss:.4f} nats{_impossible(found)}",
        f"  calibration error  {100 * found.calibration_error:.2f} %, {len(found.bins)} bins",
    ]
    if logits:
        lines.append("  (it gives logits, of which a softmax made probabilities)")
    ranked = found.ranked()
    for title, numbers in (("worst", ranked[:SHOWN]), ("best", ranked[::-1][:SHOWN])):
        lines.append(f"  {title} classes")
        for number in numbers:
            share, images = 100 * found.class_top1[number], found.class_images[number]
            lines.append(f"    {share:6.2f} %  of {images:,}  {found.labels[number]}")
    return "\n".join(lines)


def _impossible(found: Evaluation) -> str:
    """What of the loss is no measure, as in the files of an int8 network, whose small probabilities are 0."""
    count = found.impossible
    what = f"the probability of the right class is 0 {'once' if count == 1 else f'{count:,} times'}"
    return f"; {what}, which counts as {-math.log(LEAST):.1f}" if count else ""


def _write(found: Evaluation, network: trained.Trained, what: str, folder: pathlib.Path) -> None:
    from gated_resnext.drawing import confusion

    origin = {"network": network.name, "source": network.source, "evaluated_on": what}
    files.write_json(folder / "evaluation.json", {**origin, **found.to_dict()})
    for name in ("confusion.png", "confusion.svg"):
        confusion.write(_named(found), folder / name, f"{network.name} on {what}: top-1 {100 * found.top1:.2f} %")
    print(f"Written to {folder}: evaluation.json, confusion.png, confusion.svg")


if __name__ == "__main__":
    errors.run(main)
