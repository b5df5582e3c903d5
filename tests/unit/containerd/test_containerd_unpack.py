"""Unpacking layers: names, labels, races with other unpackers, and what is left after a failure."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from fake_containerd import REF_LABEL, failing, on_fake, once

from nixsnap.containerd.leases import leased
from nixsnap.containerd.unpack import is_unpacked, stack, unpack
from nixsnap.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from nixsnap.image.oci import Descriptor

# Chain ids of the OCI image specification's rule, worked out with sha256sum(1):
#   printf 'sha256:<a> sha256:<b>' | sha256sum
DIFF_IDS = ("sha256:" + "a" * 64, "sha256:" + "b" * 64)
CHAIN_IDS = (DIFF_IDS[0], "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c")
CONFIG = b"{}"


def descriptor(digest: str, **annotations: str) -> Descriptor:
    """A layer."""
    return Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar", digest=digest, size=1, annotations=annotations
    )


def prepared(fake, *, annotations: dict[str, str] | None = None):
    """Put two layers and a config into the fake's content store; return the layers and the config's digest."""
    digests = [fake.put_blob(b"layer 0"), fake.put_blob(b"layer 1")]
    fake.diff_ids.update(zip(digests, DIFF_IDS, strict=True))
    layers = stack([descriptor(digests[0]), descriptor(digests[1], **(annotations or {}))], DIFF_IDS)
    return layers, fake.put_blob(CONFIG)


async def run_unpack(client, layers, config, **options) -> None:
    """Unpack under a lease of its own."""
    async with leased(client) as lessee:
        await unpack(lessee, "nix", layers, config=config, **options)


def test_chain_ids():
    """The lowest layer's chain id is its diff id, the others' are digests of what lies below and their own."""
    layers = stack([descriptor("sha256:0"), descriptor("sha256:1")], DIFF_IDS)
    assert [(layer.parent, layer.chain_id) for layer in layers] == [
        ("", CHAIN_IDS[0]),
        (CHAIN_IDS[0], CHAIN_IDS[1]),
    ]


def test_unpack_passes_the_annotations_on(tmp_path):
    """Annotations with containerd's prefix reach Prepare and Commit, others do not, and none can name the snapshot."""

    async def scenario(fake, client):
        layers, config = prepared(
            fake, annotations={"containerd.io/snapshot/x": "1", "other": "2", REF_LABEL: "sha256:forged"}
        )
        await run_unpack(client, layers, config)
        labels = dict(fake.snapshots[CHAIN_IDS[1]].labels)
        assert labels == {"containerd.io/snapshot/x": "1", REF_LABEL: CHAIN_IDS[1]}
        assert fake.snapshots[CHAIN_IDS[1]].parent == CHAIN_IDS[0]
        assert fake.keys == []

    on_fake(tmp_path, scenario)


def test_unpack_labels_what_it_unpacked(tmp_path):
    """The config keeps the top snapshot, and a layer blob knows its diff id, as after containerd's own unpack."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        await run_unpack(client, layers, config)
        assert fake.blobs[config].labels == {"containerd.io/gc.ref.snapshot.nix": CHAIN_IDS[1]}
        blob = fake.blobs[layers[0].descriptor.digest]
        assert blob.labels == {"containerd.io/uncompressed": DIFF_IDS[0]}

    on_fake(tmp_path, scenario)


@pytest.mark.parametrize("present", [0, 1, 2])
def test_unpack_does_what_is_missing(tmp_path, present):
    """Layers whose snapshots are there are neither prepared nor applied, but kept by the lease."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        for layer in layers[:present]:
            fake.put_snapshot(layer.chain_id)
        seen = []
        async with leased(client) as lessee:
            await unpack(lessee, "nix", layers, config=config, unpacked=seen.append)
            kept = fake.leases[lessee.lease]
        assert fake.count("Diff.Apply") == 2 - present
        assert seen == list(layers)
        assert kept == ([("snapshots/nix", layers[present - 1].chain_id)] if present else [])

    on_fake(tmp_path, scenario)


def test_a_snapshot_collected_before_it_is_leased_is_made_again(tmp_path):
    """Found, then gone before the lease held it: the layer is unpacked after all."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.put_snapshot(CHAIN_IDS[0])
        fake.before["Leases.AddResource"] = once(lambda _context: fake.snapshots.clear())
        await run_unpack(client, layers, config)
        assert fake.count("Diff.Apply") == 2
        assert set(fake.snapshots) == set(CHAIN_IDS)

    on_fake(tmp_path, scenario)


@pytest.mark.parametrize("moment", ["Snapshots.Prepare", "Diff.Apply", "Snapshots.Commit"])
def test_another_unpacker_may_win(tmp_path, moment):
    """Whenever another client commits the same layer, its snapshot is used and our key goes."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.before[moment] = once(lambda _context: fake.put_snapshot(CHAIN_IDS[0]))
        await run_unpack(client, layers, config)
        assert set(fake.snapshots) == set(CHAIN_IDS)

    on_fake(tmp_path, scenario)


def test_a_winner_that_vanishes_is_tried_again(tmp_path):
    """Prepare says that the snapshot exists, and then it does not: unpack it ourselves."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.before["Snapshots.Prepare"] = once(failing(grpc.StatusCode.ALREADY_EXISTS, "target snapshot"))
        await run_unpack(client, layers, config)
        assert set(fake.snapshots) == set(CHAIN_IDS)

    on_fake(tmp_path, scenario)


def test_a_winner_that_keeps_vanishing_is_given_up(tmp_path):
    """Three attempts, then an error that says why."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.before["Snapshots.Prepare"] = failing(grpc.StatusCode.ALREADY_EXISTS, "target snapshot")
        with pytest.raises(UnavailableError, match="comes and goes"):
            await run_unpack(client, layers, config)
        assert fake.count("Snapshots.Prepare") == 3

    on_fake(tmp_path, scenario)


def test_wrong_content_is_refused(tmp_path):
    """A layer that unpacks to another diff id is not committed, and its key goes."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.diff_ids[layers[1].descriptor.digest] = "sha256:" + "c" * 64
        with pytest.raises(InvalidArgumentError, match=f"unpacks to sha256:c+, but .* {DIFF_IDS[1]}"):
            await run_unpack(client, layers, config)
        assert set(fake.snapshots) == {CHAIN_IDS[0]}
        assert fake.blobs[config].labels == {}

    on_fake(tmp_path, scenario)


@pytest.mark.parametrize("moment", ["Snapshots.Prepare", "Diff.Apply", "Snapshots.Commit"])
def test_failure_leaves_no_key(tmp_path, moment):
    """Whatever fails, the key is removed and the snapshotter's words come out."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.before[moment] = failing(grpc.StatusCode.NOT_FOUND, "path '/nix/store/…' is nowhere")
        with pytest.raises(NotFoundError, match="is nowhere"):
            await run_unpack(client, layers, config)
        assert fake.snapshots == {}
        assert fake.leases == {}

    on_fake(tmp_path, scenario)


def test_failure_to_clean_up_does_not_hide_the_error(tmp_path):
    """When the key cannot be removed either, the first error is the one that is told."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        fake.before["Diff.Apply"] = failing(grpc.StatusCode.FAILED_PRECONDITION, "no such mount")
        fake.before["Snapshots.Remove"] = failing(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(FailedPreconditionError, match="no such mount"):
            await run_unpack(client, layers, config)

    on_fake(tmp_path, scenario)


def test_cancellation_leaves_no_key(tmp_path):
    """Interrupting an unpack removes its key."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        stuck = asyncio.Event()

        async def hang(_context):
            stuck.set()
            await asyncio.Event().wait()

        fake.before["Diff.Apply"] = hang
        unpacking = asyncio.create_task(run_unpack(client, layers, config))
        await stuck.wait()
        unpacking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unpacking
        assert fake.snapshots == {}

    on_fake(tmp_path, scenario)


def test_unpack_needs_a_lease(tmp_path):
    """Without one, containerd could collect the first layer before the last is there."""

    async def scenario(fake, client):
        layers, config = prepared(fake)
        with pytest.raises(FailedPreconditionError, match="lease"):
            await unpack(client, "nix", layers, config=config)
        assert fake.calls == []

    on_fake(tmp_path, scenario)


def test_is_unpacked_asks_for_the_top(tmp_path):
    """Only the top snapshot counts: its parents cannot go before it."""

    async def scenario(fake, client):
        layers, _ = prepared(fake)
        assert await is_unpacked(client, "nix", ())
        assert not await is_unpacked(client, "nix", layers)
        fake.put_snapshot(CHAIN_IDS[0])
        assert not await is_unpacked(client, "nix", layers)
        fake.put_snapshot(CHAIN_IDS[1])
        assert await is_unpacked(client, "nix", layers)

    on_fake(tmp_path, scenario)
