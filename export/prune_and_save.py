"""Prunes a trained network and writes it for TF Serving and for devices.

    python -m export.prune_and_save --workdir=runs/digits_11_4_4_k1 --output=models
    python -m export.prune_and_save --entry=digits_11_4_4_k1 --output=models --formats=tflite
    python -m export.prune_and_save --model=odd_or_even.keras --image_folder=photos --output=models

Writes the next version of the network, <output>/<name>/1, then 2 and so on, with a SavedModel, model.tflite and
receipt.json, after checking on real test images that each file computes what the trained network does. Beside the
networks it keeps what starts TF Serving on all of them: docker compose -f <output>/compose.yaml up.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from export import backend
from gated_resnext import errors, files, recipes, trained, zoo
from gated_resnext.datasets.table import DATASETS, FOLDER, of_folder

if TYPE_CHECKING:
    from export.shipping import Probe
    from gated_resnext.data import Images
    from gated_resnext.preprocessing import Preprocessing

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training.")
ENTRY = flags.DEFINE_string("entry", None, "Network of the zoo with published weights, instead of a workdir.")
MODEL = flags.DEFINE_string("model", None, "File of a trained network, .keras, instead; with images of its classes.")
OUTPUT = flags.DEFINE_string(
    "output", "models", "Folder to write <name>/<version>/ into, the entry's name or the file's."
)
FORMATS = flags.DEFINE_list(
    "formats",
    ["saved_model", "tflite"],
    "What to write: saved_model, tflite, tflite_float16, tflite_dynamic (int8 weights), tflite_int8.",
    allow_overwrite=False,
)
IMAGE_FOLDER = flags.DEFINE_string(
    "image_folder",
    None,
    "Folder of images to check --model on; or where those of --workdir are now, if it was trained on another folder.",
)
DATASET = flags.DEFINE_string("dataset", None, "Data set of the images to check --model on.")
MAX_TOP1_DROP = flags.DEFINE_float("max_top1_drop", 0.5, "Points of top-1 that a quantised format may lose.")
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of tensorflow-datasets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
SAMPLES = 256  # training images on which int8 measures its ranges
IMAGES = flags.DEFINE_integer(
    "images", 1000, "Test images to check on: the first, of a folder evenly spaced ones; 0 for all.", lower_bound=0
)
COMPRESS = flags.DEFINE_list(
    "compress",
    [],
    "Train on to a smaller TFLite file as well: qat (int8), magnitude (zeros), cluster (few values); any of them.",
    allow_overwrite=False,
)
COMPRESS_EPOCHS = flags.DEFINE_float("compress_epochs", 1.0, "Passes over the training images for each of them.")
SPARSITY = flags.DEFINE_float("sparsity", 0.5, "Share of zeros in the kernels, for --compress=magnitude.")
CLUSTERS = flags.DEFINE_integer("clusters", 16, "Different values in a kernel, for --compress=cluster.")
REPLACE = flags.DEFINE_bool(
    "replace", False, "Write the next version also where those before are of other classes or another input."
)
NOISE = flags.DEFINE_bool("noise", False, "Check on random pixels, where the data set is not at hand; no top-1 then.")


def main(argv: list[str]) -> None:
    del argv
    errors.check_given(WORKDIR, ENTRY, MODEL, OUTPUT, DATA_DIR, IMAGE_FOLDER, DATASET)
    errors.check_local(OUTPUT)
    sources = [flag for flag in (WORKDIR, ENTRY, MODEL) if flag.value is not None]
    if len(sources) != 1:
        raise errors.UserError(
            "give one of --workdir=FOLDER (a training of yours), --entry=NAME (published weights) and "
            "--model=FILE.keras"
        )
    if IMAGE_FOLDER.value is not None and ENTRY.value is not None:
        raise errors.UserError(
            "--image_folder goes with --workdir and --model: an entry was trained on a data set by name"
        )
    if DATASET.value is not None and (MODEL.value is None or IMAGE_FOLDER.value is not None):
        raise errors.UserError("--dataset goes with --model, in the place of --image_folder")
    dataset: str | None
    recipe: recipes.Recipe | None
    if ENTRY.value is not None:
        name, dataset = ENTRY.value, zoo.entry(ENTRY.value).dataset
        recipe = recipes.RECIPES[DATASETS[dataset].recipe]
    elif MODEL.value is not None:
        name, dataset, recipe = trained.name_of(MODEL.value), DATASET.value, None
        if IMAGE_FOLDER.value is not None:
            dataset = of_folder(IMAGE_FOLDER.value)
        if dataset is None and not NOISE.value:
            raise errors.UserError(
                "--model goes with --image_folder=FOLDER or --dataset=NAME, images of its classes to check the files "
                "on, or with --noise"
            )
    else:
        run = trained.finished(WORKDIR.value)
        name, dataset, recipe = run.entry, run.dataset, run.recipe
        if IMAGE_FOLDER.value is not None:
            if not dataset.startswith(FOLDER):
                raise errors.UserError(f"--image_folder is for a training on a folder; {WORKDIR.value} is of {dataset}")
            dataset = of_folder(IMAGE_FOLDER.value)

    backend.choose()
    from export import shipping

    formats, methods = shipping.choose(FORMATS.value), _methods()
    _check_noise(formats, methods)
    if ENTRY.value is not None:
        model, said = zoo.load(name, "published"), zoo.card(name) or {}
    elif MODEL.value is not None:
        model, said = trained.model_of(MODEL.value), {}
        _check_own(model, methods)
    else:
        folder = pathlib.Path(WORKDIR.value).expanduser()
        model, said = trained.network_of(folder), files.read_fields(folder / "result.json")
    shape, classes = model.input_shape[1:], model.output_shape[-1]
    if recipe is None:
        recipe = _recipe(dataset, shape)
    labels = _labels(said, name, classes)
    network = trained.Trained(name, name, model.predict_on_batch, shape, classes, labels, dataset, recipe.test_resize)
    network = network._replace(digest=said.get("images_digest"))
    resize = said.get("resize")
    if recipe.crop == "resized" and type(resize) is int and resize > 0:  # as the training wrote it down
        recipe = dataclasses.replace(recipe, test_resize=resize)
    probe, preprocessing, images = _probe(network, dataset, recipe, shape, resize)
    shipped = shipping.ship(
        model,
        pathlib.Path(OUTPUT.value).expanduser() / name,
        probe,
        preprocessing=preprocessing,
        formats=formats,
        max_top1_drop=MAX_TOP1_DROP.value,
        replace=REPLACE.value,
        compressed={method: functools.partial(_compressed, model, method, images) for method in methods},
        labels=images.labels if labels is None and images is not None else labels,
        dataset=dataset,
        say=functools.partial(print, flush=True),
    )
    print("\n".join(["", _receipt(shipped.receipt, shipped.folder), *shipped.notes]))


def _check_own(model: Any, methods: list[str]) -> None:
    """Finds that a model of the user's own is of one size of images, and what is asked for is made of such."""
    from gated_resnext import GatedResNeXt

    if None in model.input_shape[1:]:
        raise errors.UserError(
            f"a model is exported for images of one size. Received: {MODEL.value} of {model.input_shape[1:]}"
        )
    if methods and not isinstance(model, GatedResNeXt):
        raise errors.UserError(f"--compress is for a GatedResNeXt. Received: {MODEL.value}, a {type(model).__name__}")


def _recipe(dataset: str | None, shape: tuple[int, int, int]) -> recipes.Recipe:
    """How pictures become the pixels of a file's network; that of small images says nothing of it."""
    known = dataset is not None and (dataset in DATASETS or dataset.startswith(FOLDER))
    if dataset is None or (NOISE.value and not known):
        return recipes.RECIPES["cifar"]
    return trained.recipe_for(dataset, shape, DATA_DIR.value)


def _labels(said: dict[str, Any], name: str, classes: int) -> list[str] | None:
    """The names of the classes as the training wrote them down: those of the images may have changed since."""
    labels = said.get("labels")
    if not isinstance(labels, list):
        return None
    if len(labels) != classes:
        raise errors.UserError(
            f"{name} tells {classes} classes apart, and its training named {len(labels)}: train it anew"
        )
    return list(map(str, labels))


def _methods() -> list[str]:
    """Those of --compress, once it is sure that they can be had."""
    if not COMPRESS.value:
        return []
    from export import compression

    compression.check(COMPRESS.value, epochs=COMPRESS_EPOCHS.value, sparsity=SPARSITY.value, clusters=CLUSTERS.value)
    compression.tools()
    return list(dict.fromkeys(COMPRESS.value))


def _check_noise(formats: list[str], methods: list[str]) -> None:
    """Random pixels have no classes, and so no accuracy that could be kept."""
    from export.formats import FORMATS as known

    lossy = [*(name for name in formats if not known[name].exact), *methods]
    if lossy and NOISE.value:
        raise errors.UserError(
            f"{lossy[0]} is checked by its top-1, which needs the data set's images; not with --noise"
        )


def _compressed(model: Any, method: str, images: Images | None) -> bytes:
    from export import compression

    assert images is not None  # random pixels were refused
    return compression.compress(
        model,
        method,
        images,
        epochs=COMPRESS_EPOCHS.value,
        seed=0,
        sparsity=SPARSITY.value,
        clusters=CLUSTERS.value,
    )


def _probe(
    network: trained.Trained, dataset: str | None, recipe: recipes.Recipe, shape: tuple[int, int, int], resize: Any
) -> tuple[Probe, Preprocessing | None, Images | None]:
    """What to check on, how a picture becomes the network's pixels, and the data set, unless it is random pixels."""
    from export.formats import FORMATS as known
    from export.shipping import BATCH, Probe

    count = IMAGES.value
    if NOISE.value:
        preprocessing = _preprocessing(dataset, recipe, shape, resize)
        return _noise(count or 1000, shape, preprocessing), preprocessing, None
    assert dataset is not None  # without images there is but noise
    images = _images(network, dataset, recipe, shape)
    pixels, classes = images.test_batch(count or len(images))
    samples = images.samples(SAMPLES) if any(known[name].measures for name in FORMATS.value) else None
    pictures = images.pictures(min(BATCH, len(pixels)), len(pixels))
    origin = f"test images of {dataset}"
    if note := trained.changed(network, images):
        print(f"note: {note}", flush=True)
        origin += ", which has changed since the training"
    probe = Probe(pixels, classes, origin, samples, pictures)
    return probe, images.preprocessing, images


def _images(network: trained.Trained, dataset: str, recipe: recipes.Recipe, shape: tuple[int, int, int]) -> Images:
    """The data set, of the network's classes, without a broken image."""
    from gated_resnext.data import Images

    if not COMPRESS.value:  # nothing is trained, so that there may be any number of images
        recipe = dataclasses.replace(recipe, batch_size=1)
    try:
        images = Images(dataset, recipe, DATA_DIR.value, shape)
    except errors.UserError as error:
        gone = WORKDIR.value is not None and dataset.startswith(FOLDER) and not os.path.isdir(dataset[len(FOLDER) :])
        moved = "give --image_folder=FOLDER, where they are now; " if gone else ""
        noise = "" if COMPRESS.value else f"; {moved}or export with --noise, which goes without images"
        raise errors.UserError(f"{error}{noise}") from None
    trained.check_classes(network, dataset, images.labels)
    images.check()
    return images


def _preprocessing(
    dataset: str | None, recipe: recipes.Recipe, shape: tuple[int, int, int], resize: Any
) -> Preprocessing | None:
    """`Images.preprocessing` of a data set that is not at hand; None where nobody knows the size of its pictures."""
    from gated_resnext.preprocessing import Preprocessing

    if type(resize) is int and resize > 0:  # as the training wrote it down
        return Preprocessing(shape, resize)
    info = DATASETS.get(dataset or "")
    unknown = info is None and recipe.crop == "pad" and recipe.test_resize is None
    return None if unknown else Preprocessing.of(shape, recipe, info)


def _noise(count: int, shape: tuple[int, int, int], preprocessing: Preprocessing | None) -> Probe:
    """Random pixels, and pictures of which they are the middle."""
    import numpy as np
    import tensorflow as tf

    from export.shipping import BATCH, Probe

    height, width, channels = shape
    side = preprocessing.resize if preprocessing else 0
    size = max(side, height), max(side, width)
    whole = np.random.default_rng(0).integers(0, 256, (count, *size, channels), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    pictures = [tf.io.encode_png(picture).numpy() for picture in whole[:BATCH]] if preprocessing else []
    pixels = whole[:, top : top + height, left : left + width]
    return Probe(pixels, None, "images of random pixels", pictures=pictures)


def _receipt(receipt: dict, folder: pathlib.Path) -> str:
    before, after = receipt["parameters"], receipt["parameters_pruned"]
    compact = receipt.get("parameters_compact")  # none where the model is one of the user's own
    folded = "" if compact is None else f"; {compact:,} with batch norm folded"
    lines = [
        f"{receipt['network']}, checked on {receipt['checked_on']}",
        f"  blocks      {' '.join(map(str, receipt['blocks']))} -> {' '.join(map(str, receipt['blocks_pruned']))}",
        f"  parameters  {before:,} -> {after:,} ({100 * (after / before - 1):+.1f} %){folded}",
        "",
        f"  {'form':14} {'top-1':>8} {'max |difference|':>17} {'bytes':>12}",
        f"  {'trained':14} {_percent(receipt['top1']):>8}",
    ]
    for check in receipt["checks"]:
        size = f"{check['bytes']:,}" if "bytes" in check else ""
        if "bytes_gzip" in check:
            size += f", in gzip {check['bytes_gzip']:,}"
        lines.append(f"  {check['form']:14} {_percent(check['top1']):>8} {check['max_difference']:17.1e} {size:>12}")
    return "\n".join([*lines, "", f"Written to {folder}"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


if __name__ == "__main__":
    errors.run(main)
