"""Tests of `nixsnap.registry.upload`: blobs, and all that can happen to them on their way."""

from __future__ import annotations

import hashlib
import io
import os

import attrs
import pytest
from fakeregistry import Fault, digest_of

from nixsnap.errors import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from nixsnap.registry.progress import Outcome
from nixsnap.registry.retry import ATTEMPTS, AbandonedError
from nixsnap.registry.upload import Blob, has_blob, push_blob

CONTENT = os.urandom(3 << 20)
HALF = len(CONTENT) // 2
CUT = Fault(method="PUT", path="uploads", cut_after=HALF)


def blob_of(content: bytes = CONTENT, **fields: object) -> Blob:
    return Blob(
        digest=digest_of(content), size_bytes=len(content), open=lambda: io.BytesIO(content), **fields
    )


@pytest.fixture
def blob() -> Blob:
    return blob_of()


def arrived(fake) -> bytes:
    return fake.blobs["team/app", digest_of(CONTENT)]


def test_push(fake, session, heard, blob):
    """Two requests, and all bytes are counted."""
    assert push_blob(session, blob) is Outcome.PUSHED
    assert arrived(fake) == CONTENT
    assert fake.methods() == ["POST", "PUT"]
    assert heard.offsets[-1] == len(CONTENT)
    assert sorted(heard.offsets) == heard.offsets


@pytest.mark.parametrize("content", [b"", b"x"])
def test_small(fake, session, content):
    """Even nothing at all is a blob."""
    push_blob(session, blob_of(content))
    assert fake.blobs["team/app", digest_of(content)] == content


def test_has_blob(session, blob):
    """Asked by HEAD."""
    assert not has_blob(session, blob)
    push_blob(session, blob)
    assert has_blob(session, blob)


def test_who_may_only_push_may_not_look(fake, session, blob):
    """Then the blob counts as missing, and pushing it tells what is allowed."""
    fake.faults.append(Fault(method="HEAD", status=403))
    assert not has_blob(session, blob)


def test_cannot_look(fake, session, blob):
    """A registry that keeps failing is no registry without the blob."""
    fake.faults += [Fault(method="HEAD", status=503)] * ATTEMPTS
    with pytest.raises(UnavailableError, match="503 Service Unavailable"):
        has_blob(session, blob)


def test_resumes_where_the_connection_broke(fake, session, heard, blob):
    """Nothing that has arrived is sent again; the rest goes where the registry says, with its place."""
    fake.faults.append(CUT)
    push_blob(session, blob)
    assert arrived(fake) == CONTENT
    assert fake.received == len(CONTENT)
    assert fake.methods() == ["POST", "PUT", "HEAD", "GET", "PATCH", "PUT"]
    patch = fake.seen[fake.methods().index("PATCH")]
    assert patch["content-range"] == f"{HALF}-{len(CONTENT) - 1}"
    assert f"state={HALF}" in fake.requests[fake.methods().index("PATCH")]
    assert len(heard.retries) == 1


def test_resumes_again_and_again(fake, session):
    """As often as it brings the blob on by a mebibyte: attempts count from the last success."""
    step = 1 << 20
    big = blob_of(os.urandom(12 * step))
    fake.faults.append(Fault(method="PUT", path="uploads", cut_after=step))
    fake.faults += [Fault(method="PATCH", cut_after=step)] * 10
    push_blob(session, big)
    assert fake.received == big.size_bytes
    assert fake.methods().count("PATCH") == 11 > ATTEMPTS


def test_gives_up_without_progress(fake, session, blob):
    """After as many attempts as there are for anything, with what happened last, and with the upload cancelled."""
    fake.faults.append(CUT)
    fake.faults += [Fault(method="PATCH", cut_after=10)] * 20
    with pytest.raises(UnavailableError, match=f"cannot push {blob.digest} to team/app: .* broke"):
        push_blob(session, blob)
    assert fake.methods().count("PATCH") == ATTEMPTS  # half of the blob was a success
    assert fake.uploads == {}


def test_starts_over_where_the_registry_cannot_resume(fake, session, blob):
    """It answers 0-0 whatever it has; the first upload is cancelled."""
    fake.can_resume = False
    fake.faults.append(CUT)
    push_blob(session, blob)
    assert arrived(fake) == CONTENT
    assert fake.received == len(CONTENT) + HALF
    assert fake.uploads == {}
    assert fake.methods("uploads") == ["POST", "PUT", "GET", "DELETE", "POST", "PUT"]


def test_starts_over_where_the_registry_has_forgotten_the_upload(fake, session, blob):
    """Restarted meanwhile, for one."""
    fake.faults += [CUT, Fault(method="GET", path="uploads", status=404)]
    push_blob(session, blob)
    assert arrived(fake) == CONTENT


def test_lost_answer_to_the_whole_blob(fake, session, blob):
    """The registry has it; nothing is sent twice."""
    fake.faults.append(Fault(method="PUT", path="uploads", is_answer_lost=True))
    assert push_blob(session, blob) is Outcome.PUSHED
    assert fake.received == len(CONTENT)
    assert fake.methods() == ["POST", "PUT", "HEAD"]


def test_lost_answer_to_the_rest(fake, session, blob):
    """All of it has arrived; what is left to do is to say so."""
    fake.faults += [CUT, Fault(method="PATCH", is_answer_lost=True)]
    push_blob(session, blob)
    assert fake.received == len(CONTENT)
    assert arrived(fake) == CONTENT


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_failures_that_pass(fake, session, heard, blob, status):
    """Are tried again, wherever they come up."""
    fake.faults += [Fault(method=method, status=status) for method in ("POST", "PUT", "POST", "GET", "HEAD")]
    push_blob(session, blob)
    assert arrived(fake) == CONTENT
    assert fake.faults == []
    assert f"{fake.host} answers {status}" in heard.retries


def test_damaged_on_the_way(fake, session, blob):
    """A registry that got other bytes refuses them; they are sent anew."""
    damaged = io.BytesIO(bytes(len(CONTENT)))
    sources = [damaged, io.BytesIO(CONTENT)]
    push_blob(session, attrs.evolve(blob, open=lambda: sources.pop(0)))
    assert arrived(fake) == CONTENT


def test_damaged_every_time(fake, session, blob):
    """Is believed after the third time."""
    with pytest.raises(FailedPreconditionError, match="DIGEST_INVALID: provided digest did not match"):
        push_blob(session, attrs.evolve(blob, open=lambda: io.BytesIO(bytes(len(CONTENT)))))
    assert fake.methods("uploads").count("PUT") == 3
    assert fake.blobs == {}


def test_wrong_place(fake, session, blob):
    """A registry that has something else than it said starts over."""
    fake.faults += [
        CUT,
        Fault(
            method="GET",
            path="uploads",
            status=204,
            headers={"Range": "0-99", "Location": "/v2/team/app/blobs/uploads/1"},
        ),
    ]
    push_blob(session, blob)
    assert arrived(fake) == CONTENT


def test_registry_that_stored_something_else(fake, session, blob):
    """Says so in its answer."""
    fake.faults.append(
        Fault(method="PUT", path="uploads", status=201, headers={"Docker-Content-Digest": digest_of(b"")})
    )
    with pytest.raises(DataLossError, match=f"was sent {blob.digest} and stored '{digest_of(b'')}'"):
        push_blob(session, blob)


def test_registry_with_another_kind_of_digest(fake, session):
    """That knows a blob pushed by SHA-512 by its SHA-256 is no contradiction."""
    digest = f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"
    fake.faults.append(Fault(method="PUT", status=201, headers={"Docker-Content-Digest": digest_of(CONTENT)}))
    assert push_blob(session, attrs.evolve(blob_of(), digest=digest)) is Outcome.PUSHED


def test_archive_that_shrinks(fake, session, blob):
    """Is no reason to wait for the rest."""
    with pytest.raises(DataLossError, match="cut off while it was being pushed"):
        push_blob(session, attrs.evolve(blob, open=lambda: io.BytesIO(CONTENT[:HALF])))
    assert fake.blobs == {}


def test_archive_that_cannot_be_read(fake, session, heard, blob):
    """Is no broken connection, which would be tried again."""

    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(DataLossError, match=r"cannot be read: .*Input/output error"):
        push_blob(session, attrs.evolve(blob, open=lambda: Broken(CONTENT)))
    assert heard.retries == []
    assert fake.uploads == {}


def test_archive_is_closed(fake, session, blob):
    """Once for each time that it was opened, whatever became of it."""
    opened: list[io.BytesIO] = []

    def open_one() -> io.BytesIO:
        opened.append(io.BytesIO(CONTENT))
        return opened[-1]

    fake.faults.append(CUT)
    push_blob(session, attrs.evolve(blob, open=open_one))
    assert [each.closed for each in opened] == [True, True]


@pytest.mark.parametrize(
    ("status", "body", "refusal"),
    [
        (403, b'{"errors":[{"code":"DENIED","message":"no"}]}', (PermissionDeniedError, r"\(DENIED: no\)")),
        (404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}', (NotFoundError, "NAME_UNKNOWN")),
        (405, b"", (FailedPreconditionError, "405 Method Not Allowed")),
        (413, b"", (ResourceExhaustedError, "413")),
        (400, b"<html>", (FailedPreconditionError, "400 Bad Request$")),
        (507, b"", (ResourceExhaustedError, "507 Insufficient Storage")),
        (500, b'{"errors":[{"detail":{"Err":28}}]}', (ResourceExhaustedError, "500")),
        (501, b"", (UnavailableError, "501")),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_refusals(fake, session, *, method, status, body, refusal):
    """Are final: one attempt, an error that says what to do with it, and the upload cancelled."""
    fake.faults.append(Fault(method=method, status=status, body=body))
    error, reason = refusal
    with pytest.raises(error, match=reason):
        push_blob(session, blob_of())
    assert session.progress.retries == []
    assert fake.uploads == {}


def test_mount(fake, session, blob):
    """Nothing is sent."""
    fake.blobs["base", blob.digest] = CONTENT
    assert push_blob(session, attrs.evolve(blob, mount_from="base")) is Outcome.MOUNTED
    assert arrived(fake) == CONTENT
    assert fake.methods() == ["POST"]


def test_mount_from_where_it_is_not(fake, session, blob):
    """The registry starts an upload in place of it."""
    assert push_blob(session, attrs.evolve(blob, mount_from="base")) is Outcome.PUSHED
    assert fake.methods() == ["POST", "PUT"]


@pytest.mark.parametrize("status", [403, 404, 405])
def test_mount_that_is_refused(fake, session, blob, status):
    """Another POST, without it."""
    fake.faults.append(Fault(method="POST", path="mount", status=status))
    push_blob(session, attrs.evolve(blob, mount_from="base"))
    assert arrived(fake) == CONTENT


def test_stopped(fake, session, blob):
    """The push fails elsewhere: this one ends at the next block, and cancels its upload."""

    class Stopping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > HALF:
                session.clock.stop()
            return super().read(size)

    with pytest.raises(AbandonedError):
        push_blob(session, attrs.evolve(blob, open=lambda: Stopping(CONTENT)))
    assert fake.uploads == {}
    # The fake may note the PUT that was cut short after it.
    assert fake.methods().count("DELETE") == 1


def test_redirected_upload(fake, session, blob):
    """307 takes the body along."""
    fake.faults.append(
        Fault(
            method="PUT",
            status=307,
            headers={"Location": f"/v2/team/app/blobs/uploads/1?digest={blob.digest}"},
        )
    )
    push_blob(session, blob)
    assert arrived(fake) == CONTENT
