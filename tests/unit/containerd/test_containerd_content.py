"""Writing blobs: resuming, waiting for other writers, and what is left after a failure."""

from __future__ import annotations

import asyncio
import hashlib
import io

import grpc
import pytest
from fake_containerd import failing, on_fake, once

from nixsnap.containerd import content as content_module
from nixsnap.containerd.content import Blob, Content
from nixsnap.containerd.leases import leased
from nixsnap.containerd.store import store
from nixsnap.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)

DATA = bytes(range(256)) * 10


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Let a write of a few KiB take several messages."""
    monkeypatch.setattr(content_module, "CHUNK_BYTES", 1000)


def blob_of(data: bytes, *, claimed: bytes | None = None, **labels: str) -> Blob:
    """A blob that yields `data`, described as `claimed` where that is given."""
    described = data if claimed is None else claimed
    digest = f"sha256:{hashlib.sha256(described).hexdigest()}"
    return Blob(digest=digest, size_bytes=len(described), open=lambda: io.BytesIO(data), labels=labels)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2560])
def test_write_stores_data_and_labels(tmp_path, size):
    """A blob of any size arrives whole, with its labels, and the bytes are counted once."""

    async def scenario(fake, client):
        blob, counts = blob_of(DATA[:size], kind="layer"), []
        await Content(client).write(blob, wrote=counts.append)
        assert fake.blobs[blob.digest].data == DATA[:size]
        assert fake.blobs[blob.digest].labels == {"kind": "layer"}
        assert sum(counts) == size
        assert fake.ingests == {}

    on_fake(tmp_path, scenario)


def test_write_resumes_where_an_ingest_ended(tmp_path):
    """What an earlier attempt stored is not sent again."""

    async def scenario(fake, client):
        blob, counts = blob_of(DATA), []
        fake.ingests[blob.ref] = bytearray(DATA[:1500])
        sent = []
        original = io.BytesIO(DATA)

        class Recording:
            def read(self, size):
                sent.append(original.tell())
                return original.read(size)

            seek, close = original.seek, original.close

        await Content(client).write(
            Blob(digest=blob.digest, size_bytes=blob.size_bytes, open=Recording), wrote=counts.append
        )
        assert fake.blobs[blob.digest].data == DATA
        assert sent[0] == 1500
        assert sum(counts) == len(DATA)

    on_fake(tmp_path, scenario)


@pytest.mark.parametrize("stale", [b"something else", bytes(len(DATA)), bytes(len(DATA) + 1)])
def test_write_starts_over_when_the_ingest_is_not_its_beginning(tmp_path, stale):
    """Garbage under the ingest's name costs one more attempt, not the load."""

    async def scenario(fake, client):
        blob, counts = blob_of(DATA), []
        fake.ingests[blob.ref] = bytearray(stale)
        await Content(client).write(blob, wrote=counts.append)
        assert fake.blobs[blob.digest].data == DATA
        assert sum(counts) == len(DATA)

    on_fake(tmp_path, scenario)


@pytest.mark.parametrize("data", [DATA[:-1] + b"!", DATA[:-1]])
def test_write_refuses_data_that_is_not_the_blob(tmp_path, data):
    """Data of another digest or size is an error, and neither blob nor ingest is left."""

    async def scenario(fake, client):
        with pytest.raises(FailedPreconditionError, match="store blob sha256"):
            await Content(client).write(blob_of(data, claimed=DATA))
        assert fake.blobs == {}
        assert fake.ingests == {}

    on_fake(tmp_path, scenario)


def test_write_of_a_blob_that_exists(tmp_path):
    """It says so, without sending data and without touching the labels."""

    async def scenario(fake, client):
        digest = fake.put_blob(DATA, mine="1")
        with pytest.raises(AlreadyExistsError):
            await Content(client).write(blob_of(DATA, other="2"))
        assert fake.blobs[digest].labels == {"mine": "1"}
        assert fake.ingests == {}

    on_fake(tmp_path, scenario)


def test_write_waits_for_another_writer(tmp_path):
    """An ingest locked by another client is asked for again until that client is done."""

    async def scenario(fake, client):
        blob = blob_of(DATA)
        fake.locked.add(blob.ref)
        writing = asyncio.create_task(Content(client).write(blob))
        while fake.count("Content.Write") < 3:
            await asyncio.sleep(0.01)
        fake.put_blob(DATA)
        with pytest.raises(AlreadyExistsError):
            await writing

    on_fake(tmp_path, scenario)


def test_giving_up_the_wait_leaves_the_other_writers_ingest(tmp_path):
    """An ingest that never was ours is not dropped."""

    async def scenario(fake, client):
        blob = blob_of(DATA)
        fake.locked.add(blob.ref)
        fake.ingests[blob.ref] = bytearray(b"theirs")
        writing = asyncio.create_task(Content(client).write(blob))
        while not fake.count("Content.Write"):
            await asyncio.sleep(0.01)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert fake.ingests == {blob.ref: bytearray(b"theirs")}

    on_fake(tmp_path, scenario)


def test_unavailable_for_another_reason_is_no_lock(tmp_path):
    """Only a locked ingest is waited for."""

    async def scenario(fake, client):
        fake.before["Content.Write"] = failing(grpc.StatusCode.UNAVAILABLE, "shutting down")
        with pytest.raises(UnavailableError, match="shutting down"):
            await Content(client).write(blob_of(DATA))
        assert fake.count("Content.Write") == 1

    on_fake(tmp_path, scenario)


def test_full_disk_is_named_and_leaves_no_ingest(tmp_path):
    """containerd passes ENOSPC on as UNKNOWN; we do not."""

    async def scenario(fake, client):
        fake.before["Content.Commit"] = failing(grpc.StatusCode.UNKNOWN, "write /x: no space left on device")
        with pytest.raises(ResourceExhaustedError, match="no space left on device"):
            await Content(client).write(blob_of(DATA))
        assert fake.ingests == {}

    on_fake(tmp_path, scenario)


def test_cancelled_write_leaves_no_ingest(tmp_path):
    """Interrupting a write ends its stream and drops what it stored."""

    async def scenario(fake, client):
        stuck = asyncio.Event()

        async def hang(_context):
            stuck.set()
            await asyncio.Event().wait()

        fake.before["Content.Commit"] = hang
        blob = blob_of(DATA)
        writing = asyncio.create_task(Content(client).write(blob))
        await stuck.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert fake.ingests == {}
        while fake.locked:
            await asyncio.sleep(0.01)

    on_fake(tmp_path, scenario)


def test_label_sets_only_what_it_names(tmp_path):
    """Labels with dots in their names are set beside the others."""

    async def scenario(fake, client):
        digest = fake.put_blob(DATA, kept="1")
        await Content(client).label(digest, {"containerd.io/gc.ref.content.l.0": "sha256:x"})
        assert fake.blobs[digest].labels == {"kept": "1", "containerd.io/gc.ref.content.l.0": "sha256:x"}

    on_fake(tmp_path, scenario)


def test_store_puts_documents_after_what_they_name(tmp_path):
    """A blob with labels is written only when all those without are there."""

    async def scenario(fake, client):
        leaves = [blob_of(bytes([number])) for number in range(8)]
        document = blob_of(b"manifest", **{"containerd.io/gc.ref.content.l.0": leaves[0].digest})
        async with leased(client) as lessee:
            await store(lessee, [*leaves, document])
        assert list(fake.blobs)[-1] == document.digest
        assert len(fake.blobs) == 9

    on_fake(tmp_path, scenario)


def test_store_adopts_what_exists(tmp_path):
    """A blob that is there is put under the lease and gets the labels that it lacks."""

    async def scenario(fake, client):
        digest = fake.put_blob(DATA, theirs="1")
        counts = []
        async with leased(client) as lessee:
            await store(lessee, [blob_of(DATA, ours="2")], stored=counts.append)
            assert fake.leases[lessee.lease] == [("content", digest)]
        assert fake.blobs[digest].labels == {"theirs": "1", "ours": "2"}
        assert counts == [len(DATA)]

    on_fake(tmp_path, scenario)


def test_store_writes_again_what_was_collected_meanwhile(tmp_path):
    """A blob that vanishes between the look and the lease is simply stored."""

    async def scenario(fake, client):
        digest = fake.put_blob(DATA)
        fake.before["Leases.AddResource"] = once(lambda _context: fake.blobs.clear())
        async with leased(client) as lessee:
            await store(lessee, [blob_of(DATA)])
        assert fake.blobs[digest].data == DATA

    on_fake(tmp_path, scenario)


def test_store_raises_the_first_error_plainly(tmp_path):
    """With several writes under way, one error comes out, not a group."""

    async def scenario(fake, client):
        with pytest.raises(FailedPreconditionError):
            async with leased(client) as lessee:
                await store(lessee, [blob_of(b"x", claimed=DATA), blob_of(b"y"), blob_of(b"z")])
        assert fake.ingests == {}
        assert fake.leases == {}

    on_fake(tmp_path, scenario)


def test_lease_of_a_failed_block_is_collected_at_once(tmp_path):
    """A lease ends with its block: quietly after success, with a collection after failure."""

    async def scenario(fake, client):
        async with leased(client):
            assert len(fake.leases) == 1
        assert (fake.leases, fake.collections) == ({}, 0)
        with pytest.raises(ZeroDivisionError):
            async with leased(client):
                raise ZeroDivisionError
        assert (fake.leases, fake.collections) == ({}, 1)

    on_fake(tmp_path, scenario)


def test_lease_that_cannot_be_deleted_does_not_hide_the_error(tmp_path):
    """What went wrong in the block is what comes out."""

    async def scenario(fake, client):
        fake.before["Leases.Delete"] = failing(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(ZeroDivisionError):
            async with leased(client):
                raise ZeroDivisionError

    on_fake(tmp_path, scenario)
