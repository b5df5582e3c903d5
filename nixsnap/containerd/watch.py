"""Watching what the nixsnap behind one of containerd's snapshotters fetches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

import grpc
import grpc.aio

from nixsnap import errors
from nixsnap.api import introspection_pb2, introspection_pb2_grpc, progress_pb2, progress_pb2_grpc
from nixsnap.containerd.client import Client
from nixsnap.nix.progress import Progress, ProgressSink

_TYPE = "io.containerd.snapshotter.v1"

_log = logging.getLogger(__name__)


async def watch_fetches(
    client: Client, snapshotter: str, key_suffixes: Iterable[str], progress: ProgressSink
) -> None:
    """Tell how the fetches for some snapshots go on, until this is cancelled; or nothing, if nobody can be asked.

    Args:
        client: A connection to containerd.
        snapshotter: The name containerd has it by.
        key_suffixes: What their keys end with.
        progress: Told, on the event loop.
    """
    # Watching is a courtesy: the snapshotter may be another one, and its socket out of reach.
    with contextlib.suppress(errors.NixsnapError, grpc.aio.AioRpcError):
        address = await _socket_of(client, snapshotter)
        if address is None:
            return
        async with grpc.aio.insecure_channel(f"unix:{address.removeprefix('unix://')}") as channel:
            stub = progress_pb2_grpc.ProgressStub(channel)
            async for moment in stub.Watch(progress_pb2.WatchRequest(key_suffixes=key_suffixes)):
                progress(_progress(moment))


async def _socket_of(client: Client, snapshotter: str) -> str | None:
    """The socket of a proxy snapshotter, as containerd has it configured."""
    stub = introspection_pb2_grpc.IntrospectionStub(client.channel)
    request = introspection_pb2.PluginsRequest(filters=[f"type=={_TYPE},id=={snapshotter}"])
    response = await client.call(stub.Plugins, request, doing=f"ask for snapshotter {snapshotter}")
    for plugin in response.plugins:
        if address := plugin.exports.get("address"):
            return address
    _log.debug("snapshotter %s has no socket: %s", snapshotter, response)
    return None


def _progress(moment: progress_pb2.WatchResponse) -> Progress:
    return Progress(
        paths_done=moment.paths_done,
        paths_total=moment.paths_total,
        bytes_done=moment.bytes_done,
        bytes_total=moment.bytes_total,
        current=tuple(moment.current),
    )
