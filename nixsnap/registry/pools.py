"""Pools of connections: with or without TLS, direct or by way of the environment's proxies."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import InsecureRequestWarning

from nixsnap.registry.endpoint import Endpoint, is_loopback
from nixsnap.registry.tls import make_context

_BLOCK_BYTES: Final = 1 << 16
_BLOCK_SECONDS: Final = 60.0  # a kilobyte a second will do
_HOSTS: Final = 4  # the registry, its token server, and blob stores


class _PatientMixin(http.client.HTTPConnection):
    """Gives each write a time of its own; urllib3 would give it the one for connecting, which may be set very short."""

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(_BLOCK_SECONDS)
        super().send(data)


class _HttpConnection(_PatientMixin, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_PatientMixin, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def make_pool(
    endpoint: Endpoint, *, verified: bool | None, proxy: str, connections: int
) -> urllib3.PoolManager:
    """Make a pool that several threads may use.

    Args:
        endpoint: Whose TLS settings hold for all connections.
        verified: Whether certificates must be good; None for connections without TLS.
        proxy: From `proxy_for`.
        connections: How many are kept open to each host.

    Raises:
        FailedPreconditionError: A certificate file cannot be used.
    """
    settings: dict[str, Any] = {
        "num_pools": _HOSTS,
        "maxsize": connections,
        "blocksize": _BLOCK_BYTES,
    }
    if verified is not None:
        settings["ssl_context"] = make_context(endpoint, verified=verified)
    if verified is False:
        urllib3.disable_warnings(
            InsecureRequestWarning
        )  # the configuration says so; it need not be said again
    pool = (
        urllib3.ProxyManager(proxy, proxy_headers=_proxy_headers(proxy), **settings)
        if proxy
        else urllib3.PoolManager(**settings)
    )
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


def close_pool(pool: urllib3.PoolManager) -> None:
    """Close idle connections.

    The pool's own clear() only forgets them, and they stay open as long as some traceback knows them.
    """
    for key in pool.pools.keys():  # noqa: SIM118 - it is no mapping to iterate over
        if (connections := pool.pools.get(key)) is not None:
            connections.close()


def proxy_for(scheme: str, host: str) -> str:
    """Return the URL of the proxy that the environment names for a host; empty if there is none, or for ourselves."""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return ""
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all") or ""


def _proxy_headers(proxy: str) -> Mapping[str, str] | None:
    user, at, _ = urlsplit(proxy).netloc.rpartition("@")
    return urllib3.make_headers(proxy_basic_auth=unquote(user)) if at else None
