"""What trains, told to people."""

from __future__ import annotations

import os

DRIVER = "/proc/driver/nvidia/version"


def cpu(package: str) -> str:
    """The CPU; where a GPU's driver is at hand, also what would use it.

    Args:
        package: what pip is to install for that.
    """
    return f"the CPU (for the GPU of this machine: pip install '{package}')" if os.path.exists(DRIVER) else "the CPU"
