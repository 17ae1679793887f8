"""TFLite: what devices run."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from export import saved_model


def write(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a compact graph as a float32 .tflite file with the signature of `saved_model.write`.

    Args:
        model: what `compact` returned.
        path: new file.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved_model.write(model, pathlib.Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[saved_model.SIGNATURE])
        path.write_bytes(converter.convert())


def runner(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities of the file, through LiteRT alone."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=2)
    serve = interpreter.get_signature_runner()

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(serve(images=images)["probabilities"])

    run.keep = interpreter  # type: ignore[attr-defined]
    return run


def size(path: pathlib.Path) -> int:
    """Bytes of the file."""
    return path.stat().st_size
