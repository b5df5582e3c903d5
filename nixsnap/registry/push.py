"""Pushes images to a registry: blobs first, what names them next, and what the tag points to last."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

import attrs

from nixsnap.image.archive import ImageArchive
from nixsnap.image.reference import Reference
from nixsnap.registry.credentials import DockerConfig
from nixsnap.registry.hosts import push_endpoint
from nixsnap.registry.parallel import in_parallel
from nixsnap.registry.plan import Document, Plan, plan
from nixsnap.registry.progress import SILENCE, Outcome, Progress
from nixsnap.registry.retry import Clock
from nixsnap.registry.session import Session
from nixsnap.registry.transport import Payload, Request, Transport
from nixsnap.registry.upload import Blob, check_digest, has_blob, push_blob

UPLOADS: Final = 4
"""Blobs that are pushed at a time."""

_STORED: Final = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})


@attrs.frozen(kw_only=True)
class PushedImage:
    """An image that a registry has.

    Attributes:
        reference: Its name.
        digest: Of its manifest or index.
    """

    reference: Reference
    digest: str

    def __str__(self) -> str:
        """The name and the digest, which together are a reference too."""
        tag = f":{self.reference.tag}" if self.reference.tag else ""
        return f"{self.reference.repository}{tag}@{self.digest}"


def push(
    archives: Sequence[ImageArchive],
    reference: Reference,
    *,
    hosts_dirs: Sequence[Path],
    plain_http: bool = False,
    mount_from: Sequence[str] = (),
    config: DockerConfig | None = None,
    progress: Progress = SILENCE,
    clock: Clock | None = None,
) -> PushedImage:
    """Push the images of archives as one: see `plan.plan` for what becomes of several.

    The archives are verified as a whole before anything is sent. A failure leaves blobs in the registry that nothing
    names, which it collects, and whatever the tag pointed to before.

    Args:
        archives: At least one; they stay the caller's to close.
        reference: Its tag is made or moved; without one the image can be had by its digest only.
        hosts_dirs: Where the configuration of registries is looked for, see `hosts`.
        plain_http: The registry has no TLS.
        mount_from: Repositories of the registry that may have some of the blobs.
        config: Credentials; the user's own by default.
        progress: Told how it goes on.
        clock: For pauses; stopping it ends the push.

    Raises:
        InvalidArgumentError: An archive is damaged or lies, or the reference or the configuration is wrong.
        NotFoundError: There is no such host or repository.
        PermissionDeniedError: The registry does not let us.
        ResourceExhaustedError: It is full.
        UnavailableError: It does not answer, or not as it should, after several attempts.
        NixsnapError: Whatever else it says.
    """
    clock = clock or Clock()
    planned = plan(archives, reference, mount_from=mount_from)
    endpoint = push_endpoint(reference.domain, hosts_dirs=hosts_dirs, plain_http=plain_http)
    transport = Transport(endpoint, connections=UPLOADS)
    try:
        session = Session(
            endpoint,
            reference.path,
            transport=transport,
            config=config or DockerConfig.load(),
            clock=clock,
            progress=progress,
        )
        _push(session, planned, reference)
    finally:
        transport.close()
    return PushedImage(reference=reference, digest=planned.digest)


def _push(session: Session, planned: Plan, reference: Reference) -> None:
    missing = _missing(session, planned.blobs)
    session.progress.pushing(len(missing), sum(blob.size_bytes for blob in missing))
    in_parallel(functools.partial(_push_blob, session), missing, threads=UPLOADS, clock=session.clock)
    *parts, top = planned.documents
    for part in parts:
        _put_document(session, part, part.digest)
    _put_document(session, top, reference.tag or top.digest)


def _missing(session: Session, blobs: Sequence[Blob]) -> list[Blob]:
    """Ask for each blob; the first time alone, to learn how the registry is to be spoken to."""
    if not blobs:
        return []
    look = functools.partial(has_blob, session)
    found = [look(blobs[0]), *in_parallel(look, blobs[1:], threads=UPLOADS, clock=session.clock)]
    for blob, is_there in zip(blobs, found, strict=True):
        if is_there:
            session.progress.finished(blob.digest, blob.size_bytes, Outcome.THERE)
    return [blob for blob, is_there in zip(blobs, found, strict=True) if not is_there]


def _push_blob(session: Session, blob: Blob) -> None:
    outcome = push_blob(session, blob)
    session.progress.finished(blob.digest, blob.size_bytes, outcome)


def _put_document(session: Session, document: Document, name: str) -> None:
    """Store a manifest or an index under a tag or its digest."""
    answer = session.call(
        Request(
            method="PUT",
            url=session.url("manifests", name),
            headers={"Content-Type": document.media_type},
            payload=Payload.of(document.raw),
        )
    )
    if answer.status not in _STORED:
        raise session.error(answer, f"push {document.digest} to {session.repository} as {name}")
    check_digest(session, answer, document.digest)
