"""One HTTP exchange: over which connection it goes, and what its failures mean.

Nothing is tried twice here and no status is judged; that is for `session`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import attrs
import urllib3
from urllib3.exceptions import HTTPError

from nixsnap import __version__
from nixsnap.registry.endpoint import Endpoint, Verify, is_loopback
from nixsnap.registry.networkfailures import explain
from nixsnap.registry.pools import close_pool, make_pool, proxy_for

USER_AGENT: Final = f"nixsnap/{__version__}"
ANSWER_BYTES_MAX: Final = 1 << 20
"""Most that is read of an answer's body: tokens and error messages, never blobs."""
READ_TIMEOUT_SECONDS: Final = 60.0


_log = logging.getLogger(__name__)


class Readable(Protocol):
    """What a request's body is read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""

    def close(self) -> None:
        """Give up what it is read from."""


@attrs.frozen(kw_only=True)
class Payload:
    """A request's body.

    Args:
        size_bytes: Its length.
        open: Gives it from its beginning, each time.
    """

    size_bytes: int
    open: Callable[[], Readable]

    @classmethod
    def of(cls, raw: bytes) -> Payload:
        """Make one of bytes."""
        return cls(size_bytes=len(raw), open=lambda: io.BytesIO(raw))


@attrs.frozen(kw_only=True)
class Request:
    """What is asked for.

    Args:
        method: In capitals.
        url: With its query.
        headers: Besides those about the body and ourselves.
        payload: The body.
        scopes: The rights it needs besides those to pull from and push to the repository; not for `Transport`.
        read_timeout_seconds: How long the answer may take once all is sent.
    """

    method: str
    url: str
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    payload: Payload | None = None
    scopes: tuple[str, ...] = ()
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS


@attrs.frozen(kw_only=True)
class Answer:
    """What came back.

    Attributes:
        method: Of the request.
        url: Of the request.
        status: HTTP's.
        headers: By name, in any case; `getlist` gives repeated ones.
        body: At most `ANSWER_BYTES_MAX` of it.
    """

    method: str
    url: str
    status: int
    headers: urllib3.HTTPHeaderDict
    body: bytes


class Transport:
    """Connections to an endpoint, and to wherever it sends us. Several threads may use it.

    Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY` and so on), never for the loopback interface.

    Args:
        endpoint: Whose TLS settings hold for all connections.
        connections: How many are kept open to each host.
    """

    def __init__(self, endpoint: Endpoint, *, connections: int = 1) -> None:
        self._endpoint = endpoint
        self._connections = connections
        self._pools: dict[tuple[bool | None, str], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close what is idle."""
        for pool in self._pools.values():
            close_pool(pool)

    def send(self, request: Request) -> Answer:
        """Send a request and read the answer, whatever its status.

        Raises:
            NotFoundError: There is no host of that name.
            UnreachableError: Nobody answers there.
            BrokenConnectionError: The connection did not last.
            NoTlsError: The other side does not speak TLS.
            FailedPreconditionError: Its certificate is not trusted, or it does not trust ours.
        """
        began = time.monotonic()
        what = f"{request.method} {_without_query(request.url)}"
        try:
            answer = self._exchange(request)
        except HTTPError as exc:
            failure = explain(exc, urlsplit(request.url).netloc, self._endpoint)
            _log.debug("%s: %s", what, failure.message)
            raise failure from exc
        _log.debug("%s: %d after %.3f s", what, answer.status, time.monotonic() - began)
        return answer

    def _exchange(self, request: Request) -> Answer:
        if request.payload is None:
            return self._send(request, request.headers, None)
        headers = {**request.headers, "Content-Length": str(request.payload.size_bytes)}
        with contextlib.closing(request.payload.open()) as body:
            return self._send(request, headers, body if request.payload.size_bytes else None)

    def _send(self, request: Request, headers: Mapping[str, str], body: Readable | None) -> Answer:
        response: Any = self._pool(request.url).urlopen(
            request.method,
            request.url,
            headers={"User-Agent": USER_AGENT, **headers},
            body=body,
            timeout=urllib3.Timeout(
                connect=self._endpoint.connect_timeout_seconds, read=request.read_timeout_seconds
            ),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            content = response.read(ANSWER_BYTES_MAX, decode_content=True)
        except BaseException:
            response.close()
            raise
        # What is longer is of no interest; neither is the connection with the rest of it.
        if len(content) < ANSWER_BYTES_MAX:
            response.release_conn()
        else:
            response.close()
        return Answer(
            method=request.method,
            url=request.url,
            status=response.status,
            headers=response.headers,
            body=content,
        )

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        tls = self._verified(host) if parts.scheme == "https" else None
        key = (tls, proxy_for(parts.scheme, host))
        with self._lock:
            if key not in self._pools:
                self._pools[key] = make_pool(
                    self._endpoint, verified=tls, proxy=key[1], connections=self._connections
                )
            return self._pools[key]

    def _verified(self, host: str) -> bool:
        """Whether a host's certificate must be good."""
        if self._endpoint.verify is Verify.ALL_BUT_LOOPBACK:
            return not is_loopback(host)
        return self._endpoint.verify is Verify.EVERYONE


def _without_query(url: str) -> str:
    """What may be logged: a query can hold a signature that opens a blob store."""
    return url.partition("?")[0]
