"""Asking caches ourselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nixsnap.nix.caches import refusals
from nixsnap.nix.storepath import StorePath

PATH = StorePath.parse(f"/nix/store/{'a' * 32}-x")


class _Cache(BaseHTTPRequestHandler):
    """Sends whoever asks for a path on to another host, which wants a password."""

    def do_GET(self) -> None:
        host = self.headers["Host"].partition(":")[0]
        self.server.heard.append((host, self.headers.get("Authorization")))
        if host == "127.0.0.1":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}{self.path}")
        else:
            self.send_response(401)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@pytest.fixture
def cache() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Cache) as server:
        server.heard = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_password_goes_to_its_host_alone(cache, tmp_path, monkeypatch):
    """As with Nix: a cache may send us on to anybody."""
    monkeypatch.setenv("no_proxy", "*")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    (words,) = refusals([f"http://127.0.0.1:{cache.server_port}"], PATH, netrc_file=netrc)
    assert words.endswith("HTTP error 401")
    assert cache.heard == [("127.0.0.1", "Basic bWU6c2VjcmV0"), ("localhost", None)]
