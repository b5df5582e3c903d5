"""Answers a registry's challenges, with a password or with tokens that a token server gives for it.

The protocols are those of distribution's `docs/spec/auth`: `token.md` (GET) and `oauth.md` (POST).
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import attrs

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from nixsnap.image import document
from nixsnap.nix.storepath import shorten
from nixsnap.registry.challenge import Challenge, parse_challenges
from nixsnap.registry.credentials import Credentials
from nixsnap.registry.endpoint import is_loopback
from nixsnap.registry.failures import refusal
from nixsnap.registry.transport import Answer, Payload, Request

_CLIENT_ID: Final = "nixsnap"
_DEFAULT_SECONDS: Final = 60  # what a token is good for if its server does not say, by the protocol
_SECONDS_MAX: Final = 86400  # what we make of any longer time
_MARGIN: Final = 0.8  # of that time, after which a new one is asked for
_STRENGTH: Final = ("bearer", "basic")  # what we can do, best first
# What token servers that know only one of the two ways answer to the other.
_OTHER_WAY: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


@attrs.frozen
class _Token:
    value: str
    renew_at_seconds: float


class Authorizer:
    """What to show to one registry. Several threads may use it.

    Args:
        registry: Its name, for messages.
        look_up: Finds out who we are there; not called unless the registry asks.
        searched: Where that looks, for messages.
        send: Speaks with token servers, and tries again what is worth it.
        now: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        registry: str,
        *,
        look_up: Callable[[], Credentials | None],
        searched: str,
        send: Callable[[Request], Answer],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._look_up = look_up
        self._searched = searched
        self._send = send
        self._now = now
        self._credentials: Credentials | None = None
        self._challenge: Challenge | None = None
        self._tokens: dict[frozenset[str], _Token] = {}
        self._wanted: dict[frozenset[str], frozenset[str]] = {}
        self._lock = threading.Lock()

    def header(self, scopes: Collection[str]) -> dict[str, str]:
        """Make the `Authorization` header for a request; none before the first challenge.

        Args:
            scopes: What the request needs rights for, as tokens name it: `repository:team/app:pull,push`.

        Raises:
            PermissionDeniedError: The token server refuses us, or we have no password where one is wanted.
            NixsnapError: The token server cannot be asked.
        """
        with self._lock:  # so that several threads do not ask for the same token
            if self._challenge is None:
                return {}
            if self._challenge.scheme == "basic":
                return _basic(self._user(self._challenge))
            return {"Authorization": f"Bearer {self._token(frozenset(scopes))}"}

    def answer(self, refused: Answer, scopes: Collection[str], *, shown: Mapping[str, str]) -> bool:
        """Take note of a 401.

        Args:
            refused: The answer with the challenge.
            scopes: Of the request.
            shown: What `header` gave for it.

        Returns:
            Whether `header` may give something better now.

        Raises:
            PermissionDeniedError: The password is wrong.
            FailedPreconditionError: The registry wants what we cannot do.
            NixsnapError: As for `DockerConfig.find`.
        """
        challenge = self._choose(refused)
        with self._lock:
            if self._challenge is None:
                self._credentials = self._look_up()
            self._challenge = challenge
            if challenge.scheme == "basic" and shown:
                raise self.denial(refused, "log in")
            if challenge.scheme == "basic" or (self._credentials and self._credentials.registry_token):
                return not shown
            key = frozenset(scopes)
            self._forget(key, shown)
            self._learn(key, challenge)
            return True

    def denial(self, refused: Answer, doing: str) -> PermissionDeniedError:
        """Say that a registry refuses us although it was shown what we have."""
        error = refusal(refused, registry=self._registry, doing=doing)
        if self._credentials is None:
            return PermissionDeniedError(error.message, hint=self._how_to_log_in())
        hint = error.hint
        is_basic = self._challenge is not None and self._challenge.scheme == "basic"
        if is_basic and refused.status == HTTPStatus.UNAUTHORIZED:
            hint = self._how_to_log_in()  # it is not the right to push here that is missing
        return PermissionDeniedError(f"{error.message}; shown was {self._credentials}", hint=hint)

    def _choose(self, refused: Answer) -> Challenge:
        challenges = parse_challenges(refused.headers.getlist("WWW-Authenticate"))
        for scheme in _STRENGTH:
            for challenge in challenges:
                if challenge.scheme == scheme:
                    return challenge
        asked = ", ".join(shorten(challenge.scheme) for challenge in challenges) or "nothing"
        raise FailedPreconditionError(
            f"{self._registry} wants an authentication that nixsnap does not have: {asked}"
        )

    def _user(self, challenge: Challenge) -> Credentials:
        if self._credentials is None or not self._credentials.username:
            realm = challenge.parameters.get("realm", "")
            raise PermissionDeniedError(
                f"{self._registry} wants a user and a password (401, realm {shorten(realm)}), "
                f"and {self._searched} has none for it",
                hint=self._how_to_log_in(),
            )
        return self._credentials

    def _how_to_log_in(self) -> str:
        return f"log in first: docker login {self._registry}"

    def _forget(self, key: frozenset[str], shown: Mapping[str, str]) -> None:
        """Drop a token that was refused, unless another thread has got a new one since."""
        token = self._tokens.get(key)
        if token is not None and shown.get("Authorization") == f"Bearer {token.value}":
            del self._tokens[key]

    def _learn(self, key: frozenset[str], challenge: Challenge) -> None:
        """Add what the registry itself says that a request needs; behind a path prefix it has other names for it."""
        asked = challenge.parameters.get("scope", "").split()
        known = self._wanted.get(key, key)
        self._wanted[key] = known | {scope for scope in asked if not _is_within(scope, known)}

    def _token(self, key: frozenset[str]) -> str:
        if self._credentials is not None and self._credentials.registry_token:
            return self._credentials.registry_token
        token = self._tokens.get(key)
        if token is None or self._now() >= token.renew_at_seconds:
            token = self._tokens[key] = self._fetch(sorted(self._wanted.get(key, key)))
        return token.value

    def _fetch(self, scopes: list[str]) -> _Token:
        assert self._challenge is not None  # noqa: S101 - tokens are fetched after a challenge only
        realm = self._challenge.parameters.get("realm", "")
        service = self._challenge.parameters.get("service", "")
        self._check_realm(realm)
        if self._credentials is not None and self._credentials.identity_token:
            answer = self._post(realm, service, scopes, self._credentials)
        else:
            answer = self._get(realm, service, scopes)
            if answer.status in _OTHER_WAY and self._credentials is not None:
                answer = self._post(realm, service, scopes, self._credentials)
        if answer.status != HTTPStatus.OK:
            raise self._refused_token(realm, scopes, answer)
        return self._read(answer, realm)

    def _check_realm(self, realm: str) -> None:
        """Refuse to send a secret in the clear to where anyone could have pointed us."""
        try:
            parts = urlsplit(realm)
            is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url:
            raise FailedPreconditionError(f"{self._registry} names no token server: realm {shorten(realm)}")
        if parts.scheme == "http" and self._credentials is not None and not is_loopback(parts.netloc):
            raise FailedPreconditionError(
                f"{self._registry} sends us to the token server {shorten(realm)}, which has no TLS: "
                f"{self._credentials} is not sent there"
            )

    def _get(self, realm: str, service: str, scopes: list[str]) -> Answer:
        query = urlencode([("service", service), *(("scope", scope) for scope in scopes)])
        url = f"{realm}{'&' if '?' in realm else '?'}{query}"
        headers = _basic(self._credentials) if self._credentials is not None else {}
        return self._send(Request(method="GET", url=url, headers=headers))

    def _post(self, realm: str, service: str, scopes: list[str], credentials: Credentials) -> Answer:
        if credentials.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
        else:
            grant = {
                "grant_type": "password",
                "username": credentials.username,
                "password": credentials.password,
            }
        form = {"service": service, "client_id": _CLIENT_ID, "scope": " ".join(scopes), **grant}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        payload = Payload.of(urlencode(form).encode())
        return self._send(Request(method="POST", url=realm, headers=headers, payload=payload))

    def _read(self, answer: Answer, realm: str) -> _Token:
        what = f"the answer of {urlsplit(realm).netloc}"
        fields = _fields(document.parse(answer.body, what), what)
        value = fields.get("token") or fields.get("access_token")
        # A line break in it could add headers of the token server's to our requests.
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise FailedPreconditionError(f"{what} has no token for {self._registry}")
        lifetime = fields.get("expires_in")
        seconds = lifetime if isinstance(lifetime, (int, float)) and lifetime > 0 else _DEFAULT_SECONDS
        return _Token(value, self._now() + min(seconds, _SECONDS_MAX) * _MARGIN)

    def _refused_token(self, realm: str, scopes: list[str], answer: Answer) -> Exception:
        server = urlsplit(realm).netloc
        doing = f"get a token for {self._registry} ({', '.join(scopes)})"
        error = refusal(answer, registry=server, doing=doing)
        if not isinstance(error, PermissionDeniedError):
            return error
        if self._credentials is None:
            return PermissionDeniedError(
                f"{error.message}; {self._searched} has no credentials for it", hint=self._how_to_log_in()
            )
        return PermissionDeniedError(
            f"{error.message}; shown was {self._credentials}", hint=self._how_to_log_in()
        )


def _fields(value: Any, what: str) -> dict[str, Any]:
    """Take an object; it may hold a token, so that what is none is not shown."""
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{what} is not an object")
    return value


def _basic(credentials: Credentials) -> dict[str, str]:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _is_within(scope: str, scopes: Collection[str]) -> bool:
    """Whether one of `scopes` covers another: the same thing, and all the actions."""
    thing, _, actions = scope.rpartition(":")
    for other in scopes:
        known, _, more = other.rpartition(":")
        if thing == known and set(actions.split(",")) <= set(more.split(",")):
            return True
    return False
