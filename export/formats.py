"""The formats a network is shipped in: for each, how to write it, run it from disk and weigh it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from export import saved_model, tflite

Run = Callable[[np.ndarray], np.ndarray]


class Format(NamedTuple):
    """`filename` within the export; functions that write it, load it as uint8 images -> probabilities, and size it."""

    filename: str
    write: Callable[[keras.Model, pathlib.Path], None]
    runner: Callable[[pathlib.Path], Run]
    size: Callable[[pathlib.Path], int]


FORMATS = {
    "saved_model": Format("saved_model", saved_model.write, saved_model.runner, saved_model.size),
    "tflite": Format("model.tflite", tflite.write, tflite.runner, tflite.size),
}
