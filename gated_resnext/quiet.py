"""Keeps from a command's stderr what TensorFlow announces when it is imported: its build, and its search for GPUs.

No level of logging does so in 2.21. With TF_CPP_MIN_LOG_LEVEL=0 nothing is kept; that also shows the last words of a
TensorFlow which ends the process, as on a processor that it was not built for.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType

ANNOUNCEMENT = re.compile(rb"WARNING: All log messages before absl|[IWE]\d{4} \d\d:\d\d:|To enable the following instr")
STDERR = 2


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of TensorFlow, and stands aside while others find it."""

    aside = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow" or self.aside:
            return None
        self.aside = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.aside = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def quietly(module: ModuleType) -> None:
            with _without_announcements():
                execute(module)
                with contextlib.suppress(Exception):  # whoever needs one will see
                    module.config.list_physical_devices("GPU")

        spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


def tensorflow() -> None:
    """Keeps the announcements of the import of TensorFlow from stderr, should it come to one."""
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def _without_announcements() -> Iterator[None]:
    """What is written to stderr meanwhile comes at the end, without them; all of it where an error is raised."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            before = os.dup(STDERR)
        except OSError:  # nowhere to keep it, or no stderr
            yield
            return
        stack.callback(os.close, before)
        _flush()
        os.dup2(file.fileno(), STDERR)
        failed = True
        try:
            yield
            failed = False
        finally:
            _flush()
            os.dup2(before, STDERR)
            file.seek(0)
            with contextlib.suppress(OSError):  # whoever read it is gone
                for line in file:
                    if failed or not ANNOUNCEMENT.match(line):
                        os.write(STDERR, line)


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed or full
        sys.stderr.flush()
