"""Which kernels TensorFlow computes with on a CPU."""

from __future__ import annotations

import os
import platform
import sys
import warnings

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def use_onednn() -> None:
    """Asks TensorFlow for oneDNN's kernels, on x86 processors, unless `TF_ENABLE_ONEDNN_OPTS` is set.

    By itself it takes them only where the processor has instructions for neural networks, as AVX-512 VNNI, though
    they are the faster ones on those before too (docs/performance.md). Once TensorFlow is imported it is too late: then
    this warns where its own kernels are in use.
    """
    if VARIABLE in os.environ or platform.machine().lower() not in ("x86_64", "amd64"):
        return
    if "tensorflow" not in sys.modules:
        os.environ[VARIABLE] = "1"
    elif not in_use():
        warnings.warn(
            "TensorFlow was imported before and goes on with its own kernels: call prepare_cpu() before the import of "
            f"Keras, or set {VARIABLE}=1",
            stacklevel=3,
        )


def in_use() -> bool:
    """Whether TensorFlow computes with them."""
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())
