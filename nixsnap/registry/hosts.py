"""containerd's registry configuration: a directory for each registry, with `hosts.toml` or bare certificates.

What the file means is told in containerd's `docs/hosts.md` and in `core/remotes/docker/config/hosts.go`, which ours
follows but for one thing: a file with a mistake in it is an error, where containerd goes on without it.
"""

from __future__ import annotations

import os
import posixpath
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import attrs

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError
from nixsnap.nix.storepath import shorten
from nixsnap.registry.endpoint import (
    API_ROOT,
    CONNECT_TIMEOUT_SECONDS,
    ClientCertificate,
    Endpoint,
    Verify,
    default_endpoint,
    port_of,
)

FILE: Final = "hosts.toml"

_FALLBACK: Final = "_default"
_CAPABILITIES: Final = frozenset({"pull", "resolve", "push", "referrers"})
_PAIR: Final = 2
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def default_hosts_dirs() -> tuple[Path, ...]:
    """Where to look if nobody says: containerd's directory and Docker's, a plain user's own ones first."""
    system = (Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d"))
    if os.geteuid() == 0:
        return system
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    return (home / "containerd/certs.d", home / "docker/certs.d", *system)


def push_endpoint(registry: str, *, hosts_dirs: Sequence[Path], plain_http: bool) -> Endpoint:
    """Choose where to push: the first host that is configured for it, as containerd does.

    Further hosts are no second choice, since an image would then land where nobody asked for it.

    Args:
        registry: As the reference has it.
        hosts_dirs: Searched in this order.
        plain_http: The registry has no TLS. Hosts that the configuration names by URL keep that URL's scheme.

    Raises:
        InvalidArgumentError: A configuration file has a mistake.
        FailedPreconditionError: The configuration allows to push to none of its hosts.
    """
    endpoints = find_endpoints(registry, hosts_dirs=hosts_dirs, plain_http=plain_http)
    for endpoint in endpoints:
        if endpoint.can_push:
            return endpoint
    raise FailedPreconditionError(
        f"{endpoints[0].source} allows to push to none of {registry}'s hosts",
        hint='one of them needs "push" among its capabilities',
    )


def find_endpoints(registry: str, *, hosts_dirs: Sequence[Path], plain_http: bool) -> tuple[Endpoint, ...]:
    """List the hosts that serve a registry, in the order to try them; at least one."""
    default = default_endpoint(registry, plain_http=plain_http)
    directory = _find_directory(registry, hosts_dirs)
    if directory is None:
        return (default,)
    file = directory / FILE
    text = _read(file)
    if not text.strip():
        return (_with_certificate_files(default, directory),)
    return _Reader(file, default).read(text)


def _find_directory(registry: str, hosts_dirs: Sequence[Path]) -> Path | None:
    """Find a registry's own directory, else one for all registries that have none."""
    names = [registry]
    if port_of(registry) is not None:
        # The form for file systems that take no colon; containerd looks for it first.
        host, _, port = registry.rpartition(":")
        names.insert(0, f"{host}_{port}_")
    for name in (*names, _FALLBACK):
        for hosts_dir in hosts_dirs:
            if (hosts_dir / name).is_dir():
                return hosts_dir / name
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as exc:
        raise InvalidArgumentError(f"{file} is not UTF-8: {exc.reason}") from exc


def _with_certificate_files(default: Endpoint, directory: Path) -> Endpoint:
    """Take certificates by their names, as Docker does: `*.crt` are CAs, `*.cert` and `*.key` show who we are."""
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    pairs = [(name, f"{name.removesuffix('.cert')}.key") for name in names if name.endswith(".cert")]
    certificates = tuple(
        ClientCertificate(
            certificate=str(directory / name), key=str(directory / key) if key in names else None
        )
        for name, key in pairs
    )
    ca_files = tuple(str(directory / name) for name in names if name.endswith(".crt"))
    if not (ca_files or certificates):
        return default
    # Whoever gives a certificate authority means it to be asked.
    verify = Verify.EVERYONE if ca_files else default.verify
    return attrs.evolve(
        default, ca_files=ca_files, client_certificates=certificates, verify=verify, source=str(directory)
    )


class _Reader:
    """Reads one `hosts.toml`."""

    def __init__(self, file: Path, default: Endpoint) -> None:
        self._file = file
        self._default = default

    def read(self, text: str) -> tuple[Endpoint, ...]:
        """List the endpoints: the hosts in the file's order, and the server last."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise InvalidArgumentError(f"{self._file} is not TOML: {exc}") from exc
        hosts = self._take(document, "host", "", self._tables, default={})
        server = self._take(document, "server", "", self._text, default="")
        return (
            *(self._endpoint(url, table, f'host."{url}".') for url, table in hosts.items()),
            self._endpoint(server, document, ""),
        )

    def _endpoint(self, url: str, table: dict[str, Any], where: str) -> Endpoint:
        """Read one host's table; without a URL it is about the registry itself."""
        override_path = self._take(table, "override_path", where, self._boolean, default=False)
        capabilities = self._take(table, "capabilities", where, self._capabilities, default=_CAPABILITIES)
        skip_verify = self._take(table, "skip_verify", where, self._boolean, default=None)
        ca_files = self._take(table, "ca", where, self._paths, default=())
        certificates = self._take(table, "client", where, self._certificates, default=())
        place = self._place(url, where, override_path=override_path) if url else self._default
        has_tls_settings = bool(ca_files or certificates or skip_verify is not None)
        return attrs.evolve(
            place,
            can_push="push" in capabilities,
            ca_files=ca_files,
            client_certificates=certificates,
            verify=_verify(place.verify, skip_verify=skip_verify, has_ca=bool(ca_files)),
            headers=self._take(table, "header", where, self._headers, default=()),
            connect_timeout_seconds=self._take(
                table, "dial_timeout", where, self._duration, default=CONNECT_TIMEOUT_SECONDS
            ),
            # A host written with http:// and then given certificates: containerd tries both.
            tries_tls_first=place.tries_tls_first
            or (place.scheme == "http" and has_tls_settings and port_of(place.host) != 80),  # noqa: PLR2004 - HTTP's
            source=str(self._file),
        )

    def _place(self, url: str, where: str, *, override_path: bool) -> Endpoint:
        """Read the URL of a host; one without a scheme has TLS."""
        parts = urlsplit(url if "://" in url else f"https://{url}")
        try:
            is_good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good or "@" in parts.netloc or parts.query or parts.fragment:
            self._refuse(where or "server", url, "the URL of a host")
        path = posixpath.normpath(parts.path) if parts.path else ""
        path = "" if path in {"/", "."} else path
        if not override_path and not path.endswith(API_ROOT):
            path += API_ROOT
        return Endpoint(
            registry=self._default.registry, scheme=parts.scheme, host=parts.netloc.lower(), path=path
        )

    def _take(
        self,
        table: dict[str, Any],
        key: str,
        where: str,
        read: Callable[[Any, str], Any],
        *,
        default: Any,
    ) -> Any:
        return read(table[key], where + key) if key in table else default

    def _text(self, value: Any, where: str) -> str:
        return value if isinstance(value, str) else self._refuse(where, value, "a string")

    def _boolean(self, value: Any, where: str) -> bool:
        return value if isinstance(value, bool) else self._refuse(where, value, "true or false")

    def _texts(self, value: Any, where: str) -> list[str]:
        """Take a string, or an array of them."""
        return [self._text(item, where) for item in (value if isinstance(value, list) else [value])]

    def _tables(self, value: Any, where: str) -> dict[str, dict[str, Any]]:
        if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
            self._refuse(where, value, "a table of hosts")
        return value

    def _capabilities(self, value: Any, where: str) -> frozenset[str]:
        names = frozenset(name.lower() for name in self._texts(value, where))
        for name in names - _CAPABILITIES:
            self._refuse(where, name, f"one of {', '.join(sorted(_CAPABILITIES))}")
        return names or _CAPABILITIES

    def _path(self, value: Any, where: str) -> str:
        return str(self._file.parent / self._text(value, where))

    def _paths(self, value: Any, where: str) -> tuple[str, ...]:
        return tuple(self._path(item, where) for item in self._texts(value, where))

    def _certificates(self, value: Any, where: str) -> tuple[ClientCertificate, ...]:
        """Take a file, files, or pairs of certificate and key of which the key may be empty."""
        return tuple(
            self._certificate(item, where) for item in (value if isinstance(value, list) else [value])
        )

    def _certificate(self, value: Any, where: str) -> ClientCertificate:
        if not isinstance(value, list):
            return ClientCertificate(certificate=self._path(value, where))
        if len(value) != _PAIR:
            self._refuse(where, value, "a pair of certificate and key")
        certificate, key = value
        return ClientCertificate(
            certificate=self._path(certificate, where), key=self._path(key, where) if key else None
        )

    def _headers(self, value: Any, where: str) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            self._refuse(where, value, "a table of headers")
        return tuple((name, self._header(name, item, where)) for name, item in value.items())

    def _header(self, name: str, value: Any, where: str) -> str:
        """Take a header's value, or values, which HTTP lets us join; it may be a secret, so it is not shown."""
        text = ", ".join(self._texts(value, f"{where}.{name}"))
        if not _HEADER_NAME.fullmatch(name) or not text.isprintable() or not text.isascii():
            raise InvalidArgumentError(f"{self._file}: {where}: {shorten(name)} is no good HTTP header")
        return text

    def _duration(self, value: Any, where: str) -> float:
        """Take a duration as Go writes it: `1m30s`."""
        text = self._text(value, where)
        parts = _DURATION.findall(text)
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
        if "".join(number + unit for number, unit in parts) != text or not seconds:
            self._refuse(where, text, "a duration such as 30s")
        return seconds

    def _refuse(self, where: str, value: Any, wanted: str) -> NoReturn:
        shown = shorten(value if isinstance(value, str) else str(value))
        raise InvalidArgumentError(f"{self._file}: {where.rstrip('.')} is {shown}, not {wanted}")


def _verify(before: Verify, *, skip_verify: bool | None, has_ca: bool) -> Verify:
    if skip_verify:
        return Verify.NOBODY
    return Verify.EVERYONE if has_ca or skip_verify is False else before
