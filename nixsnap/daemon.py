"""The daemon: puts configuration, metadata, Nix, snapshotter and services together, and takes them apart again."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nixsnap.api import progress_pb2_grpc, snapshots_pb2, snapshots_pb2_grpc
from nixsnap.assembly import assemble, make_inspector, prepare_views
from nixsnap.config import Config
from nixsnap.metadata.store import Store
from nixsnap.nix import leftovers, process
from nixsnap.nix.choice import make_realiser
from nixsnap.nix.realise import Realiser
from nixsnap.notify import notify
from nixsnap.periodic import periodically
from nixsnap.rootlock import hold_root
from nixsnap.services.health import HealthService
from nixsnap.services.progress import ProgressService
from nixsnap.services.snapshots import SnapshotsService
from nixsnap.serving.choice import make_server
from nixsnap.snapshots import lost
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.sweep import Sweeper
from nixsnap.snapshots.upkeep import Upkeep
from nixsnap.sockets import socket_place
from nixsnap.stopsignal import stop_signal

log = logging.getLogger(__name__)

# Calls at once. Most of those that last wait: for Nix, or for containerd, which may call us in turn to answer. So there
# are far more than anyone's pulls can take up; a thread is made only when all others are busy.
_THREADS: Final = 1024
# containerd's own limit for messages (defaults.DefaultMaxRecvMsgSize); a Prepare of a nix layer of 10,000 store
# paths with an annotation each has 1.3 MB.
_MESSAGE_BYTES: Final = 16 << 20
# Objects of which the collector of reference cycles lets so many more live before it looks at them: some megabytes.
_COLLECTOR_THRESHOLD: Final = 20_000
# What calls in flight may still take at the end; systemd kills after 90 seconds (TimeoutStopSec=).
_GRACE_SECONDS: Final = 45.0
# And what their handlers may, once their clients have been told that they are over.
_LAST_SECONDS: Final = 10.0
# Looking at 100 layers of 1000 store paths takes some 50 ms. What is off may be so for want of a network at boot.
_UPKEEP_SECONDS: Final = 900.0
_UPKEEP_RETRY_SECONDS: Final = 5.0


def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT; then let the calls in flight finish.

    Rootfs views stay mounted, since containers run in them.

    Raises:
        NixsnapError: The configuration cannot work on this machine, or another daemon has the root.
        OSError: The root directory or the socket cannot be made.
    """
    os.umask(0o022)  # modes of layers' directories are containerd's, whatever we were started with
    layout = Layout(config.root)
    layout.make()
    with stop_signal() as stop, hold_root(layout.lock), contextlib.ExitStack() as stack:
        leftovers.take_over(layout.root)
        store = stack.enter_context(contextlib.closing(Store.open(layout.metadata)))
        # Stub layers that are begun ahead; more at once would only get in each other's way on the disk.
        background = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="stubs"))
        views = stack.enter_context(prepare_views(config, layout))
        realiser = stack.enter_context(contextlib.closing(make_realiser(config)))
        snapshotter, sweeper, upkeep = assemble(
            config, layout, store, views, realiser=realiser, background=background
        )
        _forget_stubs_of_last_boot(layout, sweeper)
        sweeper.sweep(at_start=True)
        lost.restore(layout, store)
        server = make_server(
            [
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MESSAGE_BYTES),
                # Pings that measure a network's bandwidth; there is none, and they double the messages sent.
                ("grpc.http2.bdp_probe", 0),
            ],
            threads=_THREADS,
        )
        snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsService(snapshotter), server)
        progress_pb2_grpc.add_ProgressServicer_to_server(ProgressService(snapshotter.fetches), server)
        with (
            _image_service(config, layout, realiser, server) as end_passing,
            contextlib.ExitStack() as background_work,  # which ends after the programs that it waits for were ended
            _serving(server, config.address, realiser),
            _at_end(end_passing),
        ):
            _spare_collector()
            notify("READY=1")
            log.info("serving address=%s root=%s", config.address, config.root)
            background_work.enter_context(_upkeep(upkeep))
            stop.recv(1)
            notify("STOPPING=1")
            snapshotter.fetches.close()
            log.info("stopping")
    log.info("stopped")


def _upkeep(upkeep: Upkeep) -> AbstractContextManager[None]:
    return periodically(
        upkeep.check, name="upkeep", interval_seconds=_UPKEEP_SECONDS, retry_seconds=_UPKEEP_RETRY_SECONDS
    )


@contextmanager
def _image_service(
    config: Config, layout: Layout, realiser: Realiser, server: grpc.Server
) -> Iterator[Callable[[], None]]:
    """Add the CRI image service, if it is enabled, and give what ends calls that pass through it.

    containerd may start later.
    """
    if not config.image_service.enable:
        yield lambda: None
        return
    from nixsnap.services import images, passthrough, pulls  # noqa: PLC0415 - not everyone needs it

    with passthrough.connect(str(config.image_service.containerd_address)) as channel:
        puller = pulls.NixPuller(
            settings=pulls.Settings(
                containerd_address=config.image_service.containerd_address,
                store=config.host_store,
                store_dir=str(config.store_dir),
                gcroots=layout.image_gcroots,
            ),
            realiser=realiser,
            inspector=make_inspector(config),
            cri_knows=images.cri_knows(channel),
        )
        forwarder = passthrough.Forwarder(channel)
        server.add_generic_rpc_handlers([images.image_service(forwarder, puller)])
        with images.upkeep(puller):
            yield forwarder.end


@contextmanager
def _at_end(action: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        action()


def _spare_collector() -> None:
    """Have Python's collector of reference cycles look less often, and never at what is there already.

    Calls make many objects and few cycles: with Python's own threshold, 700, it took some percent of their time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTOR_THRESHOLD)


def _forget_stubs_of_last_boot(layout: Layout, sweeper: Sweeper) -> None:
    """Drop the stub layers that were made before the machine last started; they are made again when needed.

    They are never synced, so after a power cut they may be there in part; and no view is mounted that needs them.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    marker = layout.stubs / "boot-id"
    if marker.exists() and marker.read_text(encoding="ascii", errors="replace") == boot_id:
        return
    sweeper.sweep_stubs()
    marker.write_text(boot_id, encoding="ascii")


@contextmanager
def _serving(server: grpc.Server, address: Path, realiser: Realiser) -> Iterator[None]:
    """Serve on a Unix socket that only our own user can reach; at the end calls in flight finish first."""
    servicer = HealthService()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    with socket_place(address):
        with _umask(0o177):  # nobody else may connect, not even in the moment between bind and a chmod
            server.add_insecure_port(f"unix://{address}")
        server.start()
        for name in ("", snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"].full_name):
            servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield
        finally:
            servicer.end()
            _stop(server, realiser)


def _stop(server: grpc.Server, realiser: Realiser) -> None:
    """Let calls in flight finish; then those that wait for Nix are failed, so that the end comes in bounded time.

    Until then a call goes on whose client has gone, as happens when the machine stops everything: what it needs must be
    there for it to finish, or to take back what it has half done.
    """
    ending_seconds = 2 * process.END_SECONDS
    stopped = server.stop(grace=_GRACE_SECONDS + ending_seconds)
    stopped.wait(_GRACE_SECONDS)
    realiser.close()
    process.end_all()  # also what runs for callers that have gone
    if not stopped.wait(ending_seconds + _LAST_SECONDS):
        log.warning("stopping though a call does not end")


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    previous = os.umask(mask)
    try:
        yield
    finally:
        os.umask(previous)
