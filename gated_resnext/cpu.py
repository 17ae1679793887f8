"""What commands do for their steps on a CPU before they import TensorFlow, for programs of one's own too."""

from __future__ import annotations

from gated_resnext import devices, memory, onednn


def prepare_cpu() -> None:
    """Keeps freed memory (`gated_resnext.memory`), unless a GPU is there, and asks for oneDNN (`gated_resnext.onednn`).

    It holds for the whole process, and comes before the first import of TensorFlow, and so of Keras: later, TensorFlow
    goes on with the kernels it has.
    """
    if not devices.gpu_at_hand():
        memory.keep_freed_memory()
    onednn.use_onednn()
