"""Keras' backend for an export: TensorFlow, which writes every format, whatever the network was trained under.

Importing this imports neither Keras nor TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator

from gated_resnext.errors import UserError

NAME = "tensorflow"


def choose() -> None:
    """Makes it TensorFlow, before anything imports Keras; one line on stderr tells who asked for another.

    Raises:
        UserError: if TensorFlow is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("exports are written and read by TensorFlow, which is not installed: pip install tensorflow")
    asked = os.environ.get("KERAS_BACKEND") or NAME
    if asked != NAME:
        print(f"KERAS_BACKEND={asked}: an export needs Keras on TensorFlow, and takes that", file=sys.stderr)
    os.environ["KERAS_BACKEND"] = NAME


def check() -> None:
    """Finds that Keras computes with TensorFlow.

    Raises:
        UserError: if it is another backend.
    """
    import keras

    if keras.backend.backend() != NAME:
        raise UserError(
            f"an export needs Keras on TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()}; start Python "
            f"with KERAS_BACKEND={NAME}, which reads what another backend saved"
        )


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """Layers are made, and products computed, in float32: whatever the policy is, and without a GPU's TF32."""
    import keras
    import tensorflow as tf

    policy, tf32 = keras.config.dtype_policy(), tf.config.experimental.tensor_float_32_execution_enabled()
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
