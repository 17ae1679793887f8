"""SIGTERM and Ctrl-C: time to save, then the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

GRACE_S = 8.0


class Termination:
    """Between `with` and its end, SIGTERM sets `asked`; if the process is still there `GRACE_S` later, it exits with 0.

    Ctrl-C sets it too, and `interrupted`; there is no limit then, and a second one stops at once.

    A step of a large network can take longer than a cluster waits before it kills: Python's signal handlers run
    between two bytecodes, so a thread that reads the signal's number from a socket watches instead.

    Within another one, it tells that one at its end: the work inside may have been done when the signal came.
    """

    _innermost: Termination | None = None

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.interrupted = False
        self._previous: Any = None
        self._handles_interrupt = False
        self._deadline = threading.Timer(GRACE_S, _give_up)
        self._deadline.daemon = True

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def asked_within(self, seconds: float) -> bool:
        """The same, after so much patience."""
        return self._asked.wait(seconds)

    def end(self) -> NoReturn:
        """Ends the work, once what was asked for is saved: SystemExit(0), after Ctrl-C KeyboardInterrupt."""
        if self.interrupted:
            raise KeyboardInterrupt
        raise SystemExit(0)

    def __enter__(self) -> Termination:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals; the caller's program has its own way
        self._outer, Termination._innermost = Termination._innermost, self
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        if self._outer is not None and self._outer.asked:  # in the moment between its check and this
            self.interrupted = self._outer.interrupted
            self._asked.set()
        self._previous = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        # Not where it is ignored, as in the background of a shell, or where the caller has a way of its own.
        if self._outer is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handles_interrupt = True
            signal.signal(signal.SIGINT, self._interrupt)
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._receiver,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is None:
            return
        signal.set_wakeup_fd(self._previous_fd)
        signal.signal(signal.SIGTERM, self._previous)
        if self._handles_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._sender.close()
        self._deadline.cancel()
        Termination._innermost = self._outer
        if self._outer is not None and self.asked:
            self._outer._asked.set()

    def _interrupt(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        innermost: Termination | None = Termination._innermost
        while innermost is not None:  # the work inside, and what waits for it
            innermost.interrupted = True
            innermost._asked.set()
            innermost = innermost._outer
        # Ctrl-C ends a `tee` that reads this, too; and it may come in the middle of another print.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            print("\nSaving after this step; Ctrl-C again stops at once", flush=True)

    def _watch(self, receiver: socket.socket) -> None:
        with receiver:
            while number := receiver.recv(1):
                if number[0] == signal.SIGTERM and not self._deadline.is_alive():
                    self._asked.set()
                    self._deadline.start()


def _give_up() -> None:
    said = threading.Thread(target=_say_stopped, daemon=True)
    said.start()
    said.join(1.0)  # whoever reads it may be slow
    os._exit(0)


def _say_stopped() -> None:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # or gone
        print("Stopped at once; the same command goes on from the newest checkpoint", flush=True)
        sys.stderr.flush()
