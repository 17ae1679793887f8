"""What commands do for their steps on a CPU before they import TensorFlow, for programs of one's own too."""

from __future__ import annotations

import sys
import warnings

from gated_resnext import devices, memory, onednn


def prepare_cpu() -> None:
    """Keeps freed memory (`gated_resnext.memory`), unless a GPU is there, and asks for oneDNN (`gated_resnext.onednn`).

    It holds for the whole process, and comes before the first import of TensorFlow, and so of Keras: later, which it
    warns of, the memory is kept, and TensorFlow goes on with the kernels it has.
    """
    if not devices.gpu_at_hand():
        memory.keep_freed_memory()
    if onednn.use_onednn() and "tensorflow" in sys.modules:
        warnings.warn(
            "TensorFlow was imported before and goes on with the kernels it has: call prepare_cpu() before the import "
            f"of Keras, or set {onednn.VARIABLE}=1",
            stacklevel=2,
        )
