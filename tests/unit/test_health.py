"""The health service."""

from __future__ import annotations

from grpc_health.v1 import health_pb2

from nixsnap.services.health import HealthService

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Context:
    """A call, which may be over."""

    def __init__(self, *, over=False):
        self.over, self.callbacks = over, []

    def add_callback(self, callback):
        if not self.over:
            self.callbacks.append(callback)
        return not self.over


def watch(service, name="", **options):
    context = Context(**options)
    return service.Watch(health_pb2.HealthCheckRequest(service=name), context), context


def statuses(told):
    return [response.status for response in told]


def test_watching_ends_with_the_daemon():
    """Who watches hears that it is no longer served, and is let go; so is who comes later, or watches nothing known."""
    service = HealthService()
    told, _ = watch(service)
    unknown, _ = watch(service, "unknown")
    service.set("", SERVING)
    service.end()
    assert statuses(told) == [SERVING, SERVING, NOT_SERVING]
    assert statuses(unknown) == [SERVICE_UNKNOWN]
    assert statuses(watch(service)[0]) == [NOT_SERVING]


def test_watching_ends_with_the_client():
    """Also if that went away before its call was looked at."""
    service = HealthService()
    told, context = watch(service)
    for callback in context.callbacks:
        callback()
    assert statuses(told) == [SERVING]
    assert statuses(watch(service, over=True)[0]) == [SERVING]
    assert not service._watching
