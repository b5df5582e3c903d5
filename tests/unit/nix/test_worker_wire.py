"""The worker protocol against peers that are no Nix daemon, or a broken one; real ones are in tests/system."""

from __future__ import annotations

import contextlib
import io
import socket
import struct

import pytest

from nixsnap.nix.worker import wire
from nixsnap.nix.worker.connection import Connection, DaemonError, Operation
from nixsnap.nix.worker.transport import SocketTransport
from nixsnap.nix.worker.wire import ProtocolError

HELLO, LAST, ERROR = 0x6478696F, 0x616C7473, 0x63787470


def numbers(*values):
    return struct.pack(f"<{len(values)}Q", *values)


GREETED = numbers(HELLO, 1 << 8 | 35) + wire.string("2.18") + numbers(LAST)


class Peer:
    """A transport whose other end has said all that it will."""

    is_foreign = True

    def __init__(self, said):
        self.stream = io.BytesIO(said)
        self.heard = b""
        self.closed = False

    def send(self, data):
        self.heard += data

    def abort(self):
        pass

    def close(self):
        self.closed = True

    def last_words(self):
        return ""


def test_values_are_padded_to_eight_bytes():
    """As in Nix's `serialise.hh`: a length, the bytes, zeros."""
    assert wire.string("abc") == numbers(3) + b"abc" + bytes(5)
    assert wire.string("12345678") == numbers(8) + b"12345678"
    assert wire.strings(["a", ""]) == numbers(2, 1) + b"a" + bytes(7) + numbers(0)
    read = wire.Reader(io.BytesIO(wire.mapping({"k": "v"}) + wire.string("caf\udce9")))
    assert (read.count(), read.string(), read.string(), read.string()) == (1, "k", "v", "caf\udce9")


def test_a_connection_that_is_reset(tmp_path):
    """A daemon that dies with what we sent unread: the kernel says ECONNRESET, and we which connection it was."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        transport = SocketTransport(tmp_path / "socket")
        transport.send(bytes(8))
        server.accept()[0].close()
        with (
            contextlib.closing(transport),
            pytest.raises(ProtocolError, match="the connection broke: Connection reset"),
        ):
            wire.Reader(transport.stream).number()


def test_greeting():
    """Both sides speak the older one's version."""
    peer = Peer(GREETED)
    assert Connection(peer).version == 34
    assert peer.heard == numbers(0x6E697863, 1 << 8 | 34, 0, 0)
    assert Connection(Peer(numbers(HELLO, 1 << 8 | 32, LAST))).version == 32


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "the connection ended"),
        (b"HTTP/1.1 400 Bad", "no Nix daemon answers"),
        (numbers(HELLO, 1 << 8 | 21), r"speaks version 1\.21"),
        (numbers(HELLO, 2 << 8 | 40), r"speaks version 2\.40"),
        (numbers(HELLO, 1 << 8 | 35, 1 << 40), "a string of 1099511627776 bytes"),
        (numbers(HELLO, 1 << 8 | 32, 0x1234), "said 0x1234"),
        (GREETED[:-4], "the connection ended"),
    ],
)
def test_what_is_no_daemon_of_ours_is_refused(said, words):
    """The error says what it said; the transport is closed."""
    peer = Peer(said)
    with pytest.raises(ProtocolError, match=words):
        Connection(peer)
    assert peer.closed


def test_lists_have_a_limit():
    """A count that no store could have is refused before anything is read."""
    connection = Connection(Peer(GREETED + numbers(LAST, 1 << 50)))
    with pytest.raises(ProtocolError, match="a list of 1125899906842624 elements"):
        connection.call(Operation.QUERY_VALID_PATHS, wire.strings([]), wire.number(0)).strings()


def test_error_has_the_daemons_words_and_the_connection_goes_on():
    """An error takes the place of one answer; its traces are kept."""
    error = (
        numbers(ERROR) + wire.string("Error") + numbers(0) + wire.string("Error") + wire.string("no room")
        + numbers(0, 1, 0) + wire.string("while adding a path")
    )  # fmt: skip
    connection = Connection(Peer(GREETED + error + numbers(LAST, 1)))
    with pytest.raises(DaemonError, match="no room\nwhile adding a path"):
        connection.call(Operation.ADD_TEMP_ROOT, wire.string("x"))
    assert connection.call(Operation.ADD_TEMP_ROOT, wire.string("x")).number() == 1


def test_words_are_unicode_whatever_was_said():
    """What a builder or a cache says goes on to clients, whose messages hold Unicode alone."""
    said = wire.string("caf\udce9")
    error = numbers(ERROR) + wire.string("Error") + numbers(0) + wire.string("Error") + said + numbers(0, 0)
    connection = Connection(Peer(GREETED + numbers(0x6F6C6D67) + said + error))
    with pytest.raises(DaemonError, match="caf\ufffd"):
        connection.call(Operation.ADD_TEMP_ROOT, wire.string("x"))
    assert [*connection.activities.lines] == ["caf\ufffd"]


def test_many_questions_are_asked_ahead_of_their_answers():
    """Not one at a time, but never more than a pipe holds."""
    answers = b"".join(numbers(LAST, index) for index in range(1000))
    peer = Peer(GREETED + answers)
    connection, taken = Connection(peer), []
    connection.call_each(
        Operation.ADD_TEMP_ROOT,
        (wire.string(str(index)) for index in range(1000)),
        lambda r: taken.append(r.number()),
    )
    assert taken == list(range(1000))
