"""The server: what is served by whom, and its beginning and end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import attrs
import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined] # the stubs leave it out

from nixsnap.serving.call import Call
from nixsnap.serving.threads import Crew, Finished, Work

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_UNKNOWN_METHOD: Final = "Method not found!"
_NO_MESSAGE: Final = "the method requires exactly one request message"


@attrs.frozen
class _Details(grpc.HandlerCallDetails):
    """What a generic handler is asked by."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


class Server(grpc.Server):
    """Serves handlers made for grpcio's own server.

    Args:
        options: gRPC's channel arguments, by name.
        threads: How many calls may be under way at once.
    """

    def __init__(self, options: Sequence[tuple[str, int]], *, threads: int) -> None:
        self._core = cygrpc.Server(tuple(options), False)
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._crew = Crew(self._wait, limit=threads, name="call")
        self._methods: dict[str, Handler] = {}
        self._services: list[grpc.GenericRpcHandler] = []
        self._guard = threading.Lock()
        self._calls = 0  # that are not over, whose handler runs yet, or whose end has not left us
        self._stopping = False
        self._is_down = False  # the core
        self._stopped = threading.Event()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Serve what these handlers know; those that were added first are asked first."""
        self._services.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Handler]
    ) -> None:
        """Serve the methods of a service, by name."""
        for name, handler in method_handlers.items():
            self._methods[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Listen there.

        Raises:
            RuntimeError: That cannot be done.
        """
        port = int(self._core.add_http2_port(address.encode()))
        if port == 0:
            raise RuntimeError(f"cannot listen on {address}")
        return port

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Nobody needs it."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to serve."""
        self._core.start()
        self._request()
        self._crew.start()

    def stop(self, grace: float | None) -> threading.Event:
        """Take no more calls, and end those that are under way after `grace` seconds.

        Returns:
            What is set once all calls are over and no handler runs any more, be it for a client that has gone.
        """
        with self._guard:
            begun, self._stopping = self._stopping, True
            if not begun:
                self._core.shutdown(self._queue, self._shut_down)
            idle = not self._calls
        if idle:
            # That ends connections too. The core would else wait for every client to close its own, one that is stopped
            # or waits for nothing included, and at best for a ping of theirs (chttp2's graceful GOAWAY).
            self._core.cancel_all_calls()
        threading.Thread(target=self._cancel_after, args=(grace or 0.0,), daemon=True).start()
        return self._stopped

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until `stop` has done its work; whether time ran out before that."""
        return not self._stopped.wait(timeout)

    def _cancel_after(self, grace: float) -> None:
        if not self._stopped.wait(grace):
            self._core.cancel_all_calls()

    def _call_gone(self) -> None:
        with self._guard:
            self._calls -= 1
            last, is_down = self._stopping and not self._calls, self._is_down
        if last and is_down:
            self._stopped.set()
        elif last:
            self._core.cancel_all_calls()

    def _shut_down(self, _event: Any) -> None:
        self._queue.shutdown()
        with self._guard:
            self._is_down = True
            idle = not self._calls
        if idle:
            self._stopped.set()

    def _wait(self, deadline: float | None) -> tuple[bool, Work | None]:
        event = self._queue.poll(deadline)
        if event.tag is not None:
            return True, self._dealt_with(event)
        if event.completion_type == cygrpc.CompletionType.queue_timeout:
            return False, None
        raise Finished

    def _dealt_with(self, event: Any) -> Work | None:
        try:
            work: Work | None = event.tag(event)
        except Exception:
            log.exception("an event of a call failed unforeseen")
            return None
        return work

    def _request(self) -> None:
        with self._guard:
            if not self._stopping:
                self._core.request_call(self._queue, self._queue, self._begin)

    def _begin(self, event: Any) -> Work | None:
        if not event.success:  # shutting down
            return None
        self._request()
        method = event.call_details.method.decode()
        with self._guard:
            self._calls += 1
        call = Call(event, self._call_gone)
        handler = self._handler(method, event)
        if handler is None:
            call.set_code(grpc.StatusCode.UNIMPLEMENTED)
            call.set_details(_UNKNOWN_METHOD)
            call.end()
        elif handler.request_streaming:
            return self._crew.hand_over(partial(_serve, call, handler, _decoded(call.messages(), handler)))
        else:
            call.receive(partial(self._serve_one, call, handler))
        return None

    def _serve_one(self, call: Call, handler: Handler, message: bytes | None) -> Work | None:
        """What is to be done about the one message of a client."""
        if message is None:  # it went away before that came, or says that none will
            call.set_code(grpc.StatusCode.UNIMPLEMENTED)
            call.set_details(_NO_MESSAGE)
            call.end()
            return None
        work = partial(_serve_message, call, handler, message)
        return self._crew.hand_over(work) if handler.response_streaming else work

    def _handler(self, method: str, event: Any) -> Handler | None:
        if (handler := self._methods.get(method)) is not None:
            return handler
        details = _Details(method, event.invocation_metadata)
        return next(filter(None, (service.service(details) for service in self._services)), None)


def _serve_message(call: Call, handler: Handler, message: bytes) -> None:
    try:
        request = _decode(message, handler)
    except Exception as exc:  # noqa: BLE001 - whatever the decoder found, the client sent it
        call.set_code(grpc.StatusCode.INTERNAL)
        call.set_details(f"cannot decode the request: {exc}")
        call.end()
        return
    _serve(call, handler, request)


def _serve(call: Call, handler: Handler, request: Any) -> None:
    behavior = _behavior(handler)
    encode = handler.response_serializer or _as_it_is
    try:
        if handler.response_streaming:
            for response in behavior(request, call):
                if not call.send(encode(response)):
                    break
            call.end()
        else:
            call.answer(encode(behavior(request, call)))
    except Exception as exc:  # noqa: BLE001 - whatever it is, the client must hear of it
        call.fail(exc)


def _behavior(handler: Handler) -> Callable[[Any, grpc.ServicerContext], Any]:
    if handler.request_streaming:
        found = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        found = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert found is not None  # noqa: S101 - grpc's own functions make handlers so
    return found


def _decode(message: bytes, handler: Handler) -> Any:
    return (handler.request_deserializer or _as_it_is)(message)


def _decoded(messages: Iterator[bytes], handler: Handler) -> Iterator[Any]:
    return (_decode(message, handler) for message in messages)


def _as_it_is(message: Any) -> Any:
    return message
