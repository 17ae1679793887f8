"""Networks in the formats that other programs write and read: a SavedModel folder or a .tflite file.

Ours or not: one image in, one row of numbers a class out.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gated_resnext.errors import UserError, shortened
from gated_resnext.evaluation import filled

SIGNATURE = "serving_default"
BATCH = 64


class Opened(NamedTuple):
    """A network read from disk.

    `run(images)` takes (n, height, width, channels) uint8 and returns (n, classes) as the network gives them; `shape`
    is (height, width, channels), None where any will do; `batch` the only number of images it takes, or None for any;
    `classes` what it tells apart, None where the file does not say; `reads` and `gives` name its input and output.
    """

    path: pathlib.Path
    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | None, ...]
    batch: int | None
    classes: int | None
    reads: str
    gives: str

    def answers(self, images: np.ndarray) -> np.ndarray:
        """The network's output for all images, in batches that it takes: (n, classes) float64.

        Raises:
            UserError: if it does not take them.
        """
        size = self.batch or min(BATCH, len(images))
        try:
            rows = [self.run(filled(images[start : start + size], size)) for start in range(0, len(images), size)]
        except Exception as error:
            reason = shortened(error)
            raise UserError(f"{self.path} does not take images of the shape {images.shape[1:]}: {reason}") from None
        return np.concatenate(rows)[: len(images)].astype(np.float64)


def opened(path: str | os.PathLike[str], white: float = 255.0) -> Opened:
    """Reads a SavedModel, its signature serving_default, or a .tflite file.

    Args:
        path: folder or file.
        white: what a white pixel is in its input, where that is of floats; uint8 takes pixels as they are.

    Raises:
        UserError: if it is neither, or does not map one batch of images to one batch of classes.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}")
    try:
        return _tflite(path, white) if path.is_file() else _saved_model(path, white)
    except UserError:
        raise
    except Exception as error:  # TensorFlow and LiteRT have many for what they cannot read
        reason = shortened(error)
        raise UserError(f"{path} cannot be read as a SavedModel folder or a .tflite file: {reason}") from None


class _Tensor(NamedTuple):
    """An input or output as a file declares it; None in the shape where any size will do."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype


def _saved_model(path: pathlib.Path, white: float) -> Opened:
    loaded = tf.saved_model.load(str(path))
    signatures = getattr(loaded, "signatures", {})
    if SIGNATURE not in signatures:
        raise UserError(f"{path} has no signature {SIGNATURE}. It has: {', '.join(signatures) or 'none'}")
    serve = signatures[SIGNATURE]
    given = _image(path, [_declared(name, spec) for name, spec in serve.structured_input_signature[1].items()])
    answer = _classes(path, [_declared(name, spec) for name, spec in sorted(serve.structured_outputs.items())])

    def run(images: np.ndarray) -> np.ndarray:
        return serve(**{given.name: tf.constant(_pixels(images, given.dtype, white))})[answer.name].numpy()

    run.keep = loaded  # type: ignore[attr-defined]
    return _opened(path, run, given, answer)


def _opened(path: pathlib.Path, run: Callable[[np.ndarray], np.ndarray], given: _Tensor, answer: _Tensor) -> Opened:
    classes = answer.shape[1] if len(answer.shape) == 2 else None
    return Opened(path, run, given.shape[1:], given.shape[0], classes, _said(given), _said(answer))


def _declared(name: str, spec: tf.TensorSpec) -> _Tensor:
    shape = (None,) * 4 if spec.shape.rank is None else tuple(spec.shape)
    return _Tensor(name, shape, np.dtype(spec.dtype.as_numpy_dtype))


def _tflite(path: pathlib.Path, white: float) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    given = _image(path, [_detailed(detail) for detail in inputs])
    answer = _classes(path, [_detailed(detail) for detail in outputs])
    place = next(detail["index"] for detail in inputs if detail["name"] == given.name)
    result = next(detail for detail in outputs if detail["name"] == answer.name)
    scale, zero = result["quantization"]

    def run(images: np.ndarray) -> np.ndarray:
        if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
            interpreter.resize_tensor_input(place, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, _pixels(images, given.dtype, white))
        interpreter.invoke()
        rows = interpreter.get_tensor(result["index"])
        return (rows.astype(np.float64) - zero) * scale if scale else rows

    return _opened(path, run, given, answer)


def _detailed(detail: dict[str, Any]) -> _Tensor:
    signature = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return _Tensor(detail["name"], tuple(None if n < 0 else int(n) for n in signature), np.dtype(detail["dtype"]))


def _image(path: pathlib.Path, inputs: list[_Tensor]) -> _Tensor:
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype not in (np.uint8, np.float32):
        found = "; ".join(map(_said, inputs)) or "none"
        raise UserError(f"{path} must take one input, images of uint8 or float32 with four axes. Its inputs: {found}")
    return inputs[0]


def _classes(path: pathlib.Path, outputs: list[_Tensor]) -> _Tensor:
    named = [output for output in outputs if output.name == "probabilities"]
    rows = named or [output for output in outputs if len(output.shape) == 2]
    if len(rows) != 1:
        found = "; ".join(map(_said, outputs))
        raise UserError(
            f"{path} must have one output of (images, classes), or one called probabilities. Its outputs: {found}"
        )
    return rows[0]


def _said(tensor: _Tensor) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name}, {tensor.dtype} ({sizes})"


def _pixels(images: np.ndarray, dtype: np.dtype, white: float) -> np.ndarray:
    return images if dtype == np.uint8 else (images * (white / 255.0)).astype(dtype)
