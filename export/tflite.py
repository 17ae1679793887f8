"""TFLite: what devices run."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from collections.abc import Callable

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema_fb

from export import saved_model
from gated_resnext.copying import copy_weights, made_again


def write(model: keras.Model, path: pathlib.Path, classes: bool = True) -> None:
    """Writes a compact graph as a float32 .tflite file with the signature of `saved_model.write`.

    Args:
        model: what `compact` returned.
        path: new file.
        classes: whether it returns `classes` too, as what TF Serving may read in place of the SavedModel has to. Whole
            numbers of 64 bits are not for every device: the other files give probabilities alone.
    """
    _convert(model, path, classes=classes)


def write_float16(model: keras.Model, path: pathlib.Path) -> None:
    """The same with float16 weights, half the bytes; computed in float32 where the device has no float16."""

    def options(converter: tf.lite.TFLiteConverter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    _convert(model, path, options)


def write_dynamic(model: keras.Model, path: pathlib.Path) -> None:
    """The same with int8 weights and float32 activations, quantised as they come: dynamic-range quantisation."""

    def options(converter: tf.lite.TFLiteConverter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    _convert(model, path, options)


def write_int8(model: keras.Model, path: pathlib.Path, samples: np.ndarray) -> None:
    """Full int8: weights and activations, their ranges measured on `samples`, training images; uint8 in, float32 out.

    Alone among the formats it does not refuse images of another shape, to leave nothing but the network to accelerators
    that know few operations.
    """

    def options(converter: tf.lite.TFLiteConverter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.representative_dataset = lambda: ({"images": image[None].astype(np.float32)} for image in shown)

    shown = _with_black_and_white(samples)
    # The converter makes an input uint8 by quantising it, so here it has to start as a float.
    pixels = keras.Input(model.input_shape[1:], name="images", dtype="float32")
    inputs = keras.tree.map_structure(lambda _: pixels, model.input)
    floating = keras.models.clone_model(model, input_tensors=inputs, clone_function=made_again)
    copy_weights(model, floating)
    _convert(floating, path, options, tf.ensure_shape)


def _with_black_and_white(samples: np.ndarray) -> np.ndarray:
    """The samples; where none has a pixel of 0, or of 255, also with the contrast of all together stretched to both.

    The input's range is measured too: the file would take pixels brighter than all samples for the brightest of them.
    Not each by itself: images of little contrast would have far wider ranges in the network than it ever meets.
    """
    low, high = float(samples.min()), float(samples.max())
    if (low, high) == (0.0, 255.0):
        return samples
    ramp = np.linspace(0.0, 1.0, samples[0].size).reshape(samples[0].shape)  # where all are of one colour
    stretched = (samples - low) / (high - low) if high > low else np.broadcast_to(ramp, samples.shape)
    return np.concatenate([samples, np.rint(255.0 * stretched).astype(np.uint8)])


def _joined_and_parted(images: tf.Tensor, shape: tuple[int | None, ...]) -> tf.Tensor:
    """The images, if they have this shape but for the batch.

    LiteRT has no assertion, but joins only what has the same shape: here an empty image, which goes again at once.
    """
    return tf.concat([images, tf.zeros((1, *shape[1:]), images.dtype)], 0)[:-1]


def _convert(
    model: keras.Model,
    path: pathlib.Path,
    options: Callable[[tf.lite.TFLiteConverter], None] | None = None,
    guard: saved_model.Guard = _joined_and_parted,
    classes: bool = False,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved_model.write(model, pathlib.Path(folder), guard=guard, classes=classes)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[saved_model.SIGNATURE])
        if options is not None:
            options(converter)
        path.write_bytes(tidied(converted(converter)))


def converted(converter: tf.lite.TFLiteConverter) -> bytes:
    """What it makes, without its notice that it will measure int8 ranges with another interpreter one day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*tf.lite.Interpreter is deprecated")
        return converter.convert()


def tidied(content: bytes | bytearray) -> bytes:
    """The same .tflite with every constant stored once, and its inputs and outputs called as in its signature."""
    model = schema_fb.ModelT.InitFromObj(schema_fb.Model.GetRootAs(bytearray(content), 0))
    _share_buffers(model)
    _name_tensors(model)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _share_buffers(model: schema_fb.ModelT) -> None:
    """The converter writes the weights of a layer anew for each of its calls, such as a module's shared shortcut."""
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


def _name_tensors(model: schema_fb.ModelT) -> None:
    """TF Serving reads no signature of a .tflite: it takes the tensors' names, up to the colon, which must differ."""
    for signature in model.signatureDefs:
        for entry in [*signature.inputs, *signature.outputs]:
            model.subgraphs[signature.subgraphIndex].tensors[entry.tensorIndex].name = entry.name


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
