"""SIGTERM: time to save, then the end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Any

GRACE_S = 8.0


class Termination:
    """Between `with` and its end, SIGTERM sets `asked`; if the process is still there `GRACE_S` later, it exits with 0.

    A step of a large network can take longer than a cluster waits before it kills: Python's signal handlers run
    between two bytecodes, so a thread that reads the signal's number from a socket watches instead.

    Within another one, it tells that one at its end: the work inside may have been done when the signal came.
    """

    _innermost: Termination | None = None

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._previous: Any = None
        self._deadline = threading.Timer(GRACE_S, _give_up)
        self._deadline.daemon = True

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> Termination:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals; the caller's program has its own way
        self._outer, Termination._innermost = Termination._innermost, self
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._receiver,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is None:
            return
        signal.set_wakeup_fd(self._previous_fd)
        signal.signal(signal.SIGTERM, self._previous)
        self._sender.close()
        self._deadline.cancel()
        Termination._innermost = self._outer
        if self._outer is not None and self.asked:
            self._outer._asked.set()

    def _watch(self, receiver: socket.socket) -> None:
        with receiver:
            while number := receiver.recv(1):
                if number[0] == signal.SIGTERM and not self._deadline.is_alive():
                    self._asked.set()
                    self._deadline.start()


def _give_up() -> None:
    print("Stopped during a step; the newest checkpoint is from before it", flush=True)
    sys.stderr.flush()
    os._exit(0)
