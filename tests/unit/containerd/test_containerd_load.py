"""Loading: its order, what a second load does, and what a failed one leaves."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from fake_containerd import NAMESPACE, failing, on_fake
from handmade_archives import NAME, ArchiveBuilder, small_image

from nixsnap.api import images_pb2
from nixsnap.containerd.load import load
from nixsnap.errors import InvalidArgumentError, NixsnapError, UnavailableError
from nixsnap.image.archive import ImageArchive

NAME_OF_SMALL = "lab.invalid/small:1"
WRITING_CALLS = {
    "Content.Write", "Content.Update", "Leases.Create", "Snapshots.Prepare", "Images.Create", "Images.Update",
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """An archive of a small image, and its builder."""
    return tmp_path / "small.tar", small_image(tmp_path / "small.tar")


async def load_into(fake, client, path, builder, **options):
    """Load an archive whose layers the fake will unpack as `builder` says."""
    fake.diff_ids |= builder.diff_ids
    with ImageArchive.open(path) as archive:
        return await load(client, archive, **options)


def test_load(tmp_path, small):
    """Everything is there in the end, and the lease is not."""

    async def scenario(fake, client):
        path, builder = small
        (image,) = await load_into(fake, client, path, builder)
        assert image.name == NAME_OF_SMALL
        assert not image.was_loaded
        assert set(fake.blobs) == set(builder.blobs)
        assert fake.images[image.name].target.digest == image.target.digest
        assert image.config in fake.blobs
        assert fake.blobs[image.config].labels["containerd.io/gc.ref.snapshot.nix"] in fake.snapshots
        assert (fake.leases, fake.ingests, fake.keys) == ({}, {}, [])

    on_fake(tmp_path, scenario)


def test_record_comes_last(tmp_path, small):
    """Who sees the image can run it: blobs, then snapshots, then the record."""

    async def scenario(fake, client):
        await load_into(fake, client, *small)
        order = [call for call in dict.fromkeys(fake.calls) if call in WRITING_CALLS]
        assert order == [
            "Leases.Create",
            "Content.Write",
            "Snapshots.Prepare",
            "Content.Update",
            "Images.Create",
        ]

    on_fake(tmp_path, scenario)


def test_second_load_only_looks(tmp_path, small):
    """No lease, no write, no update."""

    async def scenario(fake, client):
        await load_into(fake, client, *small)
        fake.calls.clear()
        (image,) = await load_into(fake, client, *small)
        assert image.was_loaded
        assert not WRITING_CALLS & set(fake.calls)

    on_fake(tmp_path, scenario)


def lose_blob(fake):
    """A blob is deleted by hand."""
    fake.blobs.popitem()


def lose_label(fake):
    """A manifest does not keep its layers."""
    for blob in fake.blobs.values():
        blob.labels.clear()


def lose_snapshots(fake):
    """The snapshotter was emptied."""
    fake.snapshots.clear()


def lose_image(fake):
    """The record was deleted, and nothing collected yet."""
    fake.images.clear()


def repoint_image(fake):
    """The record has come to mean something else."""
    fake.images[NAME_OF_SMALL].target.digest = "sha256:" + "0" * 64


@pytest.mark.parametrize("loss", [lose_blob, lose_label, lose_snapshots, lose_image, repoint_image])
def test_load_mends(tmp_path, small, loss):
    """Whatever is missing, a load puts it back, and the next one has nothing to do."""

    async def scenario(fake, client):
        await load_into(fake, client, *small)
        loss(fake)
        (image,) = await load_into(fake, client, *small)
        assert not image.was_loaded
        (image,) = await load_into(fake, client, *small)
        assert image.was_loaded

    on_fake(tmp_path, scenario)


def test_another_snapshotter_is_another_load(tmp_path, small):
    """An image that is unpacked elsewhere is not loaded here; both keep their snapshots."""

    async def scenario(fake, client):
        await load_into(fake, client, *small)
        fake.snapshots.clear()  # the fake has one table for all snapshotters
        (image,) = await load_into(fake, client, *small, snapshotter="overlayfs")
        labels = fake.blobs[image.config].labels
        assert {
            "containerd.io/gc.ref.snapshot.nix",
            "containerd.io/gc.ref.snapshot.overlayfs",
        } <= labels.keys()

    on_fake(tmp_path, scenario)


def test_cri_label(tmp_path, small, monkeypatch):
    """In Kubernetes' namespace the record carries CRI's label, in others it does not."""

    async def scenario(fake, client):
        await load_into(fake, client, *small)
        assert dict(fake.images[NAME_OF_SMALL].labels) == {}
        monkeypatch.setattr("nixsnap.containerd.load._CRI_NAMESPACE", NAMESPACE)
        (image,) = await load_into(fake, client, *small)
        assert not image.was_loaded
        assert dict(fake.images[NAME_OF_SMALL].labels) == {"io.cri-containerd.image": "managed"}

    on_fake(tmp_path, scenario)


def test_labels_of_others_survive(tmp_path, small):
    """A record that is repointed keeps the labels that others gave it."""

    async def scenario(fake, client):
        fake.images[NAME_OF_SMALL] = images_pb2.Image(name=NAME_OF_SMALL, labels={"theirs": "1"})
        await load_into(fake, client, *small)
        assert dict(fake.images[NAME_OF_SMALL].labels) == {"theirs": "1"}
        assert fake.images[NAME_OF_SMALL].target.digest in small[1].blobs

    on_fake(tmp_path, scenario)


STEPS = [
    "Snapshots.Stat", "Leases.Create", "Content.Write", "Content.Commit", "Snapshots.Prepare", "Diff.Apply",
    "Snapshots.Commit", "Content.Update", "Images.Create",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_failure_leaves_nothing(tmp_path, small, step):
    """Whatever step fails: no record, lease, key or ingest, and a collection if there is anything to collect."""

    async def scenario(fake, client):
        fake.before[step] = failing(grpc.StatusCode.INTERNAL, f"{step} broke")
        with pytest.raises(NixsnapError, match=f"{step} broke"):
            await load_into(fake, client, *small)
        assert (fake.images, fake.leases, fake.ingests, fake.keys) == ({}, {}, {}, [])
        assert fake.collections == int(STEPS.index(step) > STEPS.index("Leases.Create"))

    on_fake(tmp_path, scenario)


@pytest.mark.parametrize("step", STEPS)
def test_interruption_leaves_nothing(tmp_path, small, step):
    """The same for SIGINT and SIGTERM, which cancel the load while a call is under way."""

    async def scenario(fake, client):
        reached = asyncio.Event()

        async def hang(_context):
            if not reached.is_set():
                reached.set()
                await asyncio.Event().wait()

        fake.before[step] = hang
        loading = asyncio.create_task(load_into(fake, client, *small))
        await reached.wait()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert (fake.images, fake.leases, fake.ingests, fake.keys) == ({}, {}, {}, [])

    on_fake(tmp_path, scenario)


def test_bad_archive_stores_nothing(tmp_path, small):
    """A wrong byte in the last blob is found before the first call."""

    async def scenario(fake, client):
        path, builder = small
        digest = next(iter(builder.blobs))
        builder.blobs[digest] = builder.blobs[digest][:-1] + b"!"
        builder.write(path)
        with pytest.raises(InvalidArgumentError, match=digest):
            await load_into(fake, client, path, builder)
        assert fake.calls == []

    on_fake(tmp_path, scenario)


def test_several_records_are_made_or_none(tmp_path):
    """When the second record fails, the first is as it was before."""

    async def scenario(fake, client):
        builder = ArchiveBuilder()
        manifest = builder.manifest([builder.layer({"f": b"x"})])
        names = ["lab.invalid/new:1", "lab.invalid/old:1", "lab.invalid/third:1"]
        for name in names:
            builder.entry(manifest, {NAME: name})
        fake.images[names[1]] = images_pb2.Image(name=names[1])
        fake.images[names[1]].target.digest = "sha256:before"

        async def fail_third(context):
            if fake.count("Images.Create") == 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

        fake.before["Images.Create"] = fail_third
        with pytest.raises(UnavailableError):
            await load_into(fake, client, builder.write(tmp_path / "image.tar"), builder)
        assert set(fake.images) == {names[1]}
        assert fake.images[names[1]].target.digest == "sha256:before"

    on_fake(tmp_path, scenario)


def test_image_without_layers(tmp_path):
    """There is nothing to unpack, and a second load sees that."""

    async def scenario(fake, client):
        builder = ArchiveBuilder()
        builder.named(builder.manifest([]), "lab.invalid/scratch:1")
        path = builder.write(tmp_path / "image.tar")
        assert [image.was_loaded for image in await load_into(fake, client, path, builder)] == [False]
        assert [image.was_loaded for image in await load_into(fake, client, path, builder)] == [True]

    on_fake(tmp_path, scenario)


def test_progress_counts_everything_once(tmp_path, small):
    """Totals come first, and what counts towards them adds up to them, on a partly stored image too."""

    class Recorder:
        def __init__(self):
            self.totals, self.stored_bytes, self.layers = [], 0, 0

        def storing(self, size_bytes):
            self.totals.append(size_bytes)

        def stored(self, size_bytes):
            assert self.totals
            self.stored_bytes += size_bytes

        def unpacking(self, layers):
            self.totals.append(layers)

        def unpacked(self):
            self.layers += 1

    async def scenario(fake, client):
        path, builder = small
        for data in list(builder.blobs.values())[:2]:
            fake.put_blob(data)
        recorder = Recorder()
        await load_into(fake, client, path, builder, progress=recorder)
        size = sum(map(len, builder.blobs.values()))
        assert recorder.totals == [size, 2]
        assert (recorder.stored_bytes, recorder.layers) == (size, 2)

    on_fake(tmp_path, scenario)
