"""The errors that nixsnap raises, sorted by what the caller should do next.

Each class knows the name of the gRPC status that a client sees (containerd's own choice of codes, its `errdefs`
package) and the exit code of a command that ends with it. `services.errors` turns them into statuses and `cli` into
exit codes; nothing else inspects them. The name, because importing gRPC takes a command longer than most of its work.

A failed system call is not one of these: it stays an `OSError` (`mounts.errors.StepError`) with errno, step and path,
and is mapped by errno in `services.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class NixsnapError(Exception):
    """Something that nixsnap can name went wrong.

    Args:
        message: One line that names the thing.
        hint: The way out, where there is one; shown apart from the message.
    """

    status: ClassVar[str] = "UNKNOWN"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class NotFoundError(NixsnapError):
    """The named thing does not exist: ask for another one."""

    status = "NOT_FOUND"
    exit_code = 3


class AlreadyExistsError(NixsnapError):
    """The name is taken: use it as it is, or choose another."""

    status = "ALREADY_EXISTS"
    exit_code = 4


class InvalidArgumentError(NixsnapError):
    """The request can never succeed as it stands: mend it."""

    status = "INVALID_ARGUMENT"
    exit_code = 2


class FailedPreconditionError(NixsnapError):
    """The request would do once something else has changed."""

    status = "FAILED_PRECONDITION"
    exit_code = 5


class UnavailableError(NixsnapError):
    """A thing that nixsnap depends on does not answer: try again later."""

    status = "UNAVAILABLE"
    exit_code = 6


class PermissionDeniedError(NixsnapError):
    """The caller, or nixsnap itself, may not do this."""

    status = "PERMISSION_DENIED"
    exit_code = 7


class ResourceExhaustedError(NixsnapError):
    """A disk or a quota is full: make room, then try again."""

    status = "RESOURCE_EXHAUSTED"
    exit_code = 8


class DataLossError(NixsnapError):
    """Stored data is damaged: restore it or remove it."""

    status = "DATA_LOSS"
    exit_code = 9


class UnimplementedError(NixsnapError):
    """This build or this machine cannot do it at all."""

    status = "UNIMPLEMENTED"
    exit_code = 10


class CancelledError(NixsnapError):
    """The caller went away before the work was done: nobody reads this."""

    status = "CANCELLED"
    exit_code = 11
