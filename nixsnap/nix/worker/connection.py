"""One connection to a Nix daemon: the greeting, calls, and what the daemon says while it works on one.

Numbers and layouts are those of `src/libstore/worker-protocol.hh` and `daemon.cc` of Nix 2.4 to 2.30. Both sides speak
the older one's version of the protocol, and a version never changes, so we declare one and stay with it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Final

from nixsnap.nix.activities import Activities
from nixsnap.nix.worker.transport import Transport
from nixsnap.nix.worker.wire import ProtocolError, Reader, number

_HELLO_CLIENT: Final = 0x6E697863
_HELLO_DAEMON: Final = 0x6478696F
_MAJOR: Final = 1
_MINOR: Final = 34  # Nix 2.8
_OLDEST_MINOR: Final = 27  # Nix 2.4: errors have a structure, QueryValidPaths its second argument
_MINOR_WITH_NIX_VERSION: Final = 33

_LAST: Final = 0x616C7473
_ERROR: Final = 0x63787470
_NEXT: Final = 0x6F6C6D67
_START_ACTIVITY: Final = 0x53545254
_STOP_ACTIVITY: Final = 0x53544F50
_RESULT: Final = 0x52534C54
_FIELD_IS_STRING: Final = 1

# Requests that may be under way at once. All of them fit into a pipe's buffer (64 KiB; a store path has 255 bytes at
# most), so that neither side can wait for the other to read.
_AHEAD: Final = 128


class Operation(enum.IntEnum):
    """What a daemon can be asked."""

    BUILD_PATHS = 9
    ADD_TEMP_ROOT = 11
    ADD_INDIRECT_ROOT = 12
    SET_OPTIONS = 19
    QUERY_PATH_INFO = 26
    QUERY_VALID_PATHS = 31
    QUERY_VALID_DERIVERS = 33
    QUERY_MISSING = 40
    QUERY_DERIVATION_OUTPUT_MAP = 41


class DaemonError(Exception):
    """The daemon could not do what it was asked; the message is its own."""


class Connection:
    """A connection that has been greeted. It belongs to one thread; any may `abort` its transport.

    Args:
        transport: The way to the daemon; `close` closes it.

    Raises:
        ProtocolError: The other side is no Nix daemon, or one older than Nix 2.4.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.read = Reader(transport.stream)
        self.activities = Activities()
        try:
            self.version = self._greet()
        except BaseException:
            transport.close()
            raise

    def close(self) -> None:
        """End the connection, and with it the temporary roots that were made over it."""
        self.transport.close()

    def call(self, operation: Operation, *arguments: bytes) -> Reader:
        """Ask for one thing.

        Returns:
            What reads the answer, which must be read before the next call.

        Raises:
            DaemonError: The daemon could not.
            ProtocolError: The connection broke.
        """
        self._send(number(operation) + b"".join(arguments))
        self._await_answer()
        return self.read

    def call_each(
        self, operation: Operation, each: Iterable[bytes], take: Callable[[Reader], object]
    ) -> None:
        """Ask for one thing after the other without waiting for each answer, which `take` is called to read."""
        under_way = 0
        for arguments in each:
            self._send(number(operation) + arguments)
            under_way += 1
            if under_way == _AHEAD:
                self._take_one(take)
                under_way -= 1
        for _ in range(under_way):
            self._take_one(take)

    def _take_one(self, take: Callable[[Reader], object]) -> None:
        self._await_answer()
        take(self.read)

    def _send(self, data: bytes) -> None:
        try:
            self.transport.send(data)
        except OSError as exc:
            raise ProtocolError(f"the connection broke: {exc.strerror}") from exc

    def _greet(self) -> int:
        self._send(number(_HELLO_CLIENT))
        if self.read.number() != _HELLO_DAEMON:
            raise ProtocolError("no Nix daemon answers")
        theirs = self.read.number()
        if theirs >> 8 != _MAJOR or theirs & 0xFF < _OLDEST_MINOR:
            raise ProtocolError(f"the daemon speaks version {theirs >> 8}.{theirs & 0xFF} of the protocol")
        minor = min(theirs & 0xFF, _MINOR)
        # Two obsolete wishes: neither a processor of its own nor space in reserve.
        self._send(number(_MAJOR << 8 | _MINOR) + number(0) + number(0))
        if minor >= _MINOR_WITH_NIX_VERSION:
            self.read.string()
        self._await_answer()
        return minor

    def _await_answer(self) -> None:
        """Take what the daemon says until it says that the answer follows."""
        while (kind := self.read.number()) != _LAST:
            if kind == _ERROR:
                raise DaemonError(self._error())
            self._hear(kind)

    def _hear(self, kind: int) -> None:
        read = self.read
        if kind == _NEXT:
            self.activities.said(read.words())
        elif kind == _START_ACTIVITY:
            activity, _level, type_ = read.number(), read.number(), read.number()
            text, fields, _parent = read.words(), self._fields(), read.number()
            self.activities.started(activity, type_, text, fields)
        elif kind == _STOP_ACTIVITY:
            self.activities.stopped(read.number())
        elif kind == _RESULT:
            activity, type_ = read.number(), read.number()
            self.activities.resulted(activity, type_, self._fields())
        else:
            raise ProtocolError(f"the daemon said {kind:#x}, which means nothing to us")

    def _fields(self) -> list[int | str]:
        read = self.read
        return [
            read.words() if read.number() == _FIELD_IS_STRING else read.number() for _ in range(read.count())
        ]

    def _error(self) -> str:
        read = self.read
        read.string()  # always "Error"
        read.number()  # its level
        read.string()  # always "Error"
        message = read.words()
        read.number()  # no position
        traces = []
        for _ in range(read.count()):
            read.number()  # no position either
            traces.append(read.words())
        return "\n".join([message, *traces])
