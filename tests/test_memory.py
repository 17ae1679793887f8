"""Memory that was freed is not faulted in again, whichever thread asks and however much."""

import ctypes
import os
import sys

import pytest

from gated_resnext import devices

glibc = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")), reason="no glibc"
)
FAULTS = """
import ctypes
import os
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
        memory = libc.malloc(size) or os._exit(77)
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
def test_freed_memory_is_kept(run_python, monkeypatch, size, touched):
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    given_back = run_python("-c", FAULTS + "main()\n", f"{size}", f"{touched}")
    if given_back.returncode == 77:
        pytest.skip(f"no room for {size} MiB")
    assert min(map(int, given_back.stdout.split())) > 4 * touched
    setup = "from gated_resnext import memory\nmemory.keep_freed_memory()\nmain()\n"
    kept = run_python("-c", FAULTS + setup, f"{size}", f"{touched}")
    first, then = map(int, kept.stdout.split())
    assert 0.8 * touched < first < 1.2 * touched  # MiB, once for five uses
    assert then < 0.1 * touched


@glibc
def test_arenas_that_were_set_stay(run_python, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    setup = "from gated_resnext import memory\nmemory.keep_freed_memory()\nmain()\n"
    assert int(run_python("-c", FAULTS + setup, "80", "80").stdout.split()[1]) > 4 * 80


@glibc
@pytest.mark.skipif(devices.gpu_at_hand(), reason="a GPU is here")
def test_commands_keep_it(run_python, monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    command = "sys.argv[1:] = []\nfrom gated_resnext import errors\nerrors.run(main)\n"
    first, then = map(int, run_python("-c", FAULTS + command, "80", "80").stdout.split())
    assert first > 64 and then < 8


def test_a_gpu_is_known_by_its_file(tmp_path, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nvidia-caps").touch()
    assert not devices.gpu_at_hand(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert devices.gpu_at_hand(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not devices.gpu_at_hand(tmp_path)
