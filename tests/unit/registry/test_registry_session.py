"""Tests of `nixsnap.registry.session`: who is shown what, where requests are sent, and how often."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import urllib3
from fakeregistry import Fault, running

from nixsnap.errors import FailedPreconditionError, PermissionDeniedError, ResourceExhaustedError
from nixsnap.registry.credentials import DockerConfig
from nixsnap.registry.networkfailures import BrokenConnectionError, UnreachableError
from nixsnap.registry.retry import ATTEMPTS, AbandonedError
from nixsnap.registry.transport import Answer, Payload, Request

BASIC = "Basic bWU6cHc="  # base64 of me:pw


@pytest.fixture
def logged_in(fake, tmp_path: Path) -> DockerConfig:
    """A registry that wants a password, and a configuration that has it."""
    fake.challenge, fake.authorization = 'Basic realm="x"', BASIC
    (tmp_path / "config.json").write_text(json.dumps({"auths": {fake.host: {"auth": "bWU6cHc="}}}))
    return DockerConfig(tmp_path / "config.json")


def get(session, *path: str, **fields: object) -> Request:
    return Request(method="GET", url=session.url(*path), **fields)


def sent_on(url: str, location: str) -> Answer:
    headers = urllib3.HTTPHeaderDict({"Location": location})
    return Answer(method="POST", url=url, status=202, headers=headers, body=b"")


def seen(fake, name: str) -> list[str | None]:
    return [each.get(name) for each in fake.seen]


def test_url(open_session):
    """Below the API's root; a host for several registries is told which is meant."""
    session = open_session("r.invalid:5000")
    assert session.url("blobs", "uploads/") == "http://r.invalid:5000/v2/team/app/blobs/uploads/"
    mirror = open_session("r.invalid", host="mirror.invalid", path="/x/v2", scheme="https")
    assert mirror.url("blobs", "d", query={"a": "b&c"}) == (
        "https://mirror.invalid/x/v2/team/app/blobs/d?a=b%26c&ns=r.invalid"
    )


def test_password_after_the_challenge(fake, open_session, logged_in):
    """Not before it, and with every request from then on."""
    session = open_session(fake.host, config=logged_in)
    assert session.call(get(session, "manifests", "1")).status == 404
    session.call(get(session, "manifests", "2"))
    assert seen(fake, "authorization") == [None, BASIC, BASIC]


def test_no_password(fake, open_session):
    """The error says where none was found."""
    fake.challenge = 'Basic realm="x"'
    session = open_session(fake.host)
    with pytest.raises(PermissionDeniedError, match=r"no-config\.json has none"):
        session.call(get(session, "manifests", "1"))


@pytest.mark.parametrize(
    ("body", "expected"), [(b"", PermissionDeniedError), (b"quota exceeded", ResourceExhaustedError)]
)
def test_forbidden(fake, open_session, logged_in, body, expected):
    """The error says to whom, unless it is everyone because there is no room."""
    session = open_session(fake.host, config=logged_in)
    session.call(get(session, "manifests", "1"))
    fake.faults.append(Fault(method="GET", status=403, body=body))
    error = session.error(session.call(get(session, "manifests", "1")), "do it")
    assert type(error) is expected
    assert ("shown was the user 'me' from" in error.message) is (expected is PermissionDeniedError)


def test_forbidden_for_who_is_not_logged_in(fake, session):
    """The error says how to."""
    fake.faults.append(Fault(method="GET", status=403))
    error = session.error(session.call(get(session, "manifests", "1")), "do it")
    assert error.hint == f"log in first: docker login {fake.host}"


def test_challenges_without_end(fake, open_session):
    """A token server gives tokens, of which the registry takes none."""
    with running() as tokens:
        tokens.faults += [
            Fault(method="GET", status=200, body=b'{"token": "%d"}' % number) for number in range(9)
        ]
        fake.challenge = f'Bearer realm="http://{tokens.host}/token"'
        session = open_session(fake.host)
        answer = session.call(get(session, "manifests", "1"))
    assert answer.status == 401
    assert isinstance(session.error(answer, "do it"), PermissionDeniedError)
    assert seen(fake, "authorization") == [None, "Bearer 0", "Bearer 1"]


def test_token_server_that_fails_for_a_while(fake, open_session, heard):
    """Is asked again."""
    with running() as tokens:
        tokens.faults += [
            Fault(method="GET", status=503),
            Fault(method="GET", is_answer_lost=True, path="token"),
            Fault(method="GET", status=200, body=b'{"token": "T"}'),
        ]
        fake.challenge, fake.authorization = f'Bearer realm="http://{tokens.host}/token"', "Bearer T"
        session = open_session(fake.host)
        assert session.call(get(session, "manifests", "1")).status == 404
    assert len(heard.retries) == 2


def test_elsewhere_we_are_nobody(fake, open_session, logged_in):
    """Redirected to another host: neither the password nor the configured header goes along."""
    with running() as other:
        fake.faults.append(
            Fault(method="GET", path="blob", status=307, headers={"Location": f"http://{other.host}/b"})
        )
        session = open_session(fake.host, config=logged_in, headers=(("X-Secret", "s"),))
        session.call(get(session, "manifests", "1"))
        session.call(get(session, "blobs", "x"))
        assert other.requests == ["GET /b"]
        assert {"authorization", "x-secret"}.isdisjoint(other.seen[0])
    assert set(seen(fake, "x-secret")) == {"s"}


def test_challenge_from_elsewhere(fake, open_session, logged_in):
    """A blob store that wants a password does not get ours."""
    with running(challenge='Basic realm="x"') as other:
        location = {"Location": f"http://{other.host}/b"}
        fake.faults.append(Fault(method="GET", path="blob", status=307, headers=location))
        session = open_session(fake.host, config=logged_in)
        assert session.call(get(session, "blobs", "x")).status == 401
        assert seen(other, "authorization") == [None]


@pytest.mark.parametrize(
    ("method", "status", "followed"),
    [
        ("GET", 301, True),
        ("HEAD", 302, True),
        ("GET", 303, True),
        ("PUT", 307, True),
        ("POST", 308, True),
        ("PUT", 301, False),
        ("POST", 302, False),
        ("GET", 304, False),
    ],
)
def test_redirects(fake, session, method, status, followed):
    """With method and body, where that may be done."""
    fake.faults.append(Fault(method=method, path="first", status=status, headers={"Location": "/second?x=y"}))
    payload = Payload.of(b"body") if method in {"PUT", "POST"} else None
    answer = session.call(Request(method=method, url=f"http://{fake.host}/first", payload=payload))
    assert answer.status == (404 if followed else status)
    assert fake.requests[1:] == ([f"{method} /second?x=y"] if followed else [])
    if followed and payload:
        assert seen(fake, "content-length") == ["4", "4"]


def test_circle(fake, session):
    """Is left."""
    fake.faults += [Fault(method="GET", status=307, headers={"Location": "/again"})] * 10
    with pytest.raises(FailedPreconditionError, match="around in circles"):
        session.call(get(session, "x"))


@pytest.mark.parametrize("location", ["", "ftp://x/y", "http://", "http://[", "javascript:1", "http:///x"])
def test_bad_location(fake, session, location):
    """Is no place to send anything to."""
    fake.faults.append(Fault(method="POST", status=202, headers={"Location": location}))
    answer = session.call(Request(method="POST", url=session.url("blobs", "uploads/")))
    with pytest.raises(FailedPreconditionError, match="without saying where"):
        session.location(answer)


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("https://r.invalid/v2/a", "/v2/b?c", "https://r.invalid/v2/b?c"),
        ("https://r.invalid/v2/a/b", "c", "https://r.invalid/v2/a/c"),
        ("https://r.invalid/v2/a", "//other.invalid/b", "https://other.invalid/b"),
        ("https://r.invalid/v2/a", "http://r.invalid/b", "https://r.invalid/b"),
        ("https://r.invalid/v2/a", "http://other.invalid/b", "http://other.invalid/b"),
        ("http://r.invalid/v2/a", "http://r.invalid/b", "http://r.invalid/b"),
    ],
)
def test_location(session, url, location, expected):
    """Relative or not; a proxy that has not told the registry of its TLS does not take us out of it."""
    assert session.location(sent_on(url, location)) == expected


def test_mirror_is_told_again(open_session):
    """Which registry is meant, when the location has lost it; not another host."""
    session = open_session("r.invalid", host="mirror.invalid")
    for location, expected in (
        ("/up?_state=x", "http://mirror.invalid/up?_state=x&ns=r.invalid"),
        ("/up?ns=r.invalid", "http://mirror.invalid/up?ns=r.invalid"),
        ("https://store.invalid/up", "https://store.invalid/up"),
    ):
        assert session.location(sent_on("http://mirror.invalid/v2/", location)) == expected


def test_tries_again(fake, session, heard):
    """After lost answers and failures, each time a little later."""
    fake.faults += [
        Fault(method="GET", is_answer_lost=True),
        Fault(method="GET", status=500),
        Fault(method="GET", status=429, headers={"Retry-After": "0"}),
    ]
    assert session.call(get(session, "manifests", "1")).status == 404
    assert len(heard.retries) == 3
    assert heard.retries[1:] == [f"{fake.host} answers 500", f"{fake.host} answers 429"]


def test_not_for_ever(fake, session):
    """The last answer counts, or the last failure."""
    fake.faults += [Fault(method="GET", status=500)] * 20
    assert session.call(get(session, "x")).status == 500
    assert len(fake.requests) == ATTEMPTS
    fake.faults[:] = [Fault(method="GET", is_answer_lost=True)] * 20
    with pytest.raises(BrokenConnectionError):
        session.call(get(session, "x"))
    assert len(fake.requests) == 2 * ATTEMPTS


def test_nobody_there_from_the_beginning(open_session, heard):
    """Is no reason to wait; a registry that has answered before may be back soon."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(UnreachableError):
        (session := open_session(host)).call(get(session, "x"))
    assert heard.retries == []
    with running() as fake:
        session = open_session(fake.host)
        session.call(get(session, "x"))
    with pytest.raises(UnreachableError):
        session.call(get(session, "x"))
    assert len(heard.retries) == ATTEMPTS - 1


def test_loopback_without_tls(fake, open_session, logged_in):
    """TLS is tried once; then all goes in the clear, what was begun before too."""
    session = open_session(fake.host, config=logged_in, tries_tls_first=True)
    begun = get(session, "manifests", "1")
    assert begun.url.startswith("https://")
    fake.faults.append(Fault(method="GET", path="manifests/1", status=503))
    assert session.call(begun).status == 404
    assert session.url("x").startswith("http://")
    assert fake.requests == ["GET /v2/team/app/manifests/1"] * 3


def test_abandoned(fake, session):
    """Nothing is sent any more."""
    session.clock.stop()
    with pytest.raises(AbandonedError):
        session.call(get(session, "x"))
    assert fake.requests == []
