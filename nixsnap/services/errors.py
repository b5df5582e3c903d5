"""Which gRPC status a client sees for which error: one table, which no method can forget."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

import grpc

from nixsnap.errors import NixsnapError

log = logging.getLogger(__name__)

Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Response = TypeVar("Response")

# ENOENT is not among them: a file of ours that is missing is not the client's snapshot missing, which containerd
# would take as leave to forget it.
_ERRNO_STATUS: Final = {
    errno.ENOSPC: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EDQUOT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ENOMEM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EMFILE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ENFILE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EACCES: grpc.StatusCode.PERMISSION_DENIED,
    errno.EPERM: grpc.StatusCode.PERMISSION_DENIED,
    errno.EROFS: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EBUSY: grpc.StatusCode.UNAVAILABLE,
}

# The status travels in a trailer, percent-encoded (a character may take twelve bytes); Go and C++ clients give up on a
# call whose trailers exceed 8 KiB or so (grpc-go's and gRPC core's default maximum metadata size).
_DETAILS_LENGTH: Final = 2000


def status_of(error: BaseException) -> grpc.StatusCode:
    """The status for an error; UNKNOWN for one that nobody foresaw."""
    if isinstance(error, NixsnapError):
        return grpc.StatusCode[error.status]
    if isinstance(error, OSError):
        return _ERRNO_STATUS.get(error.errno or 0, grpc.StatusCode.UNKNOWN)
    return grpc.StatusCode.UNKNOWN


def translated(
    method: Callable[[Servicer, Request, grpc.ServicerContext], Response],
) -> Callable[[Servicer, Request, grpc.ServicerContext], Response]:
    """Make a unary servicer method end with the status of what it raises."""

    @functools.wraps(method)
    def call(self: Servicer, request: Request, context: grpc.ServicerContext) -> Response:
        try:
            return method(self, request, context)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the client must hear of it
            refuse(exc, context, call=method.__name__)

    return call


def refuse(error: Exception, context: grpc.ServicerContext, *, call: str) -> NoReturn:
    """End a call with the status of `error`. Errors of which we know nothing are logged with their traceback."""
    status = status_of(error)
    unforeseen = not isinstance(error, NixsnapError | OSError)
    log.log(
        logging.ERROR if unforeseen or status is grpc.StatusCode.UNKNOWN else logging.INFO,
        "refused call=%s status=%s error=%r",
        call,
        status.name,
        str(error),
        exc_info=error if unforeseen else None,
    )
    context.abort(status, _shorten(str(error) or type(error).__name__))


def _shorten(details: str) -> str:
    """Cut out the middle: it begins with what failed and ends with the last that was said about it."""
    if len(details) <= _DETAILS_LENGTH:
        return details
    return f"{details[: _DETAILS_LENGTH // 4]} … {details[-_DETAILS_LENGTH * 3 // 4 :]}"
