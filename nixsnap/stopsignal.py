"""What tells a service that it is to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signal() -> Iterator[socket.socket]:
    """Give a socket that can be read once SIGTERM or SIGINT has come; in the block they do nothing else.

    To be called by the main thread. A handler in Python would not do: only the main thread runs it, and a signal need
    not wake that one. The kernel does wake it for a signal to the process, but the first thread to look takes the
    signal, and one looks whenever its mask changes, as in pthread_create(3) (kernel/signal.c, `complete_signal`,
    `recalc_sigpending`). Python's part in C runs where the signal is taken, and it is that which writes.
    """
    stop, waker = socket.socketpair()
    with stop, waker:
        waker.setblocking(False)
        outer_fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        outer = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield stop
        finally:
            for number, handler in outer.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(outer_fd)


def _ignore(_number: int, _frame: object) -> None:
    """In place of what Python does by itself."""
