"""What a registry's refusals mean, as errors that say who refused what and why."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, Final

from nixsnap.errors import (
    FailedPreconditionError,
    NixsnapError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from nixsnap.registry.transport import Answer

_SHOWN: Final = 200
# How registries word a full disk or a used-up quota; the number is ENOSPC in docker-registry's own JSON.
_FULL: Final = re.compile(
    rb'no space left on device|"err":\s*28\b|insufficient storage|quota[^"]{0,40}exceeded|exceeded[^"]{0,40}quota',
    re.IGNORECASE,
)
_MEANINGS: Final[dict[int, tuple[type[NixsnapError], str]]] = {
    HTTPStatus.UNAUTHORIZED: (PermissionDeniedError, "does this user have the right to push there?"),
    HTTPStatus.FORBIDDEN: (PermissionDeniedError, "does this user have the right to push there?"),
    HTTPStatus.NOT_FOUND: (
        NotFoundError,
        "some registries want a repository to be made before it is pushed to",
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        FailedPreconditionError,
        "{registry} may be read-only, or no registry at all",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        ResourceExhaustedError,
        "a proxy before {registry} limits the size of requests",
    ),
    HTTPStatus.TOO_MANY_REQUESTS: (UnavailableError, ""),
}


def codes(answer: Answer) -> tuple[str, ...]:
    """The error codes of the distribution protocol in an answer, such as `DIGEST_INVALID`."""
    found = (error.get("code") for error in _errors(answer))
    return tuple(code if isinstance(code, str) else "" for code in found)


def says_full(answer: Answer) -> bool:
    """Whether a failure is one of room: trying again would be of no use."""
    if answer.status == HTTPStatus.INSUFFICIENT_STORAGE:
        return True
    # There is a quota of requests too.
    is_failure = answer.status >= HTTPStatus.BAD_REQUEST and answer.status != HTTPStatus.TOO_MANY_REQUESTS
    return is_failure and _FULL.search(answer.body) is not None


def refusal(answer: Answer, *, registry: str, doing: str) -> NixsnapError:
    """Make the error for an answer that is none of those that were hoped for.

    Args:
        answer: The answer.
        registry: Its name.
        doing: What was tried, as it follows "cannot": `push sha256:… to team/app`.
    """
    status = answer.status
    message = f"cannot {doing}: {registry} answers {_phrase(status)}{_said(answer)}"
    if says_full(answer):
        return ResourceExhaustedError(message, hint=f"{registry} is out of room; nothing was tagged")
    if status in _MEANINGS:
        kind, hint = _MEANINGS[status]
        return kind(message, hint=hint.format(registry=registry) or None)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return UnavailableError(message)
    return FailedPreconditionError(message)


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _said(answer: Answer) -> str:
    """What the registry says itself, on one line."""
    # The details of a refusal are for programs; those of a failure may be all that says what failed.
    detailed = answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    said = "; ".join(_describe(error, detailed=detailed) for error in _errors(answer)) or _plain_text(answer)
    said = "".join(mark if mark.isprintable() else " " for mark in said).strip()
    if not said:
        return ""
    return f" ({said[:_SHOWN]}…)" if len(said) > _SHOWN else f" ({said})"


def _describe(error: dict[str, Any], *, detailed: bool) -> str:
    parts = [error.get("code"), error.get("message"), error.get("detail")]
    if detailed and not isinstance(parts[-1], str):
        parts[-1] = _as_text(parts[-1])
    return ": ".join(part for part in parts if part and isinstance(part, str))


def _as_text(detail: Any) -> str:
    try:
        return json.dumps(detail) if detail else ""
    except RecursionError:  # parsing had just enough of the stack
        return ""


def _plain_text(answer: Answer) -> str:
    """The first line of a body that is meant to be read, not of a page."""
    if not answer.headers.get("Content-Type", "").startswith("text/plain"):
        return ""
    return answer.body.decode(errors="replace").strip().partition("\n")[0]


def _errors(answer: Answer) -> list[dict[str, Any]]:
    """The list of errors in a body, as OCI's distribution specification has it; empty if it has none."""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return []
    errors = value.get("errors") if isinstance(value, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
