"""Commands do not pass on what TensorFlow announces when it is imported; what else is written there, they do."""

import os

import pytest

from gated_resnext import quiet

LINES = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1795766346.523552   31276 port.cc:153] oneDNN custom operations are on.\n"
    b"To enable the following instructions: AVX2, in other operations, rebuild TensorFlow\n"
)
HARNESS = """
import sys
from gated_resnext import errors

def main(argv):
    import importlib.util
    assert importlib.util.find_spec("tensorflow") and "tensorflow" not in sys.modules
    import tensorflow as tf
    print(tf.reduce_sum([1, 2]).numpy())

errors.run(main)
"""


def test_announcements_are_left_out(capfd):
    with quiet._without_announcements():
        os.write(2, b"before\n" + LINES + b"Fatal: it goes on\n")
    assert capfd.readouterr().err == "before\nFatal: it goes on\n"


def test_where_something_fails_all_of_it_comes(capfd):
    with pytest.raises(ImportError), quiet._without_announcements():
        os.write(2, LINES)
        raise ImportError
    assert capfd.readouterr().err == LINES.decode()


def test_a_command_imports_tensorflow_in_silence(run_python):
    done = run_python("-c", HARNESS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_whoever_asks_for_level_0_gets_all_of_it(run_python):
    env = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_ENABLE_ONEDNN_OPTS": "1"}  # of which it tells on any processor
    done = run_python("-c", HARNESS, env=env)
    assert done.returncode == 0 and "oneDNN" in done.stderr


def test_without_stderr_it_imports_as_well(run_python, tmp_path):
    script = f"{HARNESS}\n"
    (tmp_path / "command.py").write_text(script)
    shell = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, {str(tmp_path / 'command.py')!r}]))"
    done = run_python("-c", f"import os; os.close(2)\n{shell}")
    assert (done.returncode, done.stdout) == (0, "3\n")
