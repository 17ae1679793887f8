"""Warm-up requests: what TF Serving runs through a version before it answers anybody with it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from export.saved_model import PICTURES, SIGNATURE
from gated_resnext.errors import shortened

FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
# What batching merges at most (batching.config), and so the largest batch there is.
MAX_BATCH = 64
GREY = 128


def write(folder: pathlib.Path, name: str, shape: tuple[int, int, int], *, pictures: bool) -> list[str]:
    """Writes a request of one image and one of `MAX_BATCH` for each signature.

    Args:
        folder: the version's.
        name: the model's.
        shape: (height, width, channels) of its input.
        pictures: whether it takes picture files too.

    Returns:
        What the user should know: nothing, or that tensorflow-serving-api is missing and no request was written.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except Exception as error:  # it is not there, or was made for other protocol buffers than those that are
        why = "" if isinstance(error, ImportError) else f" ({shortened(error)})"
        return [f"No warm-up requests{why}: pip install 'gated-resnext[serving]' and export again to have them"]
    path = folder / FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as records:
        for signature, tensor in _inputs(shape, pictures):
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name, request.model_spec.signature_name = name, signature
            request.inputs["images" if signature == SIGNATURE else PICTURES].CopyFrom(tensor)
            records.write(log.SerializeToString())
    return []


def _inputs(shape: tuple[int, int, int], pictures: bool) -> Iterator[tuple[str, Any]]:
    """Signatures and batches for them, of one grey value that the proto stores once."""
    for batch in (1, MAX_BATCH):
        yield SIGNATURE, tf.make_tensor_proto(GREY, tf.uint8, (batch, *shape))
        if pictures:
            picture = tf.io.encode_png(np.full(shape, GREY, np.uint8)).numpy()
            yield PICTURES, tf.make_tensor_proto([picture] * batch, tf.string)
