"""A registry in this process, by OCI's distribution specification, which fails on cue."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

_UPLOAD = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<number>\d*)")
_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:\w+)")
_MANIFEST = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)")
_CHUNK = 1 << 16


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


@attrs.frozen(kw_only=True)
class Fault:
    """What goes wrong with the next request that matches.

    Args:
        method: Which it must have.
        path: A regular expression that its path must contain.
        status: The answer in place of the right one.
        headers: Of that answer.
        body: Of that answer.
        cut_after: Read (and keep, of a blob) so many bytes of the body, then close the connection.
        is_answer_lost: Do it all, then close the connection without an answer.
    """

    method: str
    path: str = ""
    status: int = 0
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    is_answer_lost: bool = False


@attrs.define(kw_only=True)
class FakeRegistry:
    """What it holds and what was asked of it.

    Attributes:
        port: Where it listens, without TLS.
        blobs: By repository and digest.
        manifests: By repository, and by tag and digest: media type and content.
        uploads: By their number: what has arrived.
        requests: `METHOD path?query` in order.
        seen: The headers of each request.
        faults: What is still to go wrong, in order.
        can_resume: Whether it tells how much of an upload has arrived.
        challenge: What it answers to requests without `authorization`, if anything.
        authorization: What it takes.
        received: Bytes of blobs.
    """

    port: int = 0
    blobs: dict[tuple[str, str], bytes] = attrs.field(factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = attrs.field(factory=dict)
    uploads: dict[str, bytes] = attrs.field(factory=dict)
    requests: list[str] = attrs.field(factory=list)
    seen: list[dict[str, str]] = attrs.field(factory=list)
    faults: list[Fault] = attrs.field(factory=list)
    can_resume: bool = True
    challenge: str = ""
    authorization: str = "nothing"
    received: int = 0
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _numbers: Iterator[int] = attrs.field(factory=lambda: iter(range(1, 10_000)))

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def methods(self, path: str = "") -> list[str]:
        """The methods of the requests whose path contains a regular expression, in order."""
        return [each.partition(" ")[0] for each in self.requests if re.search(path, each)]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path):
                    self.faults.remove(fault)
                    return fault
        return None

    def new_upload(self) -> str:
        with self._lock:
            number = str(next(self._numbers))
            self.uploads[number] = b""
            return number


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[FakeRegistry]:
    """Run one for a while."""
    registry = FakeRegistry(**settings)
    server = _Server(("127.0.0.1", 0), _handler_for(registry))
    registry.port = server.server_address[1]
    thread = threading.Thread(daemon=True, target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()  # waits for the threads of connections


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _handler_for(registry: FakeRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        fake = registry

    return Handler


class _GoneError(Exception):
    """The connection is to be closed."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeRegistry
    protocol_version = "HTTP/1.1"
    timeout = 5

    def handle(self) -> None:
        with contextlib.suppress(_GoneError, ConnectionError):
            super().handle()

    def log_message(self, *_arguments: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.do
        raise AttributeError(name)

    def do(self) -> None:
        self.fake.requests.append(f"{self.command} {self.path}")
        self.fake.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(self.url.query).items()}
        self.fault = self.fake.take_fault(self.command, self.path)
        self.left = int(self.headers.get("Content-Length", 0))
        if self.fault and self.fault.status:
            self.read_body()
            self.answer(self.fault.status, self.fault.body, **self.fault.headers)
        elif self.fake.challenge and self.headers.get("Authorization", "") != self.fake.authorization:
            self.read_body()
            self.answer(401, **{"WWW-Authenticate": self.fake.challenge})
        else:
            self.route()

    def route(self) -> None:
        for pattern, handle in ((_UPLOAD, self.upload), (_BLOB, self.blob), (_MANIFEST, self.manifest)):
            if matched := pattern.fullmatch(self.url.path):
                handle(**matched.groupdict())
                return
        self.error(404, "UNSUPPORTED")

    def read_body(self) -> bytes:
        body = b""
        while self.left:
            body += (chunk := self.read_some())
            if not chunk:
                break
        return body

    def read_some(self) -> bytes:
        size = min(self.left, _CHUNK)
        if self.fault and self.fault.cut_after is not None:
            size = min(size, self.fault.cut_after)
            if not size:
                self.close()
            self.fault = attrs.evolve(self.fault, cut_after=self.fault.cut_after - size)
        chunk = self.rfile.read(size)
        self.left -= len(chunk)
        return chunk

    def close(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        raise _GoneError

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        if self.fault and self.fault.is_answer_lost:
            self.close()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, message: str = "", **headers: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.answer(status, body, **headers)

    def blob(self, name: str, digest: str) -> None:
        found = self.fake.blobs.get((name, digest))
        if found is None:
            self.error(404, "BLOB_UNKNOWN")
        else:
            self.answer(200, found if self.command == "GET" else b"", Docker_Content_Digest=digest)

    def manifest(self, name: str, reference: str) -> None:
        if self.command != "PUT":
            media_type, body = self.fake.manifests.get((name, reference), ("", b""))
            self.answer(200 if media_type else 404, body)
            return
        body = self.read_body()
        digest = digest_of(body)
        wanted = [
            each["digest"]
            for each in (*json.loads(body).get("layers", ()), *json.loads(body).get("manifests", ()))
        ]
        for each in wanted:
            if (name, each) not in self.fake.blobs and (name, each) not in self.fake.manifests:
                self.error(400, "MANIFEST_BLOB_UNKNOWN", each)
                return
        for key in (reference, digest):
            self.fake.manifests[name, key] = (self.headers["Content-Type"], body)
        self.answer(201, Docker_Content_Digest=digest)

    def upload(self, name: str, number: str) -> None:
        if not number:
            self.start_upload(name)
        elif number not in self.fake.uploads:
            self.error(404, "BLOB_UPLOAD_UNKNOWN")
        elif self.command == "GET":
            self.describe_upload(204, number)
        elif self.command == "DELETE":
            del self.fake.uploads[number]
            self.answer(204)
        else:
            self.receive(name, number)

    def start_upload(self, name: str) -> None:
        known = self.fake.blobs.get((self.query.get("from", ""), self.query.get("mount", "")))
        if known is not None:
            self.fake.blobs[name, self.query["mount"]] = known
            self.answer(201, Docker_Content_Digest=self.query["mount"])
            return
        self.answer(202, Location=f"{self.url.path}{self.fake.new_upload()}?state=0")

    def describe_upload(self, status: int, number: str) -> None:
        size = len(self.fake.uploads[number])
        end = max(0, size - 1) if self.fake.can_resume else 0
        self.answer(status, Location=f"{self.url.path}?state={size}", Range=f"0-{end}")

    def receive(self, name: str, number: str) -> None:
        place = self.headers.get("Content-Range")
        if place and int(place.partition("-")[0]) != len(self.fake.uploads[number]):
            self.read_body()
            self.error(416, "RANGE_INVALID")
            return
        while self.left and (chunk := self.read_some()):
            if number not in self.fake.uploads:
                self.close()  # cancelled meanwhile
            self.fake.uploads[number] += chunk
            self.fake.received += len(chunk)
        if self.command == "PATCH":
            self.describe_upload(202, number)
            return
        content = self.fake.uploads.pop(number)
        if digest_of(content) != self.query["digest"]:
            self.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        self.fake.blobs[name, self.query["digest"]] = content
        self.answer(201, Docker_Content_Digest=self.query["digest"])
