import os
import platform

import pytest

from gated_resnext import onednn, prepare_cpu

COMMAND = """
from gated_resnext import errors


def main(argv):
    from tensorflow.python.util import _pywrap_util_port

    print(_pywrap_util_port.IsMklEnabled())


errors.run(main)
"""


@pytest.mark.parametrize(("asked", "found"), [(None, True), ("0", False)])
def test_commands_compute_with_it(run_python, monkeypatch, asked, found):
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("needs an x86 processor: elsewhere TensorFlow decides")
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    done = run_python("-c", COMMAND, env={onednn.VARIABLE: asked} if asked else {})
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr


@pytest.mark.parametrize(("machine", "found"), [("AMD64", "1"), ("x86_64", "1"), ("aarch64", None), ("arm64", None)])
def test_it_is_for_x86_alone(monkeypatch, machine, found):
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert onednn.use_onednn() is (found is not None)
    assert os.environ.pop(onednn.VARIABLE, None) == found


def test_what_comes_too_late_is_told(monkeypatch):
    import tensorflow  # noqa: F401

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(onednn.VARIABLE, "0")
    prepare_cpu()
    monkeypatch.delenv(onednn.VARIABLE)
    with pytest.warns(UserWarning, match="call prepare_cpu.. before the import of Keras, or set TF_ENABLE_ONEDNN_OPTS"):
        prepare_cpu()
    assert os.environ.pop(onednn.VARIABLE) == "1"
