"""Tests of `nixsnap.registry.authorizer`: challenges, passwords and tokens."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl, urlsplit

import attrs
import pytest
import urllib3

from nixsnap.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnavailableError,
)
from nixsnap.registry.authorizer import Authorizer
from nixsnap.registry.credentials import Credentials
from nixsnap.registry.transport import Answer, Request

ME = Credentials(username="me", password="p:w", source="a file")
PUSH, PULL = "repository:team/app:pull,push", "repository:base:pull"
BEARER = 'Bearer realm="https://auth.invalid/token?a=b",service="s"'
BASIC = {"Authorization": "Basic bWU6cDp3"}  # base64 of me:p:w


def refused(*challenges: str) -> Answer:
    headers = urllib3.HTTPHeaderDict()
    for challenge in challenges:
        headers.add("WWW-Authenticate", challenge)
    return Answer(method="GET", url="https://r.invalid/v2/", status=401, headers=headers, body=b"")


@attrs.define
class TokenServer:
    """What the authorizer speaks with, and the clock that both look at."""

    answers: list[tuple[int, object]] = attrs.field(factory=list)
    requests: list[Request] = attrs.field(factory=list)
    now: float = 1000.0

    def send(self, request: Request) -> Answer:
        self.requests.append(request)
        number = len(self.requests)
        status, value = self.answers.pop(0) if self.answers else (200, {"token": f"T{number}"})
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = urllib3.HTTPHeaderDict()
        return Answer(method=request.method, url=request.url, status=status, headers=headers, body=body)

    def scopes(self) -> list[list[str]]:
        queries = [parse_qsl(urlsplit(each.url).query) for each in self.requests]
        return [[value for name, value in query if name == "scope"] for query in queries]


@pytest.fixture
def server() -> TokenServer:
    return TokenServer()


@pytest.fixture
def make(server):
    def make_one(credentials: Credentials | None = ME) -> Authorizer:
        return Authorizer(
            "r.invalid",
            look_up=lambda: credentials,
            searched="config.json",
            send=server.send,
            now=lambda: server.now,
        )

    return make_one


def challenged(authorizer: Authorizer, *challenges: str, scopes: tuple[str, ...] = (PUSH,)) -> dict[str, str]:
    """Show what there is, be refused, and show what there is then."""
    shown = authorizer.header(scopes)
    assert authorizer.answer(refused(*challenges), scopes, shown=shown)
    return authorizer.header(scopes)


def test_nothing_is_shown_to_who_does_not_ask(server):
    """Nor even looked up: a credential helper may ask for a passphrase."""
    authorizer = Authorizer(
        "r.invalid", look_up=lambda: pytest.fail("looked up"), searched="", send=server.send
    )
    assert authorizer.header([PUSH]) == {}


def test_basic(make):
    """Name and password, from the first challenge on."""
    assert challenged(make(), 'Basic realm="x"') == BASIC


def test_basic_wrong_password(make):
    """There is no other one to try."""
    authorizer = make()
    shown = challenged(authorizer, 'Basic realm="x"')
    with pytest.raises(
        PermissionDeniedError, match="401 Unauthorized; shown was the user 'me' from a file"
    ) as caught:
        authorizer.answer(refused('Basic realm="x"'), [PUSH], shown=shown)
    assert caught.value.hint == "log in first: docker login r.invalid"


@pytest.mark.parametrize("credentials", [None, Credentials(identity_token="T", source="a file")])
def test_basic_without_password(make, credentials):
    """A token does not help there."""
    with pytest.raises(
        PermissionDeniedError, match=r"wants a user and a password .* config.json has none"
    ) as caught:
        challenged(make(credentials), 'Basic realm="x"')
    assert "docker login r.invalid" in str(caught.value.hint)


def test_bearer_by_get(make, server):
    """The password goes to the token server, the scopes and the service with it; the registry gets the token."""
    assert challenged(make(), BEARER) == {"Authorization": "Bearer T1"}
    (request,) = server.requests
    assert (request.method, request.headers, request.payload) == ("GET", BASIC, None)
    assert parse_qsl(urlsplit(request.url).query) == [("a", "b"), ("service", "s"), ("scope", PUSH)]


def test_bearer_comes_before_basic(make):
    """Where the registry would take either."""
    assert challenged(make(), 'Basic realm="x"', BEARER)["Authorization"].startswith("Bearer")


def test_anonymous_token(make, server):
    """Those who have not logged in may get one too."""
    assert challenged(make(None), BEARER) == {"Authorization": "Bearer T1"}
    assert server.requests[0].headers == {}


def test_token_is_kept_by_scopes(make, server):
    """And asked for anew for others, or when most of its time is over."""
    authorizer = make()
    server.answers = [(200, {"access_token": "A", "expires_in": 100}), (200, {"token": "B"})]
    challenged(authorizer, BEARER)
    server.now += 79
    assert authorizer.header([PUSH]) == {"Authorization": "Bearer A"}
    assert authorizer.header([PUSH, PULL]) == {"Authorization": "Bearer B"}
    server.now += 2
    assert authorizer.header([PUSH]) == {"Authorization": "Bearer T3"}
    assert server.scopes() == [[PUSH], [PULL, PUSH], [PUSH]]


@pytest.mark.parametrize("expires_in", [None, 0, -1, "soon"])
def test_token_that_does_not_say_how_long(make, server, expires_in):
    """Is good for a minute, says the protocol."""
    authorizer = make()
    server.answers = [(200, {"token": "A", "expires_in": expires_in})]
    challenged(authorizer, BEARER)
    server.now += 47
    assert authorizer.header([PUSH]) == {"Authorization": "Bearer A"}
    server.now += 2
    assert authorizer.header([PUSH]) == {"Authorization": "Bearer T2"}


@pytest.mark.parametrize("expires_in", [10**400, 1e300])
def test_token_that_says_too_long(make, server, expires_in):
    """A token server may send any number; after most of a day we ask again."""
    authorizer = make()
    server.answers = [(200, {"token": "A", "expires_in": expires_in})]
    challenged(authorizer, BEARER)
    server.now += 60_000
    assert authorizer.header([PUSH]) == {"Authorization": "Bearer A"}
    server.now += 10_000
    assert authorizer.header([PUSH]) == {"Authorization": "Bearer T2"}


def test_refused_token_is_replaced(make):
    """But not one that another thread has got meanwhile."""
    authorizer = make()
    first = challenged(authorizer, BEARER)
    assert authorizer.answer(refused(BEARER), [PUSH], shown=first)
    second = authorizer.header([PUSH])
    assert second != first
    assert authorizer.answer(refused(BEARER), [PUSH], shown=first)
    assert authorizer.header([PUSH]) == second


def test_scopes_of_the_challenge_are_added(make, server):
    """A registry behind a path prefix calls the repository otherwise; what ours covers is not said twice."""
    authorizer = make()
    challenged(authorizer, f'{BEARER},scope="repository:team/app:pull repository:prefix/team/app:pull,push"')
    assert server.scopes() == [["repository:prefix/team/app:pull,push", PUSH]]


def test_identity_token_by_post(make, server):
    """In a form, as OAuth 2 has it, and never to the registry."""
    credentials = Credentials(identity_token="I&D", source="a file")
    server.answers = [(200, {"access_token": "A"})]
    assert challenged(make(credentials), BEARER) == {"Authorization": "Bearer A"}
    (request,) = server.requests
    assert (request.method, request.url) == ("POST", "https://auth.invalid/token?a=b")
    assert request.headers == {"Content-Type": "application/x-www-form-urlencoded"}
    assert dict(parse_qsl(request.payload.open().read(1 << 20).decode())) == {
        "grant_type": "refresh_token",
        "refresh_token": "I&D",
        "service": "s",
        "client_id": "nixsnap",
        "scope": PUSH,
    }


@pytest.mark.parametrize("status", [404, 405])
def test_server_that_knows_only_post(make, server, status):
    """Gets the password in a form."""
    server.answers = [(status, {}), (200, {"access_token": "A"})]
    assert challenged(make(), BEARER) == {"Authorization": "Bearer A"}
    form = dict(parse_qsl(server.requests[1].payload.open().read(1 << 20).decode()))
    assert (form["grant_type"], form["username"], form["password"]) == ("password", "me", "p:w")


def test_registry_token(make, server):
    """Goes to the registry as it is; there is no other one when it is refused."""
    authorizer = make(Credentials(registry_token="R", source="a file"))
    shown = challenged(authorizer, BEARER)
    assert shown == {"Authorization": "Bearer R"}
    assert not authorizer.answer(refused(BEARER), [PUSH], shown=shown)
    assert server.requests == []


@pytest.mark.parametrize(
    ("challenges", "asked"),
    [([], "nothing"), (["Negotiate"], "'negotiate'"), (['Digest realm="x"', "Evil\x1b"], "'digest'")],
)
def test_unknown_scheme(make, challenges, asked):
    """Is named."""
    with pytest.raises(FailedPreconditionError, match=f"does not have: .*{asked}"):
        make().answer(refused(*challenges), [PUSH], shown={})


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "https://", "token", "http://[", "https://x:y/"])
def test_no_token_server(make, realm):
    """Whatever else a registry may send us to."""
    with pytest.raises(FailedPreconditionError, match="names no token server"):
        challenged(make(), f'Bearer realm="{realm}"')


def test_secret_is_not_sent_in_the_clear(make, server):
    """To where a registry says, unless that is this machine; without a secret there is none to protect."""
    for credentials in (ME, Credentials(identity_token="T", source="a file")):
        with pytest.raises(FailedPreconditionError, match=r"has no TLS: .* from a file is not sent there"):
            challenged(make(credentials), 'Bearer realm="http://auth.invalid/"')
    assert server.requests == []
    challenged(make(None), 'Bearer realm="http://auth.invalid/"')
    challenged(make(), 'Bearer realm="http://127.0.0.1:5001/"')


@pytest.mark.parametrize(
    ("status", "value", "error", "reason"),
    [
        (401, {"details": "x"}, PermissionDeniedError, "shown was the user 'me' from a file"),
        (403, {}, PermissionDeniedError, "auth.invalid answers 403 Forbidden"),
        (503, {}, UnavailableError, "auth.invalid answers 503"),
        (200, b"secret", InvalidArgumentError, "the answer of auth.invalid is not valid JSON"),
        (200, ["secret"], InvalidArgumentError, "is not an object"),
        (200, {}, FailedPreconditionError, "has no token for r.invalid"),
        (200, {"token": "secret\r\nEvil: yes"}, FailedPreconditionError, "has no token"),
        (200, {"token": 7}, FailedPreconditionError, "has no token"),
    ],
)
def test_token_server_that_gives_none(make, server, *, status, value, error, reason):
    """The message says who did not give what, and shows no secret."""
    server.answers = [(status, value)]
    with pytest.raises(error, match=reason) as caught:
        challenged(make(), BEARER)
    assert "secret" not in str(caught.value)


def test_anonymous_refused(make, server):
    """Whoever has not logged in is told how to."""
    server.answers = [(401, {})]
    with pytest.raises(PermissionDeniedError, match=r"config\.json has no credentials for it") as caught:
        challenged(make(None), BEARER)
    assert caught.value.hint == "log in first: docker login r.invalid"
