"""Calls through a server: ours behaves as grpcio's does."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from servingkit import THREADS, Bed, own

from nixsnap.serving import choice
from nixsnap.serving.server import Server

WAIT_SECONDS = 20


def test_ours_is_the_one_that_serves():
    """The grpcio that is installed is one whose core we know."""
    assert isinstance(choice.make_server([], threads=1), Server)


def test_another_grpcio_is_served_by_its_own_server(monkeypatch, caplog):
    """Should the core change, calls are served all the same, and the log says why they are slow."""

    def changed(*_args, **_kwargs):
        raise TypeError("__init__() takes 4 positional arguments")

    monkeypatch.setattr("nixsnap.serving.server.Server", changed)
    server = choice.make_server([], threads=1)
    assert isinstance(server, grpc.Server)
    assert not isinstance(server, Server)
    assert "takes 4 positional arguments" in caplog.text


def test_unary(bed: Bed):
    """One message there, one back."""
    bed.service.unary(lambda request, _context: request[::-1])
    assert bed.call(b"abc") == b"cba"


def test_empty_and_large_messages(bed: Bed):
    """Any length up to the limit."""
    bed.service.unary(lambda request, _context: request)
    assert bed.call(b"") == b""
    large = bytes(range(256)) * (20 << 10)
    assert bed.call(large) == large


def test_too_large_a_message(bed: Bed):
    """Beyond the limit the call fails, and the next one does not."""
    bed.service.unary(lambda request, _context: request[:1])
    with pytest.raises(grpc.RpcError) as caught:
        bed.channel.unary_unary("/test/unary")(bytes(9 << 20), timeout=WAIT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bed.call(b"a") == b"a"


def test_unknown_method(bed: Bed):
    """A method that nobody serves."""
    with pytest.raises(grpc.RpcError) as caught:
        bed.call()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "Method not found!"


def test_registered_methods(bed: Bed):
    """Handlers that were added by service and name, as generated code adds them."""
    assert bed.channel.unary_unary("/named/Method")(b"a", timeout=WAIT_SECONDS) == b"a!"


def test_request_that_cannot_be_decoded(bed: Bed):
    """The decoder's error does not reach a handler."""
    handler = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: b"", request_deserializer=lambda data: data.decode("ascii")
    )
    bed.service.handlers["/test/unary"] = handler
    with pytest.raises(grpc.RpcError) as caught:
        bed.call(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_abort(bed: Bed):
    """Code, text and trailing metadata arrive, text with more than ASCII too."""

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("why", "because"), ("data-bin", b"\x00\xff")))
        context.abort(grpc.StatusCode.NOT_FOUND, "no “such” thing\nat all")
        raise AssertionError("abort returned")

    bed.service.unary(behavior)
    with pytest.raises(grpc.RpcError) as caught:
        bed.call()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no “such” thing\nat all"
    assert set(caught.value.trailing_metadata()) >= {("why", "because"), ("data-bin", b"\x00\xff")}


def test_exception(bed: Bed, caplog):
    """What nobody foresaw ends as UNKNOWN, and in the log."""

    def behavior(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        raise RuntimeError("a bug")

    bed.service.unary(behavior)
    with pytest.raises(grpc.RpcError) as caught:
        bed.call()
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "a bug" in caught.value.details()
    assert "a bug" in caplog.text


def test_set_code(bed: Bed):
    """A handler may set the status and return."""

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("half of it")
        return b""

    bed.service.unary(behavior)
    with pytest.raises(grpc.RpcError) as caught:
        bed.call()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "half of it")


def test_metadata(bed: Bed):
    """Headers come and go."""
    seen: dict[str, Any] = {}

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.update(context.invocation_metadata())
        context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))
        return b"x"

    bed.service.unary(behavior)
    metadata = (("name", "value"), ("name-bin", b"\x00\x01"))
    answer, call = bed.channel.unary_unary("/test/unary").with_call(
        b"", metadata=metadata, timeout=WAIT_SECONDS
    )
    assert answer == b"x"
    assert (seen["name"], seen["name-bin"]) == ("value", b"\x00\x01")
    assert ("first", "1") in set(call.initial_metadata())
    assert ("last", "2") in set(call.trailing_metadata())


def test_deadline(bed: Bed, gate: threading.Event):
    """A handler sees how long its caller waits, and hears when he has stopped."""
    gone = threading.Event()
    seen: list[float] = []

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(context.time_remaining())
        context.add_callback(gone.set)
        gate.wait(WAIT_SECONDS)
        return b""

    bed.service.unary(behavior)
    with pytest.raises(grpc.RpcError) as caught:
        bed.channel.unary_unary("/test/unary")(b"", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < seen[0] < 1
    assert gone.wait(WAIT_SECONDS)


def test_cancellation(bed: Bed, gate: threading.Event):
    """A handler hears at once that its call was cancelled, and may go on."""
    begun, gone, ended = threading.Event(), threading.Event(), threading.Event()
    states: list[bool] = []

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        states.append(context.is_active())
        assert context.add_callback(gone.set)
        begun.set()
        gate.wait(WAIT_SECONDS)
        states.append(context.is_active())
        states.append(context.add_callback(lambda: None))
        ended.set()
        return b""

    bed.service.unary(behavior)
    call = bed.channel.unary_unary("/test/unary").future(b"")
    assert begun.wait(WAIT_SECONDS)
    call.cancel()
    assert gone.wait(WAIT_SECONDS)
    gate.set()
    assert ended.wait(WAIT_SECONDS)
    assert states == [True, False, False]


def test_callback_after_a_good_end(bed: Bed):
    """Callbacks come at the end of every call."""
    over = threading.Event()

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(over.set)
        return b"fine"

    bed.service.unary(behavior)
    assert bed.call() == b"fine"
    assert over.wait(WAIT_SECONDS)


def test_server_stream(bed: Bed):
    """Many messages back, more than fit into a connection's window."""

    def behavior(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(200):
            yield request + str(number).encode() + bytes(2000)

    bed.service.server_stream(behavior)
    answers = list(bed.channel.unary_stream("/test/server_stream")(b"n", timeout=WAIT_SECONDS))
    assert [answer.rstrip(b"\0") for answer in answers] == [b"n%d" % number for number in range(200)]


def test_server_stream_that_breaks_off(bed: Bed):
    """What was sent before the error arrives."""

    def behavior(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        context.abort(grpc.StatusCode.ABORTED, "enough")

    bed.service.server_stream(behavior)
    answers = bed.channel.unary_stream("/test/server_stream")(b"", timeout=WAIT_SECONDS)
    assert next(answers) == b"one"
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "enough")


def test_client_that_leaves_a_stream(bed: Bed):
    """The handler's iterator is closed soon after its client went."""
    closed = threading.Event()

    def behavior(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            while True:
                yield bytes(100_000)
        finally:
            closed.set()

    bed.service.server_stream(behavior)
    answers = bed.channel.unary_stream("/test/server_stream")(b"", timeout=WAIT_SECONDS)
    next(answers)
    answers.cancel()
    assert closed.wait(WAIT_SECONDS)


def test_client_stream(bed: Bed):
    """Many messages there."""
    bed.service.client_stream(lambda requests, _context: b",".join(requests))
    method = bed.channel.stream_unary("/test/client_stream")
    assert method(iter([b"a", b"b", b"", b"c"]), timeout=WAIT_SECONDS) == b"a,b,,c"


def test_stream(bed: Bed):
    """Messages both ways, each answered before the next is sent."""
    bed.service.stream(lambda requests, _context: (request.upper() for request in requests))
    step = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for number in range(20):
            assert step.acquire(timeout=WAIT_SECONDS)
            yield b"m%d" % number

    answers = []
    for answer in bed.channel.stream_stream("/test/stream")(requests(), timeout=WAIT_SECONDS):
        answers.append(answer)
        step.release()
    assert answers == [b"M%d" % number for number in range(20)]


def test_calls_that_wait_do_not_hold_up_others(bed: Bed, gate: threading.Event):
    """One free thread is enough for those that come meanwhile."""
    waiting = threading.Semaphore(0)

    def behavior(request: bytes, _context: grpc.ServicerContext) -> bytes:
        if request == b"wait":
            waiting.release()
            gate.wait(WAIT_SECONDS)
        return request

    bed.service.unary(behavior)
    calls = [bed.channel.unary_unary("/test/unary").future(b"wait") for _ in range(THREADS - 2)]
    for _ in calls:
        assert waiting.acquire(timeout=WAIT_SECONDS)
    for number in range(50):
        assert bed.call(b"%d" % number) == b"%d" % number
    gate.set()
    assert [call.result(WAIT_SECONDS) for call in calls] == [b"wait"] * len(calls)


def test_more_calls_than_threads(bed: Bed, gate: threading.Event):
    """Those that find no thread wait until there is one."""

    def behavior(request: bytes, _context: grpc.ServicerContext) -> bytes:
        gate.wait(WAIT_SECONDS)
        return request

    bed.service.unary(behavior)
    calls = [bed.channel.unary_unary("/test/unary").future(b"%d" % n) for n in range(3 * THREADS)]
    time.sleep(0.1)  # so that all threads are taken, most likely
    gate.set()
    assert [call.result(WAIT_SECONDS) for call in calls] == [b"%d" % n for n in range(3 * THREADS)]


def test_many_clients(bed: Bed):
    """Short and long calls of many clients at once: each gets its own answer."""

    def behavior(request: bytes, _context: grpc.ServicerContext) -> bytes:
        if request.endswith(b"7"):
            time.sleep(0.02)
        return request[::-1]

    bed.service.unary(behavior)

    def client(number: int) -> None:
        for step in range(150):
            message = b"%d-%d" % (number, step)
            assert bed.call(message) == message[::-1]

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(client, number) for number in range(8)]:
            result.result()


def test_cancelled_by_the_server(bed: Bed):
    """A handler may cancel its own call."""

    def behavior(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.cancel()
        return b""

    bed.service.unary(behavior)
    with pytest.raises(grpc.RpcError) as caught:
        bed.call()
    assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_stop_lets_calls_end(bed: Bed, gate: threading.Event):
    """Calls under way end well within the grace; new ones are refused."""
    begun = threading.Event()

    def behavior(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        begun.set()
        gate.wait(WAIT_SECONDS)
        return b"done"

    bed.service.unary(behavior)
    call = bed.channel.unary_unary("/test/unary").future(b"")
    assert begun.wait(WAIT_SECONDS)
    stopped = bed.server.stop(WAIT_SECONDS)
    assert not stopped.is_set()
    gate.set()
    assert call.result(WAIT_SECONDS) == b"done"
    assert stopped.wait(WAIT_SECONDS)
    with pytest.raises(grpc.RpcError) as caught:
        bed.call()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not bed.server.wait_for_termination(WAIT_SECONDS)


def test_stop_ends_calls_after_the_grace(bed: Bed, gate: threading.Event):
    """A call that hangs is ended for its client."""
    begun = threading.Event()

    def behavior(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        begun.set()
        gate.wait(WAIT_SECONDS)
        return b""

    bed.service.unary(behavior)
    call = bed.channel.unary_unary("/test/unary").future(b"")
    assert begun.wait(WAIT_SECONDS)
    bed.server.stop(0.1)
    assert call.exception(WAIT_SECONDS).code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_stop_lets_a_call_end_beside_one_whose_client_has_gone(bed: Bed, gate: threading.Event):
    """A client that went away before the stop costs no other its answer."""
    begun = threading.Semaphore(0)
    over = threading.Semaphore(0)

    def behavior(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"leave":
            gone = threading.Event()
            context.add_callback(gone.set)
            begun.release()
            gone.wait(WAIT_SECONDS)
            over.release()
        else:
            begun.release()
            gate.wait(WAIT_SECONDS)
        return request

    bed.service.unary(behavior)
    leaving = bed.channel.unary_unary("/test/unary").future(b"leave")
    assert begun.acquire(timeout=WAIT_SECONDS)
    leaving.cancel()
    assert over.acquire(timeout=WAIT_SECONDS)
    time.sleep(0.1)  # so that its handler has ended, most likely
    call = bed.channel.unary_unary("/test/unary").future(b"stay")
    assert begun.acquire(timeout=WAIT_SECONDS)
    stopped = bed.server.stop(WAIT_SECONDS)
    time.sleep(0.2)  # in which it would be ended
    gate.set()
    assert call.result(WAIT_SECONDS) == b"stay"
    assert stopped.wait(WAIT_SECONDS)


@contextmanager
def gated_server(gate: threading.Event) -> Iterator[tuple[grpc.Server, str, threading.Event]]:
    """A server, its socket, and what is set once its one handler has begun, which ends when the gate opens."""
    begun = threading.Event()

    def behavior(request: bytes, _context: grpc.ServicerContext) -> bytes:
        begun.set()
        gate.wait(WAIT_SECONDS)
        return request

    with tempfile.TemporaryDirectory(prefix="nixsnap.") as directory:
        server = choice.make_server([], threads=THREADS)
        handler = grpc.unary_unary_rpc_method_handler(behavior)
        server.add_registered_method_handlers("test", {"unary": handler})
        server.add_insecure_port(f"unix:{directory}/socket")
        server.start()
        yield server, f"{directory}/socket", begun


def test_stop_waits_for_handlers_whose_client_has_gone(gate: threading.Event):
    """Whoever closes next what handlers use closes it under none."""
    with gated_server(gate) as (server, socket_path, begun):
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            call = channel.unary_unary("/test/unary").future(b"")
            assert begun.wait(WAIT_SECONDS)
            call.cancel()
        stopped = server.stop(0.1)
        assert not stopped.wait(0.5)
        gate.set()
        assert stopped.wait(WAIT_SECONDS)


def test_client_that_sends_no_message(bed: Bed):
    """A method that takes one message and gets none answers all the same."""
    bed.service.unary(lambda request, _context: request)
    with pytest.raises(grpc.RpcError) as caught:
        bed.channel.stream_unary("/test/unary")(iter(()), timeout=WAIT_SECONDS / 2)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "exactly one request message" in caught.value.details()


def test_stop_does_not_wait_for_silent_clients(gate: threading.Event):
    """A connection ends with its last call, though the client never answers the ping that goes with a GOAWAY."""
    with gated_server(gate) as (server, socket_path, begun), socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path)
        client.sendall(unary_call("/test/unary"))
        assert begun.wait(WAIT_SECONDS)
        stopped = server.stop(1000.0)
        time.sleep(0.2)  # for the GOAWAY to be sent
        gate.set()
        assert stopped.wait(
            WAIT_SECONDS / 2
        )  # the core itself waits for twice as long (chttp2, GracefulGoaway)


def unary_call(method: str) -> bytes:
    """What a client sends that calls a method with an empty message and never says anything else (RFC 9113, 7541)."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def literal(name: str, value: str) -> bytes:
        return b"".join([b"\0", *(bytes([len(text)]) + text.encode() for text in (name, value))])

    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    begin = frame(1, 4, 1, b"".join(literal(*header) for header in headers.items()))
    return preface + begin + frame(0, 1, 1, bytes(5))


# grpcio's may close the connection while its client still grants it room, which then loses what it has not read.
@pytest.mark.parametrize("bed", [own], indirect=True, ids=["own"])
def test_answers_at_the_stop_arrive(bed: Bed, gate: threading.Event):
    """The last call's answer has left us, however large it is, before its connection is ended."""
    begun = threading.Semaphore(0)

    def behavior(request: bytes, _context: grpc.ServicerContext) -> bytes:
        begun.release()
        gate.wait(WAIT_SECONDS)
        return request * (6 << 20)

    bed.service.unary(behavior)
    calls = [bed.channel.unary_unary("/test/unary").future(b"%d" % number) for number in range(4)]
    for _ in calls:
        assert begun.acquire(timeout=WAIT_SECONDS)
    stopped = bed.server.stop(WAIT_SECONDS)
    gate.set()
    for number, call in enumerate(calls):
        assert call.result(WAIT_SECONDS) == b"%d" % number * (6 << 20)
    assert stopped.wait(WAIT_SECONDS)


def test_words_that_are_no_unicode(bed: Bed):
    """An error that quotes a builder's output byte for byte reaches the client, who would else wait for ever."""
    bed.service.unary(lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "caf\udce9"))
    with pytest.raises(grpc.RpcError) as caught:
        bed.channel.unary_unary("/test/unary")(b"", timeout=WAIT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
