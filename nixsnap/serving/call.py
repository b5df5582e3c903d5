"""One call on a server: what came, what goes back, and the context that its handler is given.

Facts about the core (grpc/grpc_types.h): operations are started in batches, and each batch comes back as one event. The
operation "receive close" comes back once the call is over, whoever ended it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined] # the stubs leave it out

from nixsnap.serving.threads import Work

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]

_NO_FLAGS: Final = 0
_OK: Final = grpc.StatusCode.OK


class Aborted(Exception):  # noqa: N818 - how `abort` leaves a handler
    """A handler ended its call; the status is with the call."""


class Call(grpc.ServicerContext):
    """A call that has begun.

    Args:
        event: The core's event that brought it.
        gone: Called once: when it is over, its handler has ended, and what that sent has left us.
    """

    def __init__(self, event: Any, gone: Callable[[], None]) -> None:
        self._call = event.call
        self._details = event.call_details
        self._metadata: Metadata = event.invocation_metadata
        self._guard = threading.Lock()
        self._over = False
        self._gone = gone
        self._parts_left = 2  # the core's, which ends with "receive close", and the handler's
        self._callbacks: list[Callable[[], None]] = []
        self._initial_sent = False
        self._trailing: Metadata | None = None
        self._code: grpc.StatusCode = _OK
        self._text: str | None = None
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    # --- what a handler may ask and say (grpc.ServicerContext) ---

    def invocation_metadata(self) -> Any:
        """The client's headers."""
        return self._metadata

    def is_active(self) -> bool:
        """Whether anybody still waits for an answer."""
        return not self._over

    def time_remaining(self) -> float:
        """Seconds until the deadline."""
        return max(float(self._details.deadline) - time.time(), 0.0)

    def cancel(self) -> bool:
        """End the call as cancelled; whether it went on until then."""
        self._call.cancel(cygrpc.StatusCode.cancelled, "cancelled by the server")
        return not self._over

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have a function called when the call is over; False if it is over already."""
        with self._guard:
            if self._over:
                return False
            self._callbacks.append(callback)
            return True

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send headers ahead of the first message."""
        self._run((self._initial(initial_metadata),))

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what goes with the status."""
        self._trailing = trailing_metadata

    def set_code(self, code: Any) -> None:
        """Set the status."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the text that goes with the status."""
        self._text = details

    def abort(self, code: Any, details: str) -> NoReturn:
        """End the call with an error: raises, so that nothing else happens."""
        self._code = code if code is not _OK else grpc.StatusCode.UNKNOWN
        self._text = details
        raise Aborted

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with an error and its trailing metadata."""
        self._trailing = status.trailing_metadata
        self.abort(status.code, status.details)

    def peer(self) -> str:
        """Who calls."""
        return str(self._call.peer().decode())

    def peer_identities(self) -> None:
        """Nobody is identified on a Unix socket."""

    def peer_identity_key(self) -> None:
        """Nobody is identified on a Unix socket."""

    def auth_context(self) -> Mapping[str, Any]:
        """Nobody is identified on a Unix socket."""
        return {}

    # --- messages ---

    def receive(self, then: Callable[[bytes | None], Work | None]) -> None:
        """Ask for the next message of the client; `then` gets it, or None at the end, where events are waited for.

        What it returns is the work that this asks for. If the call is over, nobody gets anything, nor has to end it.
        """
        receive = (cygrpc.ReceiveMessageOperation(_NO_FLAGS),)
        if not self._start(receive, lambda event: then(event.batch_operations[0].message())):
            self._part_over()

    def messages(self) -> Iterator[bytes]:
        """The client's messages, as they come.

        Raises:
            grpc.RpcError: The client went away before it had sent them all.
        """
        while (message := self._next_message()) is not None:
            yield message
        # A call that was cancelled looks like the end of the messages at first. That it is over comes next, since the
        # core finds out both at once; and after that comes a batch of nothing, which is done when it is begun.
        self._run(())
        if self._over:
            raise grpc.RpcError

    def send(self, message: bytes) -> bool:
        """Send a message, and wait until there is room for another; whether the call goes on."""
        operation = cygrpc.SendMessageOperation(message, _NO_FLAGS)
        return self._run((operation,) if self._initial_sent else (self._initial(None), operation))

    def answer(self, message: bytes) -> None:
        """End the call well with its one message."""
        self._end(cygrpc.SendMessageOperation(message, _NO_FLAGS))

    def end(self) -> None:
        """End the call with the status that was set."""
        self._end()

    def fail(self, error: Exception) -> None:
        """End the call with what a handler raised."""
        if not isinstance(error, Aborted):
            log.error("a handler failed unforeseen error=%r", error, exc_info=error)
            self._code, self._text = grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"
        self._end()

    def _next_message(self) -> bytes | None:
        operation = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
        return operation.message() if self._run((operation,)) else None

    def _end(self, *operations: Any) -> None:
        status = cygrpc.SendStatusFromServerOperation(
            self._trailing, self._code.value[0], (self._text or "").encode(errors="replace"), _NO_FLAGS
        )
        initial = () if self._initial_sent else (self._initial(None),)
        if not self._start((*initial, *operations, status), self._part_over):
            self._part_over()

    def _initial(self, metadata: Metadata | None) -> Any:
        self._initial_sent = True
        return cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS)

    def _run(self, operations: Sequence[Any]) -> bool:
        """Start operations and wait for them; whether they went well."""
        done = threading.Lock()
        done.acquire()
        went_well = False

        def finish(event: Any) -> None:
            nonlocal went_well
            went_well = event.success
            done.release()

        if self._start(operations, finish):
            done.acquire()
        return went_well

    def _start(self, operations: Sequence[Any], then: Callable[[Any], Work | None]) -> bool:
        """Start operations unless the call is over, for then the queue that they come back from may be closed."""
        with self._guard:
            if not self._over:
                self._call.start_server_batch(operations, then)
            return not self._over

    def _closed(self, _event: Any) -> None:
        with self._guard:
            self._over = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("what was to be done at a call's end failed")
        self._part_over()

    def _part_over(self, _event: Any = None) -> None:
        with self._guard:
            self._parts_left -= 1
            gone = not self._parts_left
        if gone:
            self._gone()
