"""The health service, `grpc.health.v1.Health`."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health, health_pb2


class HealthService(health.HealthServicer):
    """grpcio's own, but for clients that watch, whose calls end when the daemon is about to.

    With grpcio's they last until the client ends them, and a server that waits for its last call waits for that.
    """

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)
        self._watching: set[queue.SimpleQueue[health_pb2.HealthCheckResponse | None]] = set()
        self._ended = False

    def Watch(  # type: ignore[override] # the third argument is for a server that we do not use
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Tell a service's status, and each change of it, until the client goes away or `end` is called."""
        responses: queue.SimpleQueue[health_pb2.HealthCheckResponse | None] = queue.SimpleQueue()
        self._watching.add(responses)
        super().Watch(request, context, responses.put)
        if not context.add_callback(lambda: self._watching.discard(responses)):  # the call is over already
            self._watching.discard(responses)
            responses.put(None)
        if self._ended:
            responses.put(None)
        return iter(responses.get, None)

    def end(self) -> None:
        """Tell all who watch that nothing is served any more, and end their calls."""
        self.enter_graceful_shutdown()
        self._ended = True
        for responses in tuple(self._watching):
            responses.put(None)
