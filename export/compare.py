"""Compares two networks on disk: classes, probabilities, top-1, bytes and latency, side by side.

    python -m export.compare --saved_model=serving/old --saved_model=models/cifar10_20_4_8_k1/1
    python -m export.compare --saved_model=old.tflite --saved_model=new.tflite --images_from=cifar10
    python -m export.compare --saved_model=old.tflite --saved_model=new.tflite --image_folder=photos

Each is a SavedModel folder or a .tflite file, ours or not, that takes images (uint8, or float32 with --white) and gives
probabilities or logits. On random pixels, or on the test images of a data set or a folder, which also give the top-1.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from export import backend
from gated_resnext import errors, files
from gated_resnext.datasets.table import DATASETS, of_folder

if TYPE_CHECKING:
    import numpy as np

    from gated_resnext.interchange import Opened

BATCH = 128
SAVED_MODEL = flags.DEFINE_multi_string("saved_model", [], "SavedModel folder or .tflite file; give it twice.")
IMAGES_FROM = flags.DEFINE_string("images_from", None, f"Data set of the test images: {', '.join(DATASETS)}.")
IMAGE_FOLDER = flags.DEFINE_string(
    "image_folder", None, "Or a folder of images with a sub-folder for each class: those of it that are for testing."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of tensorflow-datasets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
IMAGES = flags.DEFINE_integer(
    "images", 1000, "How many images: the first test images, of a folder evenly spaced ones.", lower_bound=1
)
WHITE = flags.DEFINE_multi_float(
    "white", [255.0], "A white pixel in an input of floats: 255 or 1. Once for both networks, or once for each."
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each in the timing.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File to write the comparison to, too.")


def main(argv: list[str]) -> None:
    del argv
    errors.check_given(IMAGES_FROM, IMAGE_FOLDER, JSON, DATA_DIR)
    errors.check_local(JSON)
    if len(SAVED_MODEL.value) != 2 or len(WHITE.value) > 2:
        raise errors.UserError(
            f"give --saved_model=PATH twice, and --white at most twice. Received: {len(SAVED_MODEL.value)} and "
            f"{len(WHITE.value)}"
        )
    if IMAGES_FROM.value and IMAGE_FOLDER.value:
        raise errors.UserError("give one of --images_from=DATASET and --image_folder=FOLDER")
    if IMAGES_FROM.value and IMAGES_FROM.value not in DATASETS:
        raise errors.UserError(
            f"the data set must be one of {', '.join(DATASETS)}. Received: --images_from={IMAGES_FROM.value}"
        )
    backend.choose()
    from export import comparison, latency
    from gated_resnext import interchange

    whites = (WHITE.value * 2)[:2] if len(WHITE.value) == 1 else WHITE.value
    a, b = (interchange.opened(path, white) for path, white in zip(SAVED_MODEL.value, whites, strict=True))
    images, labels, classes, origin = _images((a, b))
    with backend.float32():
        found = comparison.compare(a, b, images, labels, classes=classes, rounds=ROUNDS.value)
    found |= {"paths": [str(a.path), str(b.path)], "images": f"{len(images)} {origin}", "machine": latency.machine()}
    print(_table(found, a, b))
    if JSON.value:
        files.write_json(pathlib.Path(JSON.value).expanduser(), found)


def _images(models: tuple[Opened, Opened]) -> tuple[np.ndarray, np.ndarray | None, int | None, str]:
    """Images of the networks' size; their classes, and how many there are, or None; and where they are from."""
    import numpy as np

    from export import comparison

    if not (IMAGES_FROM.value or IMAGE_FOLDER.value):
        shape = (IMAGES.value, *comparison.image_shape(models))
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), None, None, "images of random pixels"
    from gated_resnext import trained

    name = of_folder(IMAGE_FOLDER.value) if IMAGE_FOLDER.value else IMAGES_FROM.value
    info = DATASETS.get(name)
    input_shape = comparison.image_shape(models, info.input_shape) if info else comparison.image_shape(models)
    networks = [trained.of_opened(model) for model in models]
    resize = next((network.resize for network in networks if network.resize), trained.shorter_side(name, input_shape))
    found = trained.images_for(networks[0]._replace(shape=input_shape, resize=resize), name, DATA_DIR.value)
    trained.check_classes(networks[1], name, found.labels)
    found.check("test", IMAGES.value)
    images, labels = zip(*found.batches("test", IMAGES.value, BATCH), strict=True)
    return np.concatenate(images), np.concatenate(labels), len(found.labels), f"test images of {found.name}"


def _table(found: dict[str, Any], a: Any, b: Any) -> str:
    rows = [
        ("top-1", ["-" if top1 is None else f"{100 * top1:.2f} %" for top1 in found["top1"]]),
        ("bytes", [f"{size:,}" for size in found["bytes"]]),
    ]
    rows += [(f"batch {batch}, ms", [f"{ms:.3f}" for ms in times["ms"]]) for batch, times in found["latency"].items()]
    ratios = ", ".join(f"{times['ratio']:.2f} at batch {batch}" for batch, times in found["latency"].items())
    lines = [f"A's time by B's: {ratios}"]
    lines += [f"same class for {100 * found['agreement']:.2f} % of {found['images']}"]
    lines += [f"probabilities differ by {found['max_difference']:.1e} at most", ""]
    for letter, model, logits in zip("AB", (a, b), found["logits"], strict=True):
        note = ", made probabilities by a softmax" if logits else ""
        lines.append(f"{letter}: {model.path}\n   {model.reads} -> {model.gives}{note}")
    lines += ["", f"  {'':14} {'A':>14} {'B':>14}"]
    return "\n".join([*lines, *(f"  {name:14} {cells[0]:>14} {cells[1]:>14}" for name, cells in rows)])


if __name__ == "__main__":
    errors.run(main)
