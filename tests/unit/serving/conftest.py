"""A server of each kind with a service of its own, and a channel to it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from servingkit import OPTIONS, Bed, Service, grpcios, own


@pytest.fixture(params=[own, grpcios], ids=["own", "grpcio"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """Ours, and grpcio's for comparison: what holds for one must hold for the other."""
    with tempfile.TemporaryDirectory(prefix="nixsnap.") as directory:
        server = request.param()
        service = Service()
        server.add_generic_rpc_handlers((service,))
        exclaim = grpc.unary_unary_rpc_method_handler(lambda request, _context: request + b"!")
        server.add_registered_method_handlers("named", {"Method": exclaim})
        address = f"unix:{Path(directory) / 'socket'}"
        server.add_insecure_port(address)
        server.start()
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            yield Bed(server, service, channel)
        assert server.stop(None).wait(20)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds handlers up until it is set; it is, at the end."""
    event = threading.Event()
    yield event
    event.set()
