"""A connection to containerd's socket: namespace and lease on every call, and containerd's errors as ours."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import TypeVar

import attrs
import grpc
import grpc.aio

from nixsnap import errors

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
QUICK_SECONDS = 60.0
"""Deadline of calls that only touch containerd's database; generous, because its disk may be busy."""

_MESSAGE_BYTES = (
    16 << 20
)  # containerd's own limit both ways (defaults.DefaultMaxRecvMsgSize); gRPC's is 4 MiB
_PROBE_SECONDS = 10.0

_PROXY_LOST = ("error while dialing", "connection closed", "error reading from server")

Request = TypeVar("Request")
Response = TypeVar("Response")

# containerd passes on the text of ENOSPC and EDQUOT, and makes the status UNKNOWN.
_FULL = ("no space left on device", "disk quota exceeded")

_BY_STATUS: dict[grpc.StatusCode, type[errors.NixsnapError]] = {
    grpc.StatusCode[kind.status]: kind for kind in errors.NixsnapError.__subclasses__()
}


@attrs.frozen(kw_only=True)
class Client:
    """A connection, with the namespace and the lease that its calls carry.

    Attributes:
        channel: The gRPC channel; owned by whoever opened it (`connect`).
        address: The socket's path, for messages.
        namespace: Every name, digest and key of a call is looked up in it.
        lease: While set, containerd adds whatever a call creates to this lease.
    """

    channel: grpc.aio.Channel
    address: str
    namespace: str
    lease: str | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers that containerd takes namespace and lease from."""
        headers = (("containerd-namespace", self.namespace),)
        return headers if self.lease is None else (*headers, ("containerd-lease", self.lease))

    def under(self, lease: str) -> Client:
        """Return a client on the same connection whose calls carry `lease`."""
        return attrs.evolve(self, lease=lease)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        doing: str,
        timeout: float | None = QUICK_SECONDS,  # noqa: ASYNC109 - a gRPC deadline, which containerd sees as well
    ) -> Response:
        """Make one call.

        Args:
            method: A method of a generated stub on `channel`.
            request: Its message.
            doing: What fails if this fails, as in "read image NAME"; begins the error's message.
            timeout: Seconds; None for calls that may unpack or fetch.

        Raises:
            NixsnapError: The subclass that matches the status containerd gave.
        """
        try:
            return await method(request, metadata=self.metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise translate(error, doing=doing) from error


@contextlib.asynccontextmanager
async def connect(address: str = DEFAULT_ADDRESS, *, namespace: str) -> AsyncIterator[Client]:
    """Open a connection to the containerd behind the socket at `address` (`unix://` may stand before it).

    Raises:
        UnavailableError: Nothing listens there.
        PermissionDeniedError: The socket is not ours to open.
    """
    probe(address)
    path = address.removeprefix("unix://")
    options = [
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        yield Client(channel=channel, address=path, namespace=namespace)


def probe(address: str) -> None:
    """Connect to the socket and hang up: gRPC would hide the errno, and try again where that is hopeless.

    Raises:
        UnavailableError: Nothing listens there.
        PermissionDeniedError: The socket is not ours to open.
    """
    path = address.removeprefix("unix://")
    hint = "is containerd running? --address names its socket"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probing:
            probing.settimeout(_PROBE_SECONDS)
            probing.connect(path)
    except PermissionError as error:
        raise errors.PermissionDeniedError(
            f"cannot connect to containerd at {path}: {error.strerror}", hint="its socket is root's"
        ) from error
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: a NUL byte; too long a path is an OSError without errno
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.UnavailableError(
            f"cannot connect to containerd at {path}: {reason}", hint=hint
        ) from error


def translate(error: grpc.aio.AioRpcError, *, doing: str) -> errors.NixsnapError:
    """Return the error of ours that says what containerd's status says, in containerd's words."""
    code, details = error.code(), error.details() or "no reason given"
    if lost := _lost(code, details):
        return errors.UnavailableError(f"cannot {doing}: {lost}")
    if any(reason in details for reason in _FULL):
        return errors.ResourceExhaustedError(f"cannot {doing}: {details}")
    kind = _BY_STATUS.get(code, errors.NixsnapError)
    return kind(f"cannot {doing}: {details}", hint=_hint(code, details))


def _lost(code: grpc.StatusCode, details: str) -> str | None:
    """Tell what became of the connection where gRPC itself, not containerd, made the status."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "containerd did not answer in time"
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect to all addresses"):
        return "containerd does not answer any more"
    if code is grpc.StatusCode.INTERNAL and details == "Internal error from Core":
        # What grpc.aio makes of a write to a stream whose connection is gone (set_internal_error in call.pyx.pxi).
        return "the connection to containerd broke"
    return None


def _hint(code: grpc.StatusCode, details: str) -> str | None:
    if code is grpc.StatusCode.INVALID_ARGUMENT and details.startswith("snapshotter not loaded"):
        return "containerd's configuration needs it as a [proxy_plugins] entry of type snapshot"
    if code is grpc.StatusCode.UNAVAILABLE and any(words in details.lower() for words in _PROXY_LOST):
        # grpc-go's words, so it is containerd that cannot reach a proxy snapshotter.
        return "is the snapshotter's daemon running?"
    return None
