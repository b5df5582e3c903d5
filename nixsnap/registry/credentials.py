"""Whom a registry knows us as: what `docker login` left in `config.json`, or in the keychain that it names."""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from nixsnap.image import document
from nixsnap.nix.storepath import shorten
from nixsnap.registry.endpoint import HUB, Endpoint

_HUB_KEY: Final = (
    f"https://index.{HUB}/v1/"  # under which Docker has kept Docker Hub's since its first registry
)
_HELPER: Final = "docker-credential-"
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_HELPER_SECONDS: Final = 120.0  # it may ask someone for a passphrase
_IDENTITY_TOKEN_USER: Final = "<token>"  # noqa: S105 - the name that says that the secret is a token
_NOT_FOUND: Final = (
    "credentials not found in native keychain"  # part of the protocol, docker-credential-helpers
)


@attrs.frozen(kw_only=True)
class Credentials:
    """What to show to a registry; secrets are kept out of its text.

    Args:
        username: Empty with a token.
        password: Empty with a token.
        identity_token: For the token server, in place of name and password.
        registry_token: For the registry itself.
        source: Where it was found, for messages.
    """

    username: str = ""
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)
    registry_token: str = attrs.field(default="", repr=False)
    source: str

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def __str__(self) -> str:
        who = f"the user {shorten(self.username)}" if self.username else "a token"
        return f"{who} from {self.source}"


class DockerConfig:
    """A `config.json` of Docker's; one that does not exist knows nobody.

    Args:
        path: The file.

    Raises:
        InvalidArgumentError: It is damaged; the message names file and field, never a secret.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            value = document.parse_file(str(path), str(path))
        except NotFoundError:
            value = {}
        fields = document.mapping(value, str(path))
        where = str(path)
        self._auths: dict[str, dict[str, Any]] = document.field(
            fields, "auths", where, document.mapping_of(_entry), default={}
        )
        self._helpers: dict[str, str] = document.field(
            fields, "credHelpers", where, document.text_map, default={}
        )
        self._store = document.field(fields, "credsStore", where, document.text, default="")

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ) -> DockerConfig:
        """Read the user's own: in `$DOCKER_CONFIG`, else in `~/.docker`."""
        directory = environment.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")  # noqa: PTH111 - may stay as it is
        return cls(Path(directory) / "config.json")

    def __str__(self) -> str:
        return str(self._path)

    def find(self, endpoint: Endpoint) -> Credentials | None:
        """Look up what the host of an endpoint wants to be shown.

        Raises:
            InvalidArgumentError: The file's entry is damaged.
            FailedPreconditionError: The credential helper is missing or fails.
        """
        keys = _keys(endpoint)
        helper, field = self._helper(keys)
        if helper:
            found = _ask_helper(helper, keys[0], f"{field} in {self._path}")
            if found is not None:
                return found
        for key in keys:
            if entry := self._auth(key):
                return self._read(key, entry)
        return None

    def _helper(self, keys: tuple[str, ...]) -> tuple[str, str]:
        for key in keys:
            if key in self._helpers:
                return self._helpers[key], "credHelpers"
        return self._store, "credsStore"

    def _auth(self, key: str) -> dict[str, Any] | None:
        """Find the entry of that very key, else one whose URL has it as its host, as Docker does."""
        if key in self._auths:
            return self._auths[key]
        return next((entry for name, entry in self._auths.items() if _host_of(name) == key), None)

    def _read(self, key: str, entry: dict[str, Any]) -> Credentials | None:
        where = f"{self._path}.auths[{key!r}]"
        fields = {name: document.field(entry, name, where, _secret, default="") for name in _FIELDS}
        username, password = fields["username"], fields["password"]
        if fields["auth"]:
            username, password = _decode(fields["auth"], where)
        found = Credentials(
            username=username,
            password=password,
            identity_token=fields["identitytoken"],
            registry_token=fields["registrytoken"],
            source=str(self._path),
        )
        return found or None


_FIELDS: Final = ("auth", "username", "password", "identitytoken", "registrytoken")


def _secret(value: Any, where: str) -> str:
    """Take a string; what is none is not shown."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{where} is not a string")
    return value


def _entry(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{where} is not an object")
    return value


def _keys(endpoint: Endpoint) -> tuple[str, ...]:
    """Name an endpoint as Docker's configuration may: under the first of them it asks helpers."""
    if endpoint.is_proxy or endpoint.registry != HUB:
        return (endpoint.host,)
    return (_HUB_KEY, f"index.{HUB}", HUB, endpoint.host)


def _host_of(key: str) -> str:
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _decode(auth: str, where: str) -> tuple[str, str]:
    """Take apart what HTTP's basic authentication would send."""
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise InvalidArgumentError(f"{where}.auth is not the base64 of user:password") from None
    return user, password.strip("\0")


def _ask_helper(name: str, server: str, source: str) -> Credentials | None:
    """Ask a credential helper by Docker's protocol: the server on its input, JSON on its output."""
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidArgumentError(f"{source} is {shorten(name)}, not a credential helper")
    program = f"{_HELPER}{name}"
    try:
        result = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            check=False,
            timeout=_HELPER_SECONDS,
        )
    except FileNotFoundError as exc:
        raise FailedPreconditionError(
            f"{program} is not on PATH", hint=f"{source} says that it has the credentials for {server}"
        ) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else f"no answer within {_HELPER_SECONDS:g} s"
        raise FailedPreconditionError(f"{program} ({source}) failed: {reason}") from exc
    if result.returncode:
        _check_has_none(program, source, result)
        return None
    return _read_helper(result.stdout, program, source)


def _check_has_none(program: str, source: str, result: subprocess.CompletedProcess[bytes]) -> None:
    """Tell "I have none" from a failure."""
    said = (result.stdout.strip() or result.stderr.strip()).decode(errors="replace")
    if _NOT_FOUND not in said:
        raise FailedPreconditionError(f"{program} ({source}) failed: {shorten(said)}")


def _read_helper(output: bytes, program: str, source: str) -> Credentials | None:
    what = f"the answer of {program}"
    fields = _entry(document.parse(output, what), what)
    username = document.field(fields, "Username", what, _secret, default="")
    secret = document.field(fields, "Secret", what, _secret, default="")
    whence = f"{program} ({source})"
    if username == _IDENTITY_TOKEN_USER:
        return Credentials(identity_token=secret, source=whence) or None
    return Credentials(username=username, password=secret, source=whence) or None
