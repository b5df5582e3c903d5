"""Tests of `nixsnap.registry.transport`: what becomes of exchanges that come to no answer, and over what they go."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import attrs
import pytest
from fakeregistry import Fault

from nixsnap import __version__
from nixsnap.errors import FailedPreconditionError, NotFoundError
from nixsnap.registry.endpoint import ClientCertificate, default_endpoint
from nixsnap.registry.networkfailures import BrokenConnectionError, NoTlsError, UnreachableError
from nixsnap.registry.transport import ANSWER_BYTES_MAX, Payload, Request, Transport


@pytest.fixture
def make() -> Iterator[Callable[..., Transport]]:
    made: list[Transport] = []

    def make_one(host: str, **settings: object) -> Transport:
        endpoint = default_endpoint(host, plain_http=False)
        made.append(Transport(attrs.evolve(endpoint, **settings)))
        return made[-1]

    yield make_one
    for transport in made:
        transport.close()


def get(url: str, **fields: object) -> Request:
    return Request(method="GET", url=url, **fields)


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], int]]:
    """Answers the first connection to a port with some bytes, whatever it is sent, and closes it."""
    threads: list[threading.Thread] = []

    def serve_one(answer: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with contextlib.suppress(OSError), listener, listener.accept()[0] as connection:
                connection.settimeout(5)
                connection.recv(1 << 16)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        threads.append(threading.Thread(daemon=True, target=run))
        threads[-1].start()
        return listener.getsockname()[1]

    yield serve_one
    for thread in threads:
        thread.join()


def test_exchange(fake, make):
    """Our name, the length of the body, and what comes back."""
    fake.faults.append(Fault(method="PUT", status=418, headers={"X-A": "b"}, body=b"tea"))
    request = Request(
        method="PUT",
        url=f"http://{fake.host}/x?y=z",
        headers={"X-C": "d"},
        payload=Payload.of(b"12345"),
    )
    answer = make(fake.host).send(request)
    assert (answer.status, answer.body, answer.headers["x-a"], answer.url) == (418, b"tea", "b", request.url)
    assert fake.requests == ["PUT /x?y=z"]
    (seen,) = fake.seen
    assert (seen["user-agent"], seen["content-length"], seen["x-c"]) == (f"nixsnap/{__version__}", "5", "d")
    assert "transfer-encoding" not in seen


def test_one_connection_for_all(fake, make):
    """It is kept open, whatever was answered."""
    transport = make(fake.host)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        transport.send(
            Request(method=method, url=f"http://{fake.host}/v2/a/blobs/uploads/", payload=Payload.of(b""))
        )
    (manager,) = transport._pools.values()
    (pool,) = manager.pools._container.values()
    assert pool.num_connections == 1


def test_endless_answer(serve, make):
    """Is read so far and no further."""
    port = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * (3 * ANSWER_BYTES_MAX))
    answer = make(f"127.0.0.1:{port}").send(get(f"http://127.0.0.1:{port}/"))
    assert answer.body == b"x" * ANSWER_BYTES_MAX


def test_nobody_listens(make):
    """At that port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"^127.0.0.1:{port} does not answer: connection refused$"):
        make(f"127.0.0.1:{port}").send(get(f"http://127.0.0.1:{port}/"))


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (socket.EAI_NONAME, NotFoundError, "there is no host r.invalid:5000"),
        (socket.EAI_AGAIN, UnreachableError, "the name r.invalid:5000 cannot be looked up now"),
    ],
)
def test_unknown_host(make, monkeypatch, number, error, message):
    """Unknown for good, or because the name server does not answer."""

    def fail(*_arguments: object, **_flags: object) -> None:
        raise socket.gaierror(number, "why")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    with pytest.raises(error, match=message):
        make("r.invalid:5000").send(get("https://r.invalid:5000/"))


def test_no_answer_to_connecting(make):
    """Within the configured time."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):  # fill the queue, so that the kernel drops further attempts
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        with pytest.raises(UnreachableError, match=r"does not answer within 0\.2 s"):
            make("x.invalid", connect_timeout_seconds=0.2).send(get(f"http://127.0.0.1:{address[1]}/"))
        for each in waiting:
            each.close()


def test_slow_reader(make):
    """The time for connecting, which may be short, is not that for sending."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"

        def read_slowly() -> None:
            with listener.accept()[0] as connection:
                time.sleep(0.6)
                head = b""
                while b"\r\n\r\n" not in head and (data := connection.recv(1 << 16)):
                    head += data
                left = size - len(head.partition(b"\r\n\r\n")[2])
                while left > 0 and (data := connection.recv(1 << 20)):
                    left -= len(data)
                connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        size = 32 << 20
        thread = threading.Thread(daemon=True, target=read_slowly)
        thread.start()
        transport = make(host, connect_timeout_seconds=0.2)
        request = Request(method="PUT", url=f"http://{host}/", payload=Payload.of(bytes(size)))
        assert transport.send(request).status == 201
        thread.join()


def test_silence(make):
    """A request without an answer: it may have been heard or not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BrokenConnectionError, match=f"^127.0.0.1:{port} fell silent$"):
            make(f"127.0.0.1:{port}").send(get(f"http://127.0.0.1:{port}/", read_timeout_seconds=0.2))


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxx", b"nonsense\r\n\r\n"]
)
def test_broken_answer(serve, make, answer):
    """None, half of one, or something else."""
    port = serve(answer)
    with pytest.raises(BrokenConnectionError, match=f"^the connection to 127.0.0.1:{port} broke: "):
        make(f"127.0.0.1:{port}").send(get(f"http://127.0.0.1:{port}/"))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"SSH-2.0-x\r\n"])
def test_no_tls(serve, make, answer):
    """Whoever answers TLS with something else, or not at all."""
    port = serve(answer)
    with pytest.raises(NoTlsError, match=f"127.0.0.1:{port} does not speak TLS") as caught:
        make(f"127.0.0.1:{port}").send(get(f"https://127.0.0.1:{port}/"))
    assert "--plain-http" in str(caught.value.hint)


def test_unusable_certificate_files(make, tmp_path):
    """The message names file, registry and configuration."""
    (tmp_path / "text").write_text("no certificate")
    missing, text = str(tmp_path / "missing"), str(tmp_path / "text")
    for settings, reason in (
        ({"ca_files": (missing,)}, f"certificate authority {missing} for r.invalid .*: no such file"),
        ({"ca_files": (text,)}, f"certificate authority {text} for r.invalid cannot be used: "),
        (
            {"client_certificates": (ClientCertificate(certificate=missing),)},
            f"client certificate {missing} with the key in the same file for r.invalid .*: no such file",
        ),
        (
            {"client_certificates": (ClientCertificate(certificate=text, key=missing),)},
            f"client certificate {text} with the key {missing} ",
        ),
    ):
        with pytest.raises(FailedPreconditionError, match=reason) as caught:
            make("r.invalid", source="/etc/hosts.toml", **settings).send(get("https://r.invalid/"))
        assert caught.value.hint == "it is named in /etc/hosts.toml"


def test_proxy(fake, make, monkeypatch):
    """The environment's, with its password, and with the whole URL; never for this machine."""
    monkeypatch.setenv("http_proxy", f"http://me:p%40w@{fake.host}")
    monkeypatch.setenv("no_proxy", "direct.invalid")
    transport = make("r.invalid")
    transport.send(get("http://r.invalid/v2/"))
    assert fake.requests == ["GET http://r.invalid/v2/"]
    assert fake.seen[0]["proxy-authorization"] == "Basic bWU6cEB3"  # base64 of me:p@w
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    transport.send(get(f"http://{fake.host}/v2/"))
    with pytest.raises((NotFoundError, UnreachableError), match=r"direct\.invalid"):
        transport.send(get("http://direct.invalid/"))
    with pytest.raises(
        UnreachableError, match=r"the proxy for r\.invalid does not answer|r\.invalid does not answer"
    ):
        transport.send(get("http://r.invalid/"))


def test_log_has_no_query(fake, make, caplog):
    """It may be what opens a blob store."""
    caplog.set_level(logging.DEBUG, "nixsnap")
    make(fake.host).send(get(f"http://{fake.host}/v2/?signature=secret"))
    assert f"GET http://{fake.host}/v2/: 404" in caplog.text
    assert "secret" not in caplog.text
