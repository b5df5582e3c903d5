"""Which server serves: ours, or grpcio's own where its core is not as we know it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

log = logging.getLogger(__name__)


def make_server(options: Sequence[tuple[str, int]], *, threads: int) -> grpc.Server:
    """A server that is not started yet.

    Args:
        options: gRPC's channel arguments, by name.
        threads: How many calls may be under way at once; a thread is made only when all others are busy.
    """
    try:
        from nixsnap.serving.server import Server  # noqa: PLC0415 - it is this that may not be there

        return Server(options, threads=threads)
    except (ImportError, AttributeError, TypeError) as exc:
        # The core's Python module is grpcio's own affair, and has kept its form from 1.18 on; should it change, calls
        # are served all the same, only slower.
        log.warning("grpcio is not as expected; serving with its own server error=%r", exc)
        return grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="call"), options=options)
