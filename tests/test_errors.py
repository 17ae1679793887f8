import os
import signal
import subprocess
import sys

import pytest

COMMAND = """
import errno, os, time
from absl import flags
from gated_resnext import errors

COUNT = flags.DEFINE_integer("count", 0, "A whole number.", lower_bound=0)

def main(argv):
    print("began with", COUNT.value, argv[1:])
    {body}

if __name__ == "__main__":
    errors.run(main)
"""
RAISES = {
    'raise errors.UserError("expected a cat.\\n  Received: a dog")': "error: expected a cat. Received: a dog",
    'raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "big.npz")': "error: No space left on device: big.npz",
    'open("nowhere/file")': "error: No such file or directory: nowhere/file",
    'raise OSError("the disk is gone")': "error: the disk is gone",
    'raise RuntimeError("run.v2; No space left on device")': "error: run.v2; No space left on device",
    'raise type("ResourceExhaustedError", (Exception,), {})("w; No space left on device")': (
        "error: w; No space left on device"
    ),
    'raise type("ResourceExhaustedError", (Exception,), {})("OOM when")': (
        "error: out of memory: choose a smaller network or batch (OOM when)"
    ),
    "raise KeyboardInterrupt": "error: interrupted; the same command starts again or goes on where it stopped",
}


@pytest.fixture
def command(tmp_path):
    def write(body):
        path = tmp_path / "command.py"
        path.write_text(COMMAND.format(body=body))
        return path

    return write


@pytest.mark.parametrize("body, line", RAISES.items(), ids=RAISES.values())
def test_what_a_user_can_cause_is_one_line_and_status_1(command, run_python, tmp_path, body, line):
    done = run_python(command(body), cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (1, line + "\n", "began with 0 []\n")


def test_a_backend_that_is_not_there_is_named(command, run_python):
    done = run_python(command("import keras"), env={"KERAS_BACKEND": "no_such"})
    assert (done.returncode, done.stdout) == (1, "began with 0 []\n")
    assert (
        done.stderr.splitlines()[-1]
        == "error: KERAS_BACKEND=no_such is not installed; tensorflow and jax are what trains"
    )


def test_success_is_silent_and_status_0(command, run_python):
    done = run_python(command("return 'a value'"), "--count=3")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "began with 3 []\n")


@pytest.mark.parametrize(
    "argument, named",
    [
        ("--cuont=3", "cuont"),
        ("--count=three", "three"),
        ("--count=-1", "-1"),
        ("--count", "count"),
        ("stray", "stray"),
        ("count=3", "count=3"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_1(command, run_python, argument, named):
    done = run_python(command("pass"), argument)
    assert done.returncode == 1
    assert done.stdout == "", "main ran"
    assert done.stderr.startswith("error: ") and named in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")


def test_a_mistake_of_the_program_keeps_its_traceback(command, run_python):
    done = run_python(command("{}['missing']"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError: 'missing'" in done.stderr


def test_ctrl_c_is_one_line(command):
    # A shell's background job ignores the signal, and tests that run in one would hand that down.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, str(command(f"{heed}; print('ready', flush=True); time.sleep(60)"))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "began with 0 []\n"
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.startswith("error: interrupted;") and stderr.count("\n") == 1


def test_a_line_is_told_though_nobody_reads_the_rest(command):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, command('raise errors.UserError("expected a cat")')],
            stdout=write,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"error: expected a cat\n")


def test_a_user_error_is_a_value_error():
    from gated_resnext.errors import UserError

    with pytest.raises(ValueError, match="^expected a cat$"):
        raise UserError("expected a cat")


def test_a_mistake_is_told_where_stdout_is_closed(command, tmp_path):
    for body, line in (('raise errors.UserError("no")', "error: no"), ("pass", "")):
        done = subprocess.run(
            ["sh", "-c", '"$0" "$1" >&-', sys.executable, command(body)], capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode, done.stderr.strip()) == (1 if line else 0, line)


def test_what_could_not_be_printed_at_the_end_is_said(command, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = subprocess.run(
        ["sh", "-c", '"$0" "$1" > /dev/full', sys.executable, command("pass")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")
