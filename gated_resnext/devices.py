"""What trains, told to people."""

from __future__ import annotations

import contextlib
import os
from typing import Any

DRIVER = "/proc/driver/nvidia/version"


def cpu(package: str) -> str:
    """The CPU; where a GPU's driver is at hand, also what would use it.

    Args:
        package: what pip is to install for that.
    """
    if not os.path.exists(DRIVER):
        return "the CPU"
    why = "; TF_CPP_MIN_LOG_LEVEL=0 tells what is missing" if package.startswith("tensorflow") else ""
    return f"the CPU (for the GPU of this machine: pip install '{package}'{why})"


def leave_gpus(tensorflow: Any) -> None:
    """Where another backend computes, TensorFlow, which writes metrics and reads images, takes no GPU's memory."""
    import keras

    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # it has begun: too late
            tensorflow.config.set_visible_devices([], "GPU")
