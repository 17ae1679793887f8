"""Which kernels TensorFlow computes with on a CPU."""

from __future__ import annotations

import os
import platform

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def use_onednn() -> None:
    """Asks TensorFlow for oneDNN's kernels, unless `TF_ENABLE_ONEDNN_OPTS` is set; of an x86 processor alone.

    By itself it takes them only where the processor has instructions for neural networks, as AVX-512 VNNI, though
    they are the faster ones on those before too (docs/performance.md). It comes before the import of TensorFlow.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.setdefault(VARIABLE, "1")
