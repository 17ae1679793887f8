"""SavedModel: what TF Serving loads."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

SIGNATURE = "serving_default"


def write(model: keras.Model, folder: pathlib.Path, samples: np.ndarray | None = None) -> None:
    """Writes a compact graph as a SavedModel.

    Its signature `serving_default` takes `images`, uint8 (batch, height, width, channels), and returns `probabilities`,
    float32 (batch, classes), and `classes`, int64 (batch,), the index of the largest.

    Args:
        model: what `compact` returned.
        folder: new folder of the SavedModel.
        samples: training images; not needed here.
    """
    module = tf.Module()
    # The variables alone: keras.export.ExportArchive stores them twice, once under the model and once under its layers.
    module.weights = [variable.value for variable in model.variables]
    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype, name="images")
    module.serve = tf.function(signature(model), input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})


def signature(model: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The function that every format exports, with its names."""

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = model(images, training=False)
        return {"probabilities": probabilities, "classes": tf.argmax(probabilities, axis=-1)}

    return serve


def runner(folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities of the SavedModel on disk, through TensorFlow alone."""
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures[SIGNATURE]

    def run(images: np.ndarray) -> np.ndarray:
        return serve(images=tf.constant(images))["probabilities"].numpy()

    run.keep = loaded  # type: ignore[attr-defined]
    return run


def size(folder: pathlib.Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
