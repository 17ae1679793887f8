import os
import platform
import sys

import pytest

from gated_resnext import onednn, prepare_cpu

COMMAND = """
import os

from gated_resnext import errors, onednn


def main(argv):
    import keras

    print(onednn.in_use(), os.environ[onednn.VARIABLE])


errors.run(main)
"""


@pytest.mark.parametrize(("asked", "found"), [(None, "True 1"), ("0", "False 0")])
def test_commands_compute_with_it(run_python, monkeypatch, asked, found):
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("needs an x86 processor: elsewhere TensorFlow decides")
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    done = run_python("-c", COMMAND, env={onednn.VARIABLE: asked} if asked else {})
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr


@pytest.mark.parametrize(("machine", "found"), [("AMD64", "1"), ("x86_64", "1"), ("aarch64", None), ("arm64", None)])
def test_it_is_for_x86_alone(monkeypatch, machine, found):
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    onednn.use_onednn()
    assert os.environ.pop(onednn.VARIABLE, None) == found


@pytest.mark.parametrize("in_use", [False, True])
def test_what_comes_too_late_is_told(monkeypatch, recwarn, in_use):
    import tensorflow  # noqa: F401

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(onednn, "in_use", lambda: in_use)
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    prepare_cpu()
    told = [str(warning.message) for warning in recwarn]
    assert ["call prepare_cpu() before the import of Keras, or set TF_ENABLE_ONEDNN_OPTS=1" in one for one in told] == (
        [] if in_use else [True]
    )
    assert onednn.VARIABLE not in os.environ
