"""A TCP proxy that is slow, or cuts connections off in the middle of what a client sends."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence

_CHUNK = 1 << 16


class DroppingProxy:
    """Passes bytes on to a port of this machine.

    Args:
        target: The port.
        cuts: The first connection over which a client has sent so many bytes is cut off there, the next one at the
            second number, and so on; after the last one none is.
        pause_seconds: Before each 64 KiB that a client sends.

    Attributes:
        port: Where it listens.
        cuts: What is left of them.
        sent: How many bytes clients have sent in all.
    """

    def __init__(self, target: int, cuts: Sequence[int], *, pause_seconds: float = 0.0) -> None:
        self.cuts = list(cuts)
        self.sent = 0
        self._target = target
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(daemon=True, target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections, and wait for those that there are to end."""
        self._listener.shutdown(socket.SHUT_RDWR)  # close() alone would not wake accept()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(daemon=True, target=self._serve, args=(client,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        address = ("127.0.0.1", self._target)
        # Whichever end is gone, the other one will notice.
        with client, contextlib.suppress(OSError), socket.create_connection(address) as server:
            self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        passed, other = 0, {client: server, server: client}
        while other:
            for source in select.select(list(other), [], [])[0]:
                data = source.recv(_CHUNK)
                if not data:
                    other.pop(source).shutdown(socket.SHUT_WR)
                    continue
                other[source].sendall(data)
                if source is client:
                    time.sleep(self._pause_seconds)
                    passed += len(data)
                    if self._is_due(passed, len(data)):
                        return  # the client is reset, since it has sent more; the server gets all up to here

    def _is_due(self, passed: int, just_now: int) -> bool:
        with self._lock:
            self.sent += just_now
            if not self.cuts or passed < self.cuts[0]:
                return False
            del self.cuts[0]
            return True


@contextlib.contextmanager
def dropping(target: int, *cuts: int, pause_seconds: float = 0.0) -> Iterator[DroppingProxy]:
    """Run one for a while."""
    proxy = DroppingProxy(target, cuts, pause_seconds=pause_seconds)
    try:
        yield proxy
    finally:
        proxy.close()
