"""With what, and on what, is computed: versions of the libraries, and the machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform


def version(name: str) -> str:
    """That of an installed distribution, or of a module that came under another name, such as tensorflow-cpu's."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        try:
            return str(getattr(importlib.import_module(name), "__version__", "unknown"))
        except ImportError:
            return "unknown"


def backend() -> str:
    """Keras' backend."""
    import keras

    return str(keras.backend.backend())


def of_training() -> str:
    """Versions of what a training or an export depends on, as text."""
    import gated_resnext

    found = [f"{name} {version(name)}" for name in (backend(), "keras")]
    return ", ".join([f"gated_resnext {gated_resnext.__version__}", *found, f"Python {platform.python_version()}"])


def hardware(devices: str = "") -> str:
    """This machine, as far as Python knows it, as text.

    Args:
        devices: what trains, as an engine tells it.
    """
    parts = [f"{os.cpu_count()} CPU cores", f"{platform.system()} {platform.machine()}"]
    return ", ".join([devices, *parts] if devices and "the CPU" not in devices else parts)
