"""Passing a gRPC service on to another server as it is: bytes in, bytes out, whatever the method.

No message is decoded, so methods, fields and streams that did not exist when this was written pass as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Final

import grpc

# Headers that belong to one connection, which gRPC writes itself.
_HOP_HEADERS: Final = frozenset({"user-agent", "te", "content-type"})

# A call without a deadline has one in the year 292 billion, to gRPC's server; its client, given as much, never sends.
_ENDLESS_SECONDS: Final = float(1 << 31)


def connect(address: str) -> grpc.Channel:
    """A channel to a Unix socket whose server may come later, or go and come back."""
    return grpc.insecure_channel(
        f"unix://{address}",
        options=[
            ("grpc.max_receive_message_length", -1),  # its two ends have limits of their own
            ("grpc.max_send_message_length", -1),
            # gRPC waits up to two minutes between attempts by default; a restart of containerd takes a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # containerd's socket path is no host name.
            ("grpc.default_authority", "localhost"),
        ],
    )


class Forwarder:
    """Makes the calls that are passed on, and ends them when the daemon does.

    Args:
        channel: To the server that answers.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self._calls: set[grpc.Call] = set()
        self._ended = False

    def forward(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Make the call that `context` is on the other channel.

        On the wire a unary call is a stream of one message, so this serves all four kinds. Headers, deadline and
        cancellation go there; messages, trailers and status come back.

        Args:
            method: The full path of the method.
            requests: The client's messages.
            context: The client's call.
        """
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(method)
        made: Future[grpc.Call] = Future()
        call = stream(
            _until_client_goes(requests, made),
            metadata=tuple(
                (key, value)
                for key, value in context.invocation_metadata()
                if key not in _HOP_HEADERS and not key.startswith((":", "grpc-"))
            ),
            timeout=_timeout(context),
        )
        made.set_result(call)
        self._calls.add(call)
        if self._ended or not context.add_callback(lambda: _cancel(call)):  # it is over already
            _cancel(call)
        try:
            context.send_initial_metadata(tuple(call.initial_metadata()))
            yield from call
            context.set_trailing_metadata(tuple(call.trailing_metadata()))
        except grpc.RpcError:
            if self._ended:
                context.abort(grpc.StatusCode.UNAVAILABLE, "nixsnap is stopping")
            context.set_trailing_metadata(tuple(call.trailing_metadata()))
            context.abort(call.code(), call.details() or "")
        finally:
            self._calls.discard(call)

    def end(self) -> None:
        """End all calls, as unavailable: what they do is the other server's, and nothing of it is lost with us."""
        self._ended = True
        for call in tuple(self._calls):
            _cancel(call)


class Passthrough(grpc.GenericRpcHandler):
    """Serves every method of one service by passing it on.

    Args:
        service: The full name of the service, as `runtime.v1.ImageService`.
        forwarder: To the server that answers.
        own: Handlers for methods that are not passed on, by name.
    """

    def __init__(
        self, service: str, forwarder: Forwarder, own: Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]
    ) -> None:
        self._prefix = f"/{service}/"
        self._forwarder = forwarder
        self._own = own

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """The handler of a method; None when it belongs to another service."""
        method = handler_call_details.method
        if not method.startswith(self._prefix):
            return None
        own = self._own.get(method.removeprefix(self._prefix))
        return own or grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._forwarder.forward(method, requests, context)
        )


def _timeout(context: grpc.ServicerContext) -> float | None:
    """The seconds that the client still waits; None when it waits for ever, as kubelet does for a pull."""
    remaining = context.time_remaining()
    return None if remaining > _ENDLESS_SECONDS else remaining


def _until_client_goes(requests: Iterator[bytes], call: Future[grpc.Call]) -> Iterator[bytes]:
    """The client's messages. When it goes away in their midst, the server must not take that for their end."""
    try:
        yield from requests
    except grpc.RpcError:
        _cancel(call.result())


def _cancel(call: grpc.Call) -> None:
    call.cancel()  # of no effect on a call that is over
