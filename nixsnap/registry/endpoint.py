"""Where a registry's API is, and how to speak with it."""

from __future__ import annotations

import enum
import ipaddress
from typing import Final
from urllib.parse import urlsplit

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.storepath import shorten

HUB: Final = "docker.io"
API_ROOT: Final = "/v2"
CONNECT_TIMEOUT_SECONDS: Final = 30.0

_HUB_API: Final = f"registry-1.{HUB}"  # the one registry that is not where its name says


class Verify(enum.Enum):
    """Whose TLS certificates must be good."""

    EVERYONE = "everyone"
    ALL_BUT_LOOPBACK = "all but loopback"
    NOBODY = "nobody"


@attrs.frozen(kw_only=True)
class ClientCertificate:
    """Files that show who we are: a certificate, and its key unless that is in the same file."""

    certificate: str
    key: str | None = None


@attrs.frozen(kw_only=True)
class Endpoint:
    """One host that serves a registry's API.

    Args:
        registry: The registry's name, as references have it: `localhost:5000`.
        scheme: `https` or `http`.
        host: Host name or address, with its port if it is not the scheme's own.
        path: Where the API begins; empty at the root.
        can_push: Whether the configuration allows to push there.
        ca_files: Certificates trusted besides the system's.
        client_certificates: Shown to who asks.
        verify: Whose certificates must be good.
        headers: Sent with every request to this host.
        connect_timeout_seconds: For one attempt to connect.
        tries_tls_first: `scheme` is `http`, but TLS is tried before.
        source: The file that says all this, for messages; empty for what is so by default.
    """

    registry: str
    scheme: str
    host: str
    path: str = API_ROOT
    can_push: bool = True
    ca_files: tuple[str, ...] = ()
    client_certificates: tuple[ClientCertificate, ...] = ()
    verify: Verify = Verify.EVERYONE
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    tries_tls_first: bool = False
    source: str = ""

    @property
    def is_proxy(self) -> bool:
        """Whether the host serves another name than its own, which it must then be told with each request."""
        return self.host != self.registry and not (self.registry == HUB and self.host == _HUB_API)

    def base_url(self, scheme: str) -> str:
        """Where the API begins, without a slash at the end."""
        return f"{scheme}://{self.host}{self.path}"


def default_endpoint(registry: str, *, plain_http: bool) -> Endpoint:
    """What is so where no configuration says otherwise, by containerd's rules.

    A registry on the loopback interface may have a certificate that nobody vouches for, or no TLS at all: TLS is tried
    first where the port leaves that open. Any other registry has TLS unless `plain_http` says that it has none.

    Raises:
        InvalidArgumentError: A reference may name such a registry, but there is no such address or port.
    """
    try:
        port = port_of(registry)
    except ValueError as exc:
        raise InvalidArgumentError(f"{shorten(registry)} is no registry: {exc}") from exc
    host = _HUB_API if registry == HUB else registry
    if plain_http:
        return Endpoint(registry=registry, scheme="http", host=host)
    if not is_loopback(registry):
        return Endpoint(registry=registry, scheme="https", host=host)
    return Endpoint(
        registry=registry,
        scheme="https" if port in {None, 443} else "http",
        host=host,
        verify=Verify.ALL_BUT_LOOPBACK,
        tries_tls_first=port not in {None, 443, 80},
    )


def port_of(host: str) -> int | None:
    """The port that a host is given with.

    Raises:
        ValueError: It is no port.
    """
    return urlsplit(f"//{host}").port


def is_loopback(host: str) -> bool:
    """Whether a host, with or without port, can only be this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
