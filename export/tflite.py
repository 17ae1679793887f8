"""TFLite: what devices run."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema_fb

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
        path.write_bytes(shared_buffers(converter.convert()))


def shared_buffers(content: bytes | bytearray) -> bytes:
    """The same .tflite with every constant stored once.

    The converter writes the weights of a layer anew for each of its calls, such as the shortcut that the groups of a
    module share.
    """
    model = schema_fb.ModelT.InitFromObj(schema_fb.Model.GetRootAs(bytearray(content), 0))
    first: dict[bytes, int] = {}
    place = []
    for number, buffer in enumerate(model.buffers):
        data = b"" if buffer.data is None else bytes(buffer.data)
        place.append(first.setdefault(data, number) if data else number)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place[tensor.buffer]
    for number, kept in enumerate(place):
        if kept != number:
            model.buffers[number].data = None
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


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
