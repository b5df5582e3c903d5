"""A gRPC server in containerd's place, for what containerd's image service lacks: streams, trailers, silence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import grpc

SERVICE = "runtime.v1.ImageService"
MESSAGE_BYTES = 64 << 20

DETAILS = b"\x08\x05\x12\x03abc\xff\x00"
"""What a server attaches as google.rpc.Status (grpc-status-details-bin): any bytes, to a proxy."""


@attrs.define
class Call:
    """One call as the server saw it."""

    method: str
    metadata: list[tuple[str, str | bytes]]
    seconds_left: float
    requests: list[bytes] = attrs.field(factory=list)
    ended: bool = False
    """Whether the client's stream came to its end."""
    over: threading.Event = attrs.field(factory=threading.Event)
    """Set when the call has ended, in whatever way."""


class Backend(grpc.GenericRpcHandler):
    """Serves methods of the image service that no release has; a method is known by its name alone.

    Args:
        address: The socket.
    """

    def __init__(self, address: Path) -> None:
        self.calls: list[Call] = []
        self.go_on = threading.Event()
        """What Drip, Hang and Chat wait for between messages."""
        self.address = address
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(256),
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
            ],
        )
        self._server.add_generic_rpc_handlers([self])
        self._server.add_insecure_port(f"unix://{self.address}")
        self._server.start()

    def stop(self) -> None:
        """End at once, calls in flight included."""
        stopped = self._server.stop(grace=None) if self._server else None
        self.go_on.set()  # not before the calls are cancelled: they might end well
        if stopped is not None:
            stopped.wait()
            self._server = None

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        name = details.method.removeprefix(f"/{SERVICE}/")
        behaviour: Callable[..., Iterator[bytes]] | None = getattr(self, f"_{name.lower()}", None)
        if behaviour is None:
            return None

        def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            metadata = [(key, value) for key, value in context.invocation_metadata() if key != "user-agent"]
            call = Call(name, metadata, context.time_remaining())
            context.add_callback(call.over.set)
            self.calls.append(call)
            yield from behaviour(self._noted(requests, call), context)

        return grpc.stream_stream_rpc_method_handler(serve)

    @staticmethod
    def _noted(requests: Iterator[bytes], call: Call) -> Iterator[bytes]:
        for request in requests:
            call.requests.append(request)
            yield request
        # grpcio's server shows a cancelled call's messages as ended, for a moment.
        call.ended = not call.over.wait(0.1)

    # --- the methods: one message is sent back for each that comes, unless it says otherwise

    def _echo(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """With metadata of every kind at both ends."""
        context.send_initial_metadata(
            [("first", "1"), ("twice", "a"), ("twice", "b"), ("raw-bin", b"\x00\xff")]
        )
        context.set_trailing_metadata([("last", "2"), ("also-bin", b"\xfe\x01")])
        yield from requests

    _pullimage = _removeimage = _echo

    def _drip(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        """A server's stream: one message at once, and two once the client has seen it."""
        (request,) = requests
        yield request + b"1"
        self.go_on.wait()
        yield request + b"2"
        yield request + b"3"

    def _sum(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        """A client's stream: one answer at its end."""
        yield str(sum(map(int, requests))).encode()

    def _quit(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        """The end after one message, while the client would send more."""
        yield next(requests)

    def _fail(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """The status that the request names, with details, after one message."""
        (request,) = requests
        yield b"before"
        context.set_trailing_metadata([("last", "2"), ("grpc-status-details-bin", DETAILS)])
        context.abort(grpc.StatusCode[request.decode()], "what «happened» %s\n")

    def _hang(self, _requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        """Nothing at all."""
        self.go_on.wait()
        yield b""


def raw(channel: grpc.Channel, method: str) -> Any:
    """Any method as a stream of bytes both ways, which on the wire every kind is."""
    return channel.stream_stream(f"/{SERVICE}/{method}")
