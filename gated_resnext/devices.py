"""What computes: told to people, looked for and left to others."""

from __future__ import annotations

import contextlib
import os
import pathlib
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


def gpu_at_hand(devices: pathlib.Path = pathlib.Path("/dev")) -> bool:
    """Whether an NVIDIA GPU is there and not hidden, by its file: a library that is asked would start its threads."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or os.environ.get("JAX_PLATFORMS") == "cpu"
    return not hidden and any(devices.glob("nvidia[0-9]*"))


def leave_gpus(tensorflow: Any) -> None:
    """Where another backend computes, TensorFlow, which writes metrics and reads images, takes no GPU's memory."""
    import keras

    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # it has begun: too late
            tensorflow.config.set_visible_devices([], "GPU")
