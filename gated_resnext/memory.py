"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import pathlib
import sys

_ACCELERATORS = ("nvidia[0-9]*", "kfd", "dxg", "accel*")


def accelerated(devices: pathlib.Path = pathlib.Path("/dev")) -> bool:
    """Whether a GPU or TPU is there, as files of devices tell it: a library that is asked starts its threads."""
    return any(any(devices.glob(pattern)) for pattern in _ACCELERATORS)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory; elsewhere it does nothing.

    Otherwise every wide tensor of a step on a CPU is mapped and faulted in anew, page by page. All threads share one
    heap: from those of their own glibc maps what is over 64 MiB whatever it was told. Those that have one keep
    it, so this comes before any library's threads, and before the first network. It holds for the whole process.
    """
    if not sys.platform.startswith("linux"):
        return
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((mmap_max, 0), (trim_threshold, -1), (top_pad, 512 << 20), (arena_max, 1)):
            libc.mallopt(option, value)
