"""Ways to a Nix daemon: its socket, or a process of our own that serves one connection."""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Protocol

from nixsnap.errors import UnavailableError
from nixsnap.nix import process
from nixsnap.nix.worker.wire import Stream

_BUFFER_BYTES: Final = 1 << 16
_LAST_LINES: Final = 20
_LINE_LIMIT_BYTES: Final = 4096
_DRAIN_SECONDS: Final = 1.0


class Transport(Protocol):
    """One connection's bytes. Any thread may abort it; otherwise it belongs to one.

    Attributes:
        stream: What comes.
        is_foreign: Whether the daemon has to be told of our settings; one of our own has them in its environment.
    """

    stream: Stream
    is_foreign: bool

    def send(self, data: bytes) -> None:
        """Send all of it."""
        ...

    def abort(self) -> None:
        """End the connection now: whoever reads from it sees its end."""
        ...

    def close(self) -> None:
        """Give up what it holds; of no effect the second time."""
        ...

    def last_words(self) -> str:
        """What the daemon wrote elsewhere than into the connection; only after its end."""
        ...


class SocketTransport:
    """A connection to a daemon's socket.

    Args:
        path: The socket.

    Raises:
        OSError: Nobody serves it, or we may not connect.
    """

    is_foreign = True

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(os.fspath(path))
        except BaseException:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb", buffering=_BUFFER_BYTES)
        self.stream: Stream = self._file

    def send(self, data: bytes) -> None:
        """As `Transport.send`."""
        self._socket.sendall(data)

    def abort(self) -> None:
        """As `Transport.abort`."""
        with contextlib.suppress(OSError):  # it is over already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """As `Transport.close`."""
        self._file.close()
        self._socket.close()

    def last_words(self) -> str:
        """Nothing: a daemon behind a socket writes to a log of its own."""
        return ""


class ProcessTransport:
    """A connection to a process of ours, `nix-daemon --stdio`, which works on the store itself.

    Args:
        arguments: The program and its arguments.
        environment: Variables put over our own.

    Raises:
        FailedPreconditionError: There is no such program.
        UnavailableError: We are stopping, or the system starts no more threads.
    """

    is_foreign = False

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str]) -> None:
        self._process = process.spawn(
            arguments, purpose="talk to Nix", environment=environment, stdin=subprocess.PIPE
        )
        self.stream: Stream = self._pipe(self._process.stdout)
        self._stdin = self._pipe(self._process.stdin)
        self._lines: collections.deque[bytes] = collections.deque(maxlen=_LAST_LINES)
        # Read all the time, or a daemon that complains at length would wait for us for ever.
        self._drain = threading.Thread(target=self._read_errors, name="nix-stderr", daemon=True)
        try:
            self._drain.start()
        except RuntimeError as exc:  # a limit of the system's (pids.max, RLIMIT_NPROC)
            self._stdin.close()
            process.reap(self._process)
            raise UnavailableError(f"cannot talk to Nix: {exc}") from exc

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise UnavailableError("a pipe to Nix is missing")
        return pipe

    def send(self, data: bytes) -> None:
        """As `Transport.send`."""
        self._stdin.write(data)
        self._stdin.flush()

    def abort(self) -> None:
        """As `Transport.abort`: the process is ended, with what it started."""
        process.end(self._process)

    def close(self) -> None:
        """As `Transport.close`; a daemon whose client closes ends by itself."""
        with contextlib.suppress(OSError):  # it is gone already, with something unsent
            self._stdin.close()
        self.last_words()

    def last_words(self) -> str:
        """The last lines of its standard error."""
        process.wait(self._process)
        self._drain.join(_DRAIN_SECONDS)  # a process that it left behind may hold the pipe open
        process.reap(self._process)
        return b"".join(self._lines).decode(errors="replace").strip()

    def _read_errors(self) -> None:
        pipe = self._pipe(self._process.stderr)
        with contextlib.suppress(ValueError, OSError):  # it was closed while somebody else still held it
            while line := pipe.readline(_LINE_LIMIT_BYTES):
                self._lines.append(line)
