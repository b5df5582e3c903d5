"""The image service as a proxy: whatever containerd's would say, bytes, streams, metadata, deadlines and all."""

from __future__ import annotations

import itertools
import os
import threading
from collections import defaultdict
from collections.abc import Iterator

import grpc
import pytest
from backend import DETAILS, SERVICE, Backend, raw
from lab import NixsnapDaemon
from lab.processes import wait_until

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
DAY = 86_400.0


@pytest.fixture
def backend(directory) -> Iterator[Backend]:
    """A server where nixsnap looks for containerd; not started yet."""
    backend = Backend(directory / "backend.sock")
    yield backend
    backend.stop()


@pytest.fixture
def daemon(directory, backend) -> Iterator[NixsnapDaemon]:
    """nixsnap, started before what it passes calls on to."""
    (directory / "n").mkdir()
    config = f'[image_service]\ncontainerd_address = "{backend.address}"\n'
    daemon = NixsnapDaemon.start(directory / "n", config=config)
    yield daemon
    daemon.destroy()
    assert "Traceback" not in daemon.log_text()


@pytest.fixture
def channel(daemon) -> Iterator[grpc.Channel]:
    """A client of nixsnap's socket."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix://{daemon.address}", options=options) as channel:
        yield channel


@pytest.fixture
def started(backend, channel) -> Backend:
    """The server, started."""
    backend.start()
    wait_until(lambda: answers(channel), what="answer through nixsnap")
    backend.calls.clear()
    return backend


def answers(channel: grpc.Channel) -> bool:
    """Whether a call goes through."""
    try:
        return list(raw(channel, "Echo")(iter([b"?"]), timeout=10)) == [b"?"]
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


def by_name(metadata) -> dict[str, list[str | bytes]]:
    """Metadata, whose order only matters within a name."""
    found: defaultdict[str, list[str | bytes]] = defaultdict(list)
    for key, value in metadata:
        found[key].append(value)
    return found


def test_one_message_each_way(channel, started):
    """A unary method that no release has: the request arrives as it is, and the answer comes back as it is."""
    request = os.urandom(1000)
    unary = channel.unary_unary(f"/{SERVICE}/Echo")
    assert unary(request, timeout=10) == request
    assert [call.requests for call in started.calls] == [[request]]


@pytest.mark.parametrize("size", [0, 1, 15 << 20])
def test_messages_of_any_size(channel, started, size):
    """Empty ones, and such as a node with very many images would list."""
    request = b"x" * size
    (answer,) = raw(channel, "Echo")(iter([request]), timeout=60)
    assert answer == request
    assert len(started.calls) == 1


def test_stream_of_a_server(channel, started):
    """Each message comes when it is sent, not at the end."""
    stream = channel.unary_stream(f"/{SERVICE}/Drip")(b"d", timeout=30)
    assert next(stream) == b"d1"
    started.go_on.set()
    assert list(stream) == [b"d2", b"d3"]


def test_stream_of_a_client(channel, started):
    """The end of the client's stream is passed on, which is what the server waits for."""
    summed = channel.stream_unary(f"/{SERVICE}/Sum")(map(b"%d".__mod__, range(1000)), timeout=30)
    assert summed == b"499500"
    assert len(started.calls[0].requests) == 1000


def test_streams_both_ways(channel, started):
    """A conversation: each message is an answer to the one before, so none may be kept back."""
    heard: list[bytes] = []
    turn = threading.Semaphore(1)

    def talk() -> Iterator[bytes]:
        for number in range(100):
            assert turn.acquire(timeout=30)
            assert len(heard) == number
            yield b"%d" % number

    for answer in raw(channel, "Echo")(talk(), timeout=60):
        heard.append(answer)
        turn.release()
    assert heard == [b"%d" % number for number in range(100)]
    assert started.calls[0].requests == heard


def test_server_that_stops_listening(channel, started):
    """A stream that the server ends early ends for the client too, who would go on sending."""
    stream = raw(channel, "Quit")(itertools.repeat(b"more"), timeout=30)
    assert list(stream) == [b"more"]
    assert stream.code() is grpc.StatusCode.OK
    assert started.calls[0].over.wait(10)


def test_metadata_goes_there_and_comes_back(channel, started):
    """Headers of the client, headers and trailers of the server: text, bytes, and one name several times."""
    sent = [
        ("authorization", "Bearer x"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("twice", "a"),
        ("twice", "b"),
        ("raw-bin", bytes(range(256))),
    ]
    call = raw(channel, "Echo")(iter([b"m"]), metadata=sent, timeout=10)
    assert list(call) == [b"m"]
    assert by_name(started.calls[0].metadata) == by_name(sent)
    assert by_name(call.initial_metadata()) == {"first": ["1"], "twice": ["a", "b"], "raw-bin": [b"\x00\xff"]}
    assert by_name(call.trailing_metadata()) == {"last": ["2"], "also-bin": [b"\xfe\x01"]}


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_every_status(channel, started, code):
    """A failure keeps its code, message, details and trailers, and what was sent before it."""
    stream = raw(channel, "Fail")(iter([code.name.encode()]), timeout=10)
    assert next(stream) == b"before"
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert (raised.value.code(), raised.value.details()) == (code, "what «happened» %s\n")
    assert dict(raised.value.trailing_metadata()) == {"last": "2", "grpc-status-details-bin": DETAILS}
    assert started.calls[0].over.wait(10)


def test_deadline_goes_there(channel, started):
    """The server sees how long the client will wait, and is told when that is over; without a deadline it sees none."""
    with pytest.raises(grpc.RpcError) as raised:
        list(raw(channel, "Hang")(iter([b""]), timeout=0.5))
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert started.calls[0].over.wait(10)
    assert started.calls[0].seconds_left < 10  # the two clocks that gRPC goes by are not quite one
    assert list(raw(channel, "Echo")(iter([b"x"]), timeout=3 * DAY)) == [b"x"]
    assert 2 * DAY < started.calls[1].seconds_left < 4 * DAY
    assert list(raw(channel, "Echo")(iter([b"x"]))) == [b"x"]
    assert started.calls[2].seconds_left > 365 * DAY


def test_client_that_goes_away(channel, started):
    """Cancelled calls are cancelled there: before anything came, and in the midst of a stream."""
    silent = raw(channel, "Hang")(iter([b""]))
    wait_until(lambda: len(started.calls) == 1, what="arrive")
    assert not started.calls[0].over.is_set()
    silent.cancel()
    assert started.calls[0].over.wait(10)
    dripping = channel.unary_stream(f"/{SERVICE}/Drip")(b"d")
    assert next(dripping) == b"d1"
    dripping.cancel()
    assert started.calls[1].over.wait(10)


def test_client_that_goes_away_between_messages(channel, started):
    """The server of a client's stream that breaks off hears that, not that the stream has ended."""
    more = threading.Event()

    def numbers() -> Iterator[bytes]:
        yield b"1"
        more.wait(30)
        yield b"2"

    summing = raw(channel, "Sum")(numbers())
    wait_until(lambda: started.calls != [] and started.calls[0].requests == [b"1"], what="arrive")
    summing.cancel()
    assert started.calls[0].over.wait(10)
    assert not started.calls[0].ended
    more.set()


def test_client_that_dies(daemon, started):
    """A client that is gone without a word is one that cancelled."""
    lost = grpc.insecure_channel(f"unix://{daemon.address}")
    call = raw(lost, "Hang")(iter([b""]))
    wait_until(lambda: len(started.calls) == 1, what="arrive")
    lost.close()
    assert started.calls[0].over.wait(10)
    assert call.code() is grpc.StatusCode.CANCELLED


def test_server_that_is_not_there_yet(channel, backend):
    """The daemon serves before containerd does: calls fail as unavailable, and go through once it is there."""
    with pytest.raises(grpc.RpcError) as raised:
        list(raw(channel, "Echo")(iter([b""]), timeout=10))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    backend.start()
    wait_until(lambda: answers(channel), what="answer through nixsnap")


def test_server_that_restarts(channel, started):
    """Calls in flight fail as unavailable when it goes, and it is found again when it is back."""
    for _ in range(3):
        stream = channel.unary_stream(f"/{SERVICE}/Drip")(b"d", timeout=30)
        assert next(stream) == b"d1"
        started.stop()
        with pytest.raises(grpc.RpcError) as raised:
            list(stream)
        assert raised.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert not answers(channel)
        started.go_on.clear()
        started.start()
        wait_until(lambda: answers(channel), what="answer again")


def test_daemon_that_stops(channel, daemon, started):
    """It waits for no call that passes through: silent streams would keep it, and with it every container."""
    stream = channel.unary_stream(f"/{SERVICE}/Drip")(b"d")
    assert next(stream) == b"d1"
    assert daemon.process.stop(timeout_seconds=30) == 0  # killed after that, which is another status
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert started.calls[0].over.wait(10)


def test_many_streams_at_once(channel, started):
    """Two hundred silent watchers do not keep a short call waiting."""
    watchers = [channel.unary_stream(f"/{SERVICE}/Hang")(b"") for _ in range(200)]
    assert answers(channel)
    for watcher in watchers:
        watcher.cancel()
    assert answers(channel)
    assert started.calls


@pytest.mark.parametrize(
    "request_bytes",
    [
        # image{image: "registry/x"} auth{username: "u" password: "pass"}, then a field 99 that no release has
        b"\x0a\x0c\x0a\x0aregistry/x\x12\x09\x0a\x01u\x12\x04pass\x9a\x06\x03new",
        # a reference that only looks like ours
        b"\x0a\x0c\x0a\x0anix:0.5/ab",
        b"",
        b"\xff\xff not protobuf",
    ],
    ids=["credentials", "similar", "empty", "malformed"],
)
@pytest.mark.parametrize("method", ["PullImage", "RemoveImage"])
def test_methods_that_are_looked_at(channel, started, method, request_bytes):
    """PullImage of an ordinary reference, and RemoveImage, arrive byte for byte, whatever is in them."""
    call = raw(channel, method)(iter([request_bytes]), metadata=[("x-token", "t")], timeout=10)
    assert list(call) == [request_bytes]
    assert dict(call.trailing_metadata()) == {"last": "2", "also-bin": b"\xfe\x01"}
    assert [(seen.method, seen.requests) for seen in started.calls] == [(method, [request_bytes])]
    assert started.calls[0].metadata == [("x-token", "t")]


def test_unknown_methods_and_services(channel, started):
    """A method that the server lacks is its to refuse; another service is not passed on at all."""
    for path in (
        f"/{SERVICE}/Nothing",
        "/runtime.v1.RuntimeService/Version",
        "/runtime.v1alpha2.ImageService/Echo",
    ):
        with pytest.raises(grpc.RpcError) as raised:
            list(channel.stream_stream(path)(iter([b""]), timeout=10))
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert started.calls == []
