"""A binary cache on loopback HTTP that fails on cue: slow, closed, forbidden, incomplete, dead and back again."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from lab.nix import nix_environment
from lab.processes import run


@attrs.define(kw_only=True, eq=False)
class BinaryCache:
    """Serves a directory that `nix copy --to file://` filled. Whatever is set takes effect with the next request."""

    directory: Path
    delay_seconds: float = 0.0
    """Before each answer, as distance would."""
    status: HTTPStatus | None = None
    """Answered to every request for a path, in place of it."""
    broken: str = ""
    """What requests whose path holds this get is 404."""
    password: str = ""
    """Of the user `reader`; everyone else gets 401."""
    reader: str = "reader"
    agent: str = ""
    """What the header User-Agent has to hold; all else gets 401."""
    held: threading.Event = attrs.field(factory=threading.Event)
    """While this is clear, NARs are not answered."""
    requests: list[str] = attrs.field(factory=list)
    """The paths that were asked for, in order."""
    _server: ThreadingHTTPServer | None = None
    _port: int = 0
    _connections: set[Any] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        self.held.set()

    @property
    def url(self) -> str:
        """Where it is served, dead or alive."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def nars(self) -> list[str]:
        """The NARs that were asked for, in order."""
        return [path for path in self.requests if path.startswith("/nar/")]

    def publish(
        self, store_paths: Iterable[str], *, secret_key: Path | None = None, store_root: Path | None = None
    ) -> None:
        """Put store paths of the machine's store, or of a chroot store, with all that they refer to, into it."""
        key = "" if secret_key is None else f"&secret-key={secret_key}"
        config = nix_environment()["NIX_CONFIG"] + "experimental-features = nix-command\n"
        store = () if store_root is None else ("--store", store_root)
        run(
            "nix", "copy", *store, "--to", f"file://{self.directory}?compression=none{key}", *store_paths,
            environment={"NIX_CONFIG": config},
        )  # fmt: skip

    def start(self) -> None:
        """Serve; on the same port again, if it has served before."""
        self._server = _Server(("127.0.0.1", self._port), _Handler, self)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self) -> None:
        """Serve no more and break all connections off, as a crash would."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def note(self, connection: object) -> None:
        """Note a connection, to break it off."""
        self._connections.add(connection)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.set()
        self.kill()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], cache: BinaryCache
    ) -> None:
        self.cache = cache
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections are broken off on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.cache.note(self.connection)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        cache = self.server.cache
        cache.requests.append(self.path)
        if self.path.startswith("/nar/"):
            cache.held.wait()
        time.sleep(cache.delay_seconds)
        status, body = self._answer(cache)
        self.send_response(status)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="cache"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer(self, cache: BinaryCache) -> tuple[HTTPStatus, bytes]:
        expected = "Basic " + base64.b64encode(f"{cache.reader}:{cache.password}".encode()).decode()
        if cache.password and self.headers.get("Authorization") != expected:
            return HTTPStatus.UNAUTHORIZED, b""
        if cache.agent not in self.headers.get("User-Agent", ""):
            return HTTPStatus.UNAUTHORIZED, b""
        if cache.status is not None and self.path != "/nix-cache-info":
            return cache.status, b""
        file = cache.directory / self.path.lstrip("/")
        if (cache.broken and cache.broken in self.path) or not file.is_file():
            return HTTPStatus.NOT_FOUND, b""
        return HTTPStatus.OK, file.read_bytes()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""
