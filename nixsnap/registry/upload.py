"""Brings one blob into a repository, going on after a failure where the registry has got to.

All of a blob is sent in the request that also completes it (POST, PUT), as containerd does: every registry takes that,
and it is the fewest requests. When it breaks, the registry is asked how much has arrived, and the rest follows (PATCH
with a Content-Range, PUT). A registry that cannot say, such as distribution's own, gets all of it once more.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import BinaryIO, Final

import attrs

from nixsnap.errors import DataLossError, NixsnapError, PermissionDeniedError
from nixsnap.image.digests import algorithm_of
from nixsnap.nix.storepath import shorten
from nixsnap.registry.failures import codes
from nixsnap.registry.networkfailures import BrokenConnectionError, UnreachableError
from nixsnap.registry.progress import Outcome
from nixsnap.registry.retry import Attempts, is_transient
from nixsnap.registry.session import Session, with_query
from nixsnap.registry.transport import Answer, Payload, Request

_DIGEST_HEADER: Final = "Docker-Content-Digest"
# A registry that keeps blobs elsewhere (S3 and its like) moves and hashes gigabytes before it answers.
_COMMIT_SECONDS: Final = 900.0
_CANCEL_SECONDS: Final = 5.0
_RESTARTS_MAX: Final = 2
_WORTH_BYTES: Final = 1 << 20
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,19})", re.ASCII)
_STARTED: Final = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})
_COMPLETED: Final = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})
# The upload is beyond help, though another one of the same blob may do.
_SPOILT: Final = frozenset(
    {"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "DIGEST_INVALID", "RANGE_INVALID", "SIZE_INVALID"}
)


@attrs.frozen(kw_only=True)
class Blob:
    """A blob to push.

    Args:
        digest: What its bytes hash to.
        size_bytes: How many there are.
        open: Gives them from the beginning; who calls it closes what it gets.
        mount_from: A repository of the same registry that may have it; empty if there is none.
    """

    digest: str
    size_bytes: int
    open: Callable[[], BinaryIO]
    mount_from: str = ""


@attrs.frozen(kw_only=True)
class _Position:
    """How far an upload has come."""

    location: str
    offset: int = 0


def has_blob(session: Session, blob: Blob) -> bool:
    """Whether the repository has the blob.

    Raises:
        AbandonedError: The push has ended meanwhile.
        NixsnapError: The registry cannot be asked.
    """
    answer = session.call(Request(method="HEAD", url=session.url("blobs", blob.digest)))
    if is_transient(answer):
        raise session.error(answer, f"look for {blob.digest} in {session.repository}")
    # Who may push need not be allowed to look; then pushing shows what is allowed.
    return answer.status == HTTPStatus.OK


def push_blob(session: Session, blob: Blob) -> Outcome:
    """Bring a blob into the session's repository.

    Raises:
        AbandonedError: The push has ended meanwhile; the upload is cancelled.
        DataLossError: The archive has changed under us, or the registry has something else than what was sent.
        NixsnapError: The registry cannot be reached, or refuses; likewise.
    """
    return _Upload(session, blob).run()


class _Upload:
    """The uploads of one blob, of which there is more than one only after failures."""

    def __init__(self, session: Session, blob: Blob) -> None:
        self._session = session
        self._blob = blob
        self._doing = f"push {blob.digest} to {session.repository}"
        self._restarts = 0

    def run(self) -> Outcome:
        """Upload."""
        position = self._start(mount_from=self._blob.mount_from)
        if position is None:
            return Outcome.MOUNTED
        attempts = Attempts(self._session.clock)
        while True:
            try:
                failed = self._try_to_complete(position)
                if failed is None:
                    return Outcome.PUSHED
                self._give_up_or_wait(attempts, failed)
                resumed = self._recover(position)
            except BaseException:
                self._cancel(position)
                raise
            if resumed is None:
                return Outcome.PUSHED
            if resumed.offset >= position.offset + _WORTH_BYTES:
                attempts.begin_anew()
            position = resumed

    def _start(self, *, mount_from: str = "") -> _Position | None:
        """Begin an upload; None if the registry took the blob from another repository instead."""
        answer = self._ask_to_mount(mount_from) if mount_from else None
        if answer is None or answer.status not in {*_STARTED, HTTPStatus.CREATED}:
            answer = self._session.call(Request(method="POST", url=self._session.url("blobs", "uploads/")))
        if answer.status == HTTPStatus.CREATED and mount_from:
            return None
        if answer.status not in _STARTED:
            raise self._session.error(answer, self._doing)
        return _Position(location=self._session.location(answer))

    def _ask_to_mount(self, mount_from: str) -> Answer | None:
        """Begin an upload that is not needed if the other repository has the blob, and if we may read there."""
        query = {"mount": self._blob.digest, "from": mount_from}
        url = self._session.url("blobs", "uploads/", query=query)
        try:
            return self._session.call(
                Request(method="POST", url=url, scopes=(f"repository:{mount_from}:pull",))
            )
        except PermissionDeniedError:
            return None

    def _try_to_complete(self, position: _Position) -> Answer | NixsnapError | None:
        """Send what is missing; return what went wrong if it may go well another time.

        Raises:
            NixsnapError: It may not.
        """
        try:
            answer = self._complete(position)
        except (UnreachableError, BrokenConnectionError) as exc:
            return exc
        if answer.status in _COMPLETED:
            check_digest(self._session, answer, self._blob.digest)
            return None
        if not is_transient(answer) and not self._may_restart(answer):
            raise self._session.error(answer, self._doing)
        return answer

    def _complete(self, position: _Position) -> Answer:
        headers = {"Content-Type": "application/octet-stream"}
        payload = self._rest(position.offset)
        if 0 < position.offset < self._blob.size_bytes:
            place = {"Content-Range": f"{position.offset}-{self._blob.size_bytes - 1}"}
            answer = self._session.once(
                Request(method="PATCH", url=position.location, headers={**headers, **place}, payload=payload)
            )
            if answer.status not in _STARTED:
                return answer
            position = _Position(location=self._session.location(answer), offset=self._blob.size_bytes)
            payload = Payload.of(b"")
        return self._session.once(
            Request(
                method="PUT",
                url=with_query(position.location, {"digest": self._blob.digest}),
                headers=headers,
                payload=payload,
                read_timeout_seconds=_COMMIT_SECONDS,
            )
        )

    def _rest(self, offset: int) -> Payload:
        return Payload(
            size_bytes=self._blob.size_bytes - offset,
            open=lambda: _Source(self._session, self._blob, offset),
        )

    def _may_restart(self, answer: Answer) -> bool:
        """Whether the upload, and not the blob or the right to push it, is what is wrong; that is believed twice."""
        is_spoilt = answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not _SPOILT.isdisjoint(
            codes(answer)
        )
        return is_spoilt and self._restarts < _RESTARTS_MAX

    def _recover(self, position: _Position) -> _Position | None:
        """Find out where to go on; None if the registry has the blob after all, and only its answer was lost."""
        if has_blob(self._session, self._blob):
            return None
        answer = self._session.call(Request(method="GET", url=position.location))
        if answer.status in _STARTED:
            offset = _received(answer)
            # Some of them answer 0-0 whatever they have.
            if 1 < offset <= self._blob.size_bytes:
                location = answer.headers.get("Location")
                return _Position(
                    location=self._session.location(answer) if location else position.location, offset=offset
                )
        self._restarts += 1
        self._cancel(position)
        return self._start()

    def _cancel(self, position: _Position) -> None:
        """Let the registry throw away what it has of the upload; if that fails too, it will do so after some days."""
        with contextlib.suppress(NixsnapError):
            self._session.once(
                Request(method="DELETE", url=position.location, read_timeout_seconds=_CANCEL_SECONDS)
            )

    def _give_up_or_wait(self, attempts: Attempts, failed: Answer | NixsnapError) -> None:
        if not attempts.are_over():
            self._session.wait(attempts, failed)
        elif isinstance(failed, Answer):
            raise self._session.error(failed, self._doing)
        else:
            raise type(failed)(f"cannot {self._doing}: {failed.message}", hint=failed.hint)


class _Source:
    """A blob's bytes from an offset on, as they are sent."""

    def __init__(self, session: Session, blob: Blob, offset: int) -> None:
        self._session = session
        self._blob = blob
        self._offset = offset
        self._stream = blob.open()
        self._stream.seek(offset)

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            AbandonedError: The push has ended meanwhile.
            DataLossError: There are fewer than there were, or they cannot be read.
        """
        self._session.clock.check()
        try:
            data = self._stream.read(min(size, self._blob.size_bytes - self._offset))
        except OSError as exc:  # which would pass for the connection's
            raise DataLossError(f"the archive with {self._blob.digest} cannot be read: {exc}") from exc
        if not data and self._offset < self._blob.size_bytes:
            raise DataLossError(f"the archive with {self._blob.digest} was cut off while it was being pushed")
        self._offset += len(data)
        self._session.progress.reached(self._blob.digest, self._offset, self._blob.size_bytes)
        return data

    def close(self) -> None:
        """Close the archive's stream."""
        self._stream.close()


def check_digest(session: Session, answer: Answer, digest: str) -> None:
    """Compare what the registry says that it has stored with what was sent.

    Raises:
        DataLossError: They differ.
    """
    stored = answer.headers.get(_DIGEST_HEADER, digest)
    # distribution knows every blob by SHA-256, whatever it was pushed by.
    if stored != digest and algorithm_of(stored) == algorithm_of(digest):
        raise DataLossError(f"{session.registry} was sent {digest} and stored {shorten(stored)}")


def _received(answer: Answer) -> int:
    """How many bytes of an upload a registry has, by its Range header: the first and the last one's place."""
    matched = _RANGE.fullmatch(answer.headers.get("Range", ""))
    return int(matched[1]) + 1 if matched else 0
