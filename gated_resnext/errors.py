"""What a user can cause, told in one line."""

from __future__ import annotations

import errno
import importlib.util
import io
import operator
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from gated_resnext import quiet
from gated_resnext.cpu import prepare_cpu


class UserError(ValueError):
    """A mistake the user can mend: the message says what was expected, what arrived and what to do."""


class DivergedError(UserError):
    """The loss of a training is no longer finite; `step` is the first at which it was not."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:  # what pickle calls: Exception's own forgets the step
        return type(self), (str(self), self.step)


def check_choice(field: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ValueError where a field is none of its choices."""
    if value not in choices:
        raise ValueError(f"{field} must be one of {tuple(choices)}. Received: {field}={value!r}")


def whole_number(field: str, value: Any) -> int:
    """A number of at least 1, of any library, as Python's own; raises ValueError where it is none."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{field} must be a whole number of at least 1. Received: {field}={value!r}")
    return number


def check_given(*flags: Any) -> None:
    """Raises UserError where a flag was given without a value, as by a variable of the shell that is not set."""
    for flag in flags:
        if flag.value is not None and not flag.value.strip():
            raise UserError(f"--{flag.name} is empty: give it a value or leave it out")


def check_local(*flags: Any) -> None:
    """Raises UserError where what is to be written is not on this machine: a path folds gs://a into the folder gs:."""
    for flag in flags:
        if flag.value is not None and "://" in flag.value:
            raise UserError(
                f"--{flag.name} is a place on this machine: mount what is elsewhere, or copy it there afterwards. "
                f"Received: {flag.value}"
            )


def first_line(error: BaseException) -> str:
    """Of what an error says, or its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(error: BaseException) -> str:
    """Of what an error says, or its kind, as much as there is room for in a line of ours."""
    return textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")


def run(main: Callable[[list[str]], Any], *, operands: bool = False) -> None:
    """Runs a command's `main` under absl; a user's mistake becomes one line on stderr and exit status 1.

    Args:
        main: takes the name of the command and its operands.
        operands: whether it has some, arguments that are no options.
    """
    from absl import app, logging

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1 and not operands:
            return _fail(f"unexpected argument {argv[1]!r}: options are written --name=value; see --help")
        try:
            main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()  # while what goes wrong there can be told
        except UserError as error:
            return _fail(str(error))
        except OSError as error:  # a full disk, a folder without permission
            return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        except KeyboardInterrupt:
            return _fail("interrupted; the same command starts again or goes on where it stopped")
        except MemoryError:
            return _fail("out of memory: choose a smaller network or batch")
        except Exception as error:  # TensorFlow writes files too, and has errors of its own for them
            full = os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error)
            exhausted = "RESOURCE_EXHAUSTED" in str(error)  # as JAX has it, in an error of many kinds
            if (exhausted or type(error).__name__ == "ResourceExhaustedError") and not full:
                return _fail(f"out of memory: choose a smaller network or batch ({first_line(error)})")
            backend = os.environ.get("KERAS_BACKEND")
            if backend and importlib.util.find_spec(backend) is None:
                return _fail(f"KERAS_BACKEND={backend} is not installed; tensorflow and jax are what trains")
            if str(error) == "Could not determine home directory.":  # pathlib's, of ~name/
                return _fail("a path begins with ~ and the name of somebody who has no home folder here")
            if not full:
                raise
            return _fail(str(error))
        return 0

    prepare_cpu()
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") != "0":  # whoever wants to hear it all
        quiet.tensorflow()
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else no second program beside it finds room on a GPU
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the same of JAX
    logging.set_verbosity(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):  # names of folders are any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app.run(guarded, flags_parser=_parsed)


def _parsed(argv: list[str]) -> list[str]:
    """The arguments that are no flags."""
    from absl import flags

    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_fail(f"{error}; see --help"))


def _fail(message: str) -> int:
    try:
        if sys.stdout is not None:  # as where it was closed
            sys.stdout.flush()
    except OSError:  # whoever read it is gone; Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1
