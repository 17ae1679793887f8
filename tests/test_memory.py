"""Memory that was freed is not faulted in again, whichever thread asks and however much."""

import ctypes
import sys

import pytest

from gated_resnext import memory

glibc = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")), reason="no glibc"
)
FAULTS = """
import ctypes
import resource
import sys
import threading

libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # no huge pages, of which a fault brings 2 MiB
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
size, touched = (int(argument) << 20 for argument in sys.argv[1:3])


def use():
    for _ in range(5):
        memory = libc.malloc(size)
        ctypes.memset(memory, 1, touched)
        libc.free(memory)


def main(argv=None):
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() >> 20)

"""


@glibc
@pytest.mark.parametrize(
    ("size", "touched"), [(80, 80), (3072, 80)], ids=["more than a thread's heap", "more than an int counts"]
)
def test_freed_memory_is_kept(run_python, size, touched):
    setup = "from gated_resnext import memory\nmemory.keep_freed_memory()\nmain()\n"
    kept = run_python("-c", FAULTS + setup, f"{size}", f"{touched}")
    first, then = map(int, kept.stdout.split())
    assert 0.8 * touched < first < 1.2 * touched  # MiB, once for five uses
    assert then < 0.1 * touched
    given_back = run_python("-c", FAULTS + "main()\n", f"{size}", f"{touched}")
    assert min(map(int, given_back.stdout.split())) > 4 * touched


@glibc
@pytest.mark.skipif(memory.accelerated(), reason="an accelerator is here")
def test_commands_keep_it(run_python):
    done = run_python(
        "-c", FAULTS + "sys.argv[1:] = []\nfrom gated_resnext import errors\nerrors.run(main)\n", "80", "80"
    )
    assert int(done.stdout.split()[1]) < 8


def test_accelerators(tmp_path):
    for name in ("null", "nvidia-caps", "accept"):
        (tmp_path / name).touch()
    assert not memory.accelerated(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert memory.accelerated(tmp_path)
