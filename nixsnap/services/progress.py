"""How fetches go on: our own service, `nixsnap.progress.v1.Progress`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import grpc

from nixsnap.api import progress_pb2, progress_pb2_grpc
from nixsnap.nix.progress import Progress
from nixsnap.snapshots.fetches import Fetches

_INTERVAL_SECONDS: Final = 0.2
_CURRENT_SENT: Final = 8


class ProgressService(progress_pb2_grpc.ProgressServicer):
    """Serves what is known of the fetches under way."""

    def __init__(self, fetches: Fetches) -> None:
        self._fetches = fetches

    def Watch(
        self, request: progress_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[progress_pb2.WatchResponse]:
        """Tell of every change, until the client goes away or the daemon ends."""
        last = Progress()
        while context.is_active() and not self._fetches.closed:
            progress = self._fetches.of(request.key_suffixes)
            if progress != last:
                last = progress
                yield progress_pb2.WatchResponse(
                    paths_done=progress.paths_done,
                    paths_total=progress.paths_total,
                    bytes_done=progress.bytes_done,
                    bytes_total=progress.bytes_total,
                    current=progress.current[:_CURRENT_SENT],
                )
            time.sleep(_INTERVAL_SECONDS)
