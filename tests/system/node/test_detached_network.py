"""A cache that can be reached in rootlesskit's detached network namespace only."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from lab import DetachedNetwork, NixsnapDaemon, PrivateStore, nix_closure
from rpc import connect, refused


class Silent(SimpleHTTPRequestHandler):
    """Serves a directory and says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serving(directory: Path, network: DetachedNetwork) -> Iterator[str]:
    """Serve a directory on the loopback interface of the network; yields the URL."""
    handler = functools.partial(Silent, directory=str(directory))
    server = network.call(lambda: ThreadingHTTPServer(("127.0.0.1", 0), handler))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_nix_fetches_from_within(directory):
    """The daemon's socket is where it always is, its Nix in the other network; without that, there is no cache."""
    store = PrivateStore.below(directory)
    inside, outside = nix_closure(2, salt="inside"), nix_closure(2, salt="outside")
    store.publish(inside, outside)
    (directory / "n").mkdir()
    with DetachedNetwork.made(directory) as network, serving(store.cache, network) as url:
        environment = {"NIX_CONFIG": store.environment["NIX_CONFIG"].replace(f"file://{store.cache}", url)}
        daemon = NixsnapDaemon.start(
            directory / "n", config=store.config, environment=environment | network.environment
        )
        with connect(daemon.address) as rpc:
            rpc.nix_layer("image", inside.paths)
        daemon.stop()
        assert all(map(store.has, inside.paths))
        daemon = NixsnapDaemon.start(directory / "n", config=store.config, environment=environment)
        with (
            connect(daemon.address) as rpc,
            refused(grpc.StatusCode.UNAVAILABLE, "unable to download", url),
        ):
            rpc.nix_layer("other", outside.paths)
        daemon.destroy()
