"""Processes that tests start, stop and kill.

They are forked from one that has imported TensorFlow and run none of its operations, so that it has no threads that a
fork would leave behind, and a start costs no import.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback

import pytest

from gated_resnext.errors import UserError


def start(function, *arguments, log):
    """A child that calls a function as a command would and writes what it prints to `log`; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        with open(log, "ab", buffering=0) as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        function(*arguments)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child, within=400.0):
    """The exit status of a child, negative for a signal as subprocess has it; one still there is killed."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def in_a_fresh_process(function, *arguments):
    """Calls a function of a test module where TensorFlow is imported and nothing else was done, with text arguments."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    module, name = function.__module__, function.__name__
    text = f"import {module}; {module}.{name}({', '.join(repr(str(argument)) for argument in arguments)})"
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    logs = [f"\n{path}:\n{path.read_text()[-3000:]}" for path in pathlib.Path(arguments[-1]).glob("*.log")]
    assert done.returncode == 0, done.stderr[-3000:] + "".join(logs)
