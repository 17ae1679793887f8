"""Which kernels TensorFlow computes with on a CPU."""

from __future__ import annotations

import os
import platform

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def use_onednn() -> bool:
    """Asks TensorFlow for oneDNN's kernels, on x86 processors, unless `TF_ENABLE_ONEDNN_OPTS` is set: whether it did.

    By itself it takes them only where the processor has instructions for neural networks, as AVX-512 VNNI, though
    they are the faster ones on those before too (docs/performance.md). It comes before the import of TensorFlow.
    """
    if VARIABLE in os.environ or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    os.environ[VARIABLE] = "1"
    return True
