"""What goes over the door's socket: one record each way on SOCK_SEQPACKET, so that nothing has to be put together.

The request is a constant. A client names neither path nor ids: which store is shown is root's choice, and whom its
files belong to follows from who asks. It is sent all the same, so that a stray connection costs no mount, and so that a
later protocol can be told from this one. The answer is a word, and with a refusal its reason:

    → "nixsnap-store-door 1"
    ← "granted"                       with one descriptor, a detached mount
    ← "refused " + one line of text
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nixsnap.errors import PermissionDeniedError, UnavailableError

DEFAULT_ADDRESS: Final = Path("/run/nixsnap-store-door/door.sock")

REQUEST: Final = b"nixsnap-store-door 1"
GRANTED: Final = b"granted"
ANSWER_BYTES: Final = 1024
"""No answer is longer."""

_REFUSED: Final = b"refused "


def is_request(record: bytes) -> bool:
    """Whether a record, of which one byte more than `REQUEST` has was read, is a request."""
    return record == REQUEST


def refusal(reason: str) -> bytes:
    """The answer that says no; a reason that is too long is cut short."""
    return (_REFUSED + reason.replace("\n", " ").encode("utf-8", "replace"))[:ANSWER_BYTES]


def check_answer(record: bytes) -> None:
    """Return if an answer grants what was asked for.

    Raises:
        PermissionDeniedError: It refuses; the message is the reason.
        UnavailableError: It is no answer.
    """
    if record == GRANTED:
        return
    if not record:
        raise UnavailableError("the store door hung up without an answer")
    if not record.startswith(_REFUSED):
        raise UnavailableError(f"the store door gave an answer that makes no sense: {record[:64]!r}")
    raise PermissionDeniedError(
        f"the store door refused: {record.removeprefix(_REFUSED).decode('utf-8', 'replace')}"
    )
