"""SavedModel: what TF Serving loads."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from export import backend
from gated_resnext.interchange import SIGNATURE
from gated_resnext.preprocessing import Preprocessing

PICTURES = "encoded_images"  # the signature, and its input
Guard = Callable[[tf.Tensor, tuple[int | None, ...]], tf.Tensor]
# What an export puts beside it.
LABELS = pathlib.PurePath("assets", "labels.txt")
NAMES = pathlib.PurePath("assets", "names.txt")
PARTS = ("saved_model.pb", "fingerprint.pb", "variables", "assets")


def write(
    model: keras.Model,
    folder: pathlib.Path,
    preprocessing: Preprocessing | None = None,
    guard: Guard = tf.ensure_shape,
    classes: bool = True,
) -> None:
    """Writes a compact graph as a SavedModel.

    Its signature `serving_default` takes `images`, uint8 (batch, height, width, channels), and returns `probabilities`,
    float32 (batch, classes), and `classes`, int64 (batch,), the index of the largest. `encoded_images` takes
    `encoded_images`, strings (batch,), the bytes of PNG, JPEG, GIF or BMP files of any size, and returns the same.

    Args:
        model: what `compact` returned.
        folder: the SavedModel's, new or empty.
        preprocessing: from a picture to the network's pixels; None leaves `encoded_images` out.
        guard: returns the images it is given, and fails if they have another shape than the second argument.
        classes: whether the signature returns `classes` too.

    Raises:
        UserError: if Keras is not on TensorFlow.
        ValueError: if that gives pixels of another shape than the network's.
    """
    backend.check()
    module = tf.Module()
    # The variables alone: keras.export.ExportArchive stores them twice, once under the model and once under its layers.
    module.weights = [variable.value for variable in model.variables]
    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype, name="images")
    # The other signature calls this one, so that the graph is stored once.
    serve = tf.function(signature(model, guard, classes), input_signature=[spec], autograph=False)
    signatures = {SIGNATURE: serve}
    if preprocessing is not None:
        if preprocessing.shape != model.input_shape[1:]:
            raise ValueError(f"expected pictures as {model.input_shape[1:]} pixels. Received: {preprocessing}")
        encoded = tf.TensorSpec((None,), tf.string, name=PICTURES)
        signatures[PICTURES] = tf.function(
            lambda encoded_images: serve(preprocessing.pixels(encoded_images)),
            input_signature=[encoded],
            autograph=False,
        )
    module.functions = list(signatures.values())
    tf.saved_model.save(module, str(folder), signatures=signatures)


def signature(model: keras.Model, guard: Guard, classes: bool = True) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The function that every format exports, with its names."""

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # A signature's shape is not enforced when it is called: grey images would be broadcast with the mean image.
        probabilities = model(guard(images, model.input_shape), training=False)
        return {"probabilities": probabilities, **({"classes": tf.argmax(probabilities, axis=-1)} if classes else {})}

    return serve


def runner(folder: pathlib.Path, signature: str = SIGNATURE, reads: str = "images") -> Callable[[Any], np.ndarray]:
    """Probabilities of what a signature of the SavedModel on disk reads, through TensorFlow alone."""
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures[signature]

    def run(given: Any) -> np.ndarray:
        return serve(**{reads: tf.constant(given)})["probabilities"].numpy()

    run.keep = loaded  # type: ignore[attr-defined]
    return run


def size(folder: pathlib.Path) -> int:
    """Bytes of its own files, beside which others may lie."""
    paths = [path for part in PARTS for path in (folder / part, *(folder / part).rglob("*"))]
    others = folder / LABELS, folder / NAMES
    return sum(path.stat().st_size for path in paths if path.is_file() and path not in others)
