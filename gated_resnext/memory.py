"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory; elsewhere it does nothing.

    Otherwise every wide tensor of a step on a CPU is mapped and faulted in anew, page by page, by JAX and by
    TensorFlow's own kernels; with oneDNN's TensorFlow has a pool of its own. All threads share one heap, unless
    MALLOC_ARENA_MAX is set: from those with one of their own glibc maps what is over 64 MiB whatever it was told.
    Those that have one keep it, so this comes before the first network. It holds for the whole process.
    """
    if not sys.platform.startswith("linux"):
        return
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((mmap_max, 0), (trim_threshold, -1), (top_pad, 512 << 20)):
            libc.mallopt(option, value)
        if "MALLOC_ARENA_MAX" not in os.environ:
            libc.mallopt(arena_max, 1)
