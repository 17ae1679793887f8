"""The versions of the libraries that compute."""

from __future__ import annotations

import importlib
import importlib.metadata


def version(name: str) -> str:
    """That of an installed distribution, or of a module that came under another name, such as tensorflow-cpu's."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        try:
            return str(getattr(importlib.import_module(name), "__version__", "unknown"))
        except ImportError:
            return "unknown"
