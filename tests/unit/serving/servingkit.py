"""A service made of functions, and servers of both kinds for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import grpc

from nixsnap.serving.choice import make_server

THREADS = 6
OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]


class Service(grpc.GenericRpcHandler):
    """Serves functions that a test gives it, by method name, on bytes."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def unary(self, behavior: Callable[[bytes, grpc.ServicerContext], bytes]) -> None:
        self.handlers["/test/unary"] = grpc.unary_unary_rpc_method_handler(behavior)

    def server_stream(self, behavior: Any) -> None:
        self.handlers["/test/server_stream"] = grpc.unary_stream_rpc_method_handler(behavior)

    def client_stream(self, behavior: Any) -> None:
        self.handlers["/test/client_stream"] = grpc.stream_unary_rpc_method_handler(behavior)

    def stream(self, behavior: Any) -> None:
        self.handlers["/test/stream"] = grpc.stream_stream_rpc_method_handler(behavior)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self.handlers.get(handler_call_details.method)


@attrs.frozen
class Bed:
    server: grpc.Server
    service: Service
    channel: grpc.Channel

    def call(self, message: bytes = b"", **options: Any) -> bytes:
        answer: bytes = self.channel.unary_unary("/test/unary")(message, timeout=20, **options)
        return answer


def own() -> grpc.Server:
    return make_server(OPTIONS, threads=THREADS)


def grpcios() -> grpc.Server:
    return grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
