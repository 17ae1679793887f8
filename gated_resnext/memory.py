"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: else every wide tensor of a step on a CPU is mapped and faulted in anew."""
    if not sys.platform.startswith("linux"):
        return
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 512 << 20)):
            libc.mallopt(option, value)
