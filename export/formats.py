"""The formats a network is shipped in: for each, how to write it, run it from disk and weigh it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from export import saved_model, tflite

Run = Callable[[np.ndarray], np.ndarray]


class Format(NamedTuple):
    """How a network becomes files.

    `filename` is the file's within the version's folder, or "" for that folder; `write(compact graph, path)` makes it;
    `runner(path)` loads it as a function from uint8 images to probabilities; `size(path)` counts its bytes; `exact`
    tells whether it must give the same probabilities, or may lose accuracy within a bound; `decodes` whether it takes
    picture files too: then `write` takes `preprocessing` as well; `measures` whether it measures ranges on training
    images: then `write` takes `samples`.
    """

    filename: str
    write: Callable[..., None]
    runner: Callable[[pathlib.Path], Run]
    size: Callable[[pathlib.Path], int]
    exact: bool = True
    decodes: bool = False
    measures: bool = False


FORMATS = {
    "saved_model": Format("", saved_model.write, saved_model.runner, saved_model.size, decodes=True),
    # By this name TF Serving finds it under --prefer_tflite_model.
    "tflite": Format("model.tflite", tflite.write, tflite.runner, tflite.size),
    "tflite_float16": Format("model_float16.tflite", tflite.write_float16, tflite.runner, tflite.size, exact=False),
    "tflite_dynamic": Format("model_dynamic.tflite", tflite.write_dynamic, tflite.runner, tflite.size, exact=False),
    "tflite_int8": Format(
        "model_int8.tflite", tflite.write_int8, tflite.runner, tflite.size, exact=False, measures=True
    ),
}
DEFAULT = ("saved_model", "tflite")
