"""Tests of `nixsnap.image.archive` on OCI layouts, and of what hostile ones get."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from imagekit import NAMES, OCI, OCI_LAYER, Layout, config_of, layer, sha256, tar

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.archive import ImageArchive
from nixsnap.image.oci import Descriptor
from nixsnap.image.platform import Platform

AMD64 = Platform.parse("linux/amd64")
ARM64 = Platform.parse("linux/arm64")
INDEX_TYPE = f"{OCI}.index.v1+json"
LAYER = layer(etc="x")


@pytest.fixture
def layout() -> Layout:
    return Layout()


@pytest.fixture
def write(tmp_path: Path):
    """Write a layout, or the entries of an archive, and open it."""
    opened: list[ImageArchive] = []

    def open_archive(content: Layout | list) -> ImageArchive:
        path = tmp_path / f"{len(opened)}.tar"
        path.write_bytes(tar(content.entries() if isinstance(content, Layout) else content))
        opened.append(ImageArchive.open(path))
        return opened[-1]

    yield open_archive
    for archive in opened:
        archive.close()


def only(archive: ImageArchive) -> Descriptor:
    (descriptor,) = archive.index.manifests
    return descriptor


def test_reads_an_image(layout: Layout, write) -> None:
    """Index, manifest, config and blobs come out as they went in."""
    packed = gzip.compress(LAYER)
    layout.simple(packed, name="x.invalid/a:1", config=config_of([packed], config={"Env": ["A=1"]}))
    archive = write(layout)
    manifest = archive.manifest(only(archive))

    assert only(archive).annotations == {NAMES[0]: "x.invalid/a:1", NAMES[1]: "1"}
    assert [each.digest for each in manifest.layers] == [sha256(packed)]
    assert archive.config(manifest).config == {"Env": ["A=1"]}
    assert archive.config(manifest).platform == AMD64
    assert archive.blob_size(sha256(packed)) == len(packed)
    assert sha256(packed) in archive
    assert sha256(b"absent") not in archive
    assert json.loads(archive.index_bytes)["manifests"][0]["digest"] == only(archive).digest


def test_blobs_can_be_read_at_once_and_sought_in(layout: Layout, write) -> None:
    """Streams have positions of their own, and end where the blob does."""
    layout.simple(b"first" * 1000, b"second" * 1000, config=config_of([b"first" * 1000, b"second" * 1000]))
    archive = write(layout)
    with (
        archive.open_blob(sha256(b"first" * 1000)) as one,
        archive.open_blob(sha256(b"second" * 1000)) as two,
    ):
        assert (one.read(5), two.read(6), one.read(5)) == (b"first", b"second", b"first")
        assert two.seek(-6, io.SEEK_END) == 5994
        assert two.read() == b"second"
        assert one.read() == b"first" * 998
        assert one.seek(10_000) == 10_000
        assert one.read(1) == b""
        assert one.seek(2) == 2
        assert one.seek(1, io.SEEK_CUR) == 3
        assert one.read(2) == b"st"
        with pytest.raises((ValueError, OSError)):
            one.seek(-1)


def test_verify_lists_children_first(layout: Layout, write) -> None:
    """The order is that in which a content store can take them, each once."""
    shared = layer(a="1")
    layout.simple(shared, layer(b="2"), shared)
    archive = write(layout)
    manifest = archive.manifest(only(archive))

    expected = [
        manifest.layers[0].digest,
        manifest.layers[1].digest,
        manifest.config.digest,
        only(archive).digest,
    ]
    assert [each.digest for each in archive.verify(only(archive))] == expected


def test_an_index_of_platforms(layout: Layout, write) -> None:
    """`select` finds a platform's image, `verify` takes that one or all, and the index comes last."""
    parts = {}
    for architecture in ("amd64", "arm64"):
        raw = layer(arch=architecture)
        described = layout.blob(raw, OCI_LAYER)
        config = config_of([raw], architecture=architecture) | {"architecture": architecture}
        platform = {"os": "linux", "architecture": architecture}
        parts[architecture] = layout.image(config, [described], platform=platform)
    index = {"schemaVersion": 2, "manifests": list(parts.values())}
    layout.manifests = [layout.document(index, INDEX_TYPE)]
    archive = write(layout)

    assert archive.select(only(archive), ARM64).digest == parts["arm64"]["digest"]
    assert archive.select(only(archive), AMD64).digest == parts["amd64"]["digest"]
    some = [each.digest for each in archive.verify(only(archive), ARM64)]
    assert some[-2:] == [parts["arm64"]["digest"], only(archive).digest]
    assert len(some) == 4
    assert len(archive.verify(only(archive))) == 7
    with pytest.raises(
        NotFoundError, match=r"has no image for linux/riscv64: it has linux/amd64, linux/arm64$"
    ):
        archive.select(only(archive), Platform.parse("linux/riscv64"))


def test_an_index_may_bring_one_platform_of_many(layout: Layout, write) -> None:
    """As `ctr image export --platform` leaves it: what is missing matters only to who asks for it."""
    layout.simple(LAYER, platform={"os": "linux", "architecture": "amd64"})
    here = layout.manifests.pop()
    absent = {**here, "digest": sha256(b"absent"), "platform": {"os": "linux", "architecture": "arm64"}}
    layout.manifests = [layout.document({"schemaVersion": 2, "manifests": [absent, here]}, INDEX_TYPE)]
    archive = write(layout)

    assert archive.select(only(archive), AMD64).digest == here["digest"]
    assert here["digest"] in [each.digest for each in archive.verify(only(archive))]
    with pytest.raises(InvalidArgumentError, match=f"lacks the blob {sha256(b'absent')}"):
        archive.verify(only(archive), ARM64)


def test_the_best_of_several_platforms_is_selected(layout: Layout, write) -> None:
    """arm/v7 runs v6 and v5 too, and v6 is nearer."""
    for variant in ("v5", "v6"):
        layout.simple(layer(v=variant), platform={"os": "linux", "architecture": "arm", "variant": variant})
    layout.manifests = [layout.document({"schemaVersion": 2, "manifests": layout.manifests}, INDEX_TYPE)]
    archive = write(layout)
    chosen = archive.select(only(archive), Platform.parse("linux/arm/v7"))

    assert str(chosen.platform) == "linux/arm/v6"


def test_a_platform_may_stand_in_the_config_alone(layout: Layout, write) -> None:
    """Most archives of one image do not name it in the index."""
    layout.simple(LAYER)
    archive = write(layout)

    assert archive.select(only(archive), AMD64) == only(archive)
    with pytest.raises(NotFoundError, match="has no image for linux/arm64: it has linux/amd64"):
        archive.select(only(archive), ARM64)


def test_attestations_are_no_images(layout: Layout, write) -> None:
    """BuildKit's provenance beside an image is passed over, though it is a manifest."""
    layout.simple(LAYER)
    unknown = {"os": "unknown", "architecture": "unknown"}
    annotations = {"vnd.docker.reference.type": "attestation-manifest"}
    attestation = layout.image({}, [], annotations=annotations, platform=unknown)
    unmarked = layout.image({"author": "x"}, [], platform=unknown)
    manifests = [attestation, unmarked, *layout.manifests]
    layout.manifests = [layout.document({"manifests": manifests}, INDEX_TYPE)]
    archive = write(layout)

    assert attestation["digest"] not in {each.digest for each in archive.verify(only(archive))}
    assert archive.select(only(archive), AMD64).digest == manifests[-1]["digest"]
    with pytest.raises(NotFoundError, match="it has linux/amd64, unknown/unknown"):
        archive.select(only(archive), ARM64)


def test_a_foreign_layer_may_be_left_out(layout: Layout, write) -> None:
    """Windows' base layers are fetched from elsewhere."""
    foreign = {
        "mediaType": f"{OCI}.layer.nondistributable.v1.tar",
        "digest": sha256(b"w"),
        "size": 1,
        "urls": ["https://x"],
    }
    layout.manifests = [layout.image(config_of([b"w"]), [foreign])]
    archive = write(layout)

    assert archive.manifest(only(archive)).layers[0].urls == ("https://x",)
    assert foreign["digest"] not in {each.digest for each in archive.verify(only(archive))}


def test_sha512_blobs(layout: Layout, write) -> None:
    """The other digest that OCI registers."""
    digest = f"sha512:{hashlib.sha512(LAYER).hexdigest()}"
    layout.blobs[digest] = LAYER
    descriptor = {"mediaType": OCI_LAYER, "digest": digest, "size": len(LAYER)}
    layout.manifests = [layout.image(config_of([LAYER]), [descriptor])]
    archive = write(layout)

    assert archive.verify(only(archive))[0].digest == digest


def test_a_stream_and_a_compressed_archive(layout: Layout, tmp_path: Path) -> None:
    """What cannot be sought in is read by way of a temporary file, which goes when the archive is closed."""
    layout.simple(LAYER)
    raw = gzip.compress(tar(layout.entries()))
    with ImageArchive.from_stream(io.BytesIO(raw), scratch=str(tmp_path)) as archive:
        assert archive.what == "standard input"
        assert len(archive.verify(only(archive))) == 3
    (tmp_path / "a.tar.gz").write_bytes(raw)
    with ImageArchive.open(tmp_path / "a.tar.gz") as archive:
        assert len(archive.verify(only(archive))) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
def test_a_missing_blob_is_named(layout: Layout, write, part: str) -> None:
    """Whichever part is missing, nothing of the image is verified."""
    layout.simple(LAYER)
    manifest = json.loads(layout.blobs[layout.manifests[0]["digest"]])
    digest = {
        "layer": manifest["layers"][0]["digest"],
        "config": manifest["config"]["digest"],
        "manifest": layout.manifests[0]["digest"],
    }[part]
    del layout.blobs[digest]
    archive = write(layout)

    with pytest.raises(InvalidArgumentError, match=rf"^'.*0\.tar' lacks the blob {digest}$"):
        archive.verify(only(archive))


def test_a_changed_blob_is_named(layout: Layout, write) -> None:
    """A digest that does not hold, with the one that it has."""
    layout.simple(LAYER)
    layout.blobs[sha256(LAYER)] = changed = LAYER[:-1] + b"!"
    archive = write(layout)

    with pytest.raises(InvalidArgumentError, match=f"{sha256(LAYER)} has the digest {sha256(changed)}"):
        archive.verify(only(archive))


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_size_is_named(layout: Layout, write, difference: int) -> None:
    """A manifest that lies about a size is refused, even where the digest holds."""
    described = layout.blob(LAYER, OCI_LAYER)
    described["size"] += difference
    layout.manifests = [layout.image(config_of([LAYER]), [described])]
    archive = write(layout)

    message = f"{sha256(LAYER)} has {len(LAYER)} bytes; its descriptor says {len(LAYER) + difference}"
    with pytest.raises(InvalidArgumentError, match=message):
        archive.verify(only(archive))


def test_a_wrong_size_of_a_blob_seen_before_is_named(layout: Layout, write) -> None:
    """Checking each blob once does not let its second mention lie."""
    described = layout.blob(LAYER, OCI_LAYER)
    layout.manifests = [layout.image(config_of([LAYER, LAYER]), [described, {**described, "size": 1}])]
    archive = write(layout)

    with pytest.raises(InvalidArgumentError, match=r"its descriptor says 1$"):
        archive.verify(only(archive))


def test_diff_ids_must_match_layers(layout: Layout, write) -> None:
    """A config for another number of layers is refused before containerd would notice, halfway through unpacking."""
    layout.simple(LAYER, config=config_of([LAYER, LAYER]))
    archive = write(layout)

    with pytest.raises(InvalidArgumentError, match="has 2 diff IDs for 1 layers"):
        archive.verify(only(archive))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"manifests": []}, "is not a manifest: it has 'manifests'|has no 'config'"),
        ({"config": None, "layers": []}, "has no 'config'"),
        ({"config": {}, "layers": []}, r"\.config has no 'mediaType'"),
        ([], r"is \[\], not an object"),
        (
            {"config": {"mediaType": "x", "digest": "sha256:0", "size": 1}},
            "digest is 'sha256:0', not a digest",
        ),
        ({"config": {"mediaType": "x", "digest": "../../x", "size": 1}}, "digest is '../../x', not a digest"),
        ({"config": {"mediaType": "x", "digest": sha256(b""), "size": -1}}, r"size is -1, not a size"),
        (
            {"config": {"mediaType": "x", "digest": sha256(b""), "size": "1"}},
            r'size is "1", not a whole number',
        ),
        ({"config": {"mediaType": "x", "digest": sha256(b""), "size": 2**63}}, r"size does not fit"),
        ({"fsLayers": [{}], "schemaVersion": 1}, "is not a manifest: it has 'fsLayers'"),
    ],
)
def test_malformed_manifests_are_refused(layout: Layout, write, document, reason: str) -> None:
    """Each wrong field is named with the document that it stands in."""
    layout.manifests = [layout.document(document, f"{OCI}.manifest.v1+json")]
    archive = write(layout)

    with pytest.raises(InvalidArgumentError, match=f"{only(archive).digest}.*({reason})"):
        archive.verify(only(archive))


def test_a_document_that_is_both_is_refused(layout: Layout, write) -> None:
    """An index that passes for a manifest too reads differently to different clients (CVE-2021-41190)."""
    descriptor = layout.simple(LAYER)
    both = json.loads(layout.blobs[descriptor["digest"]]) | {"manifests": [descriptor]}
    layout.manifests = [layout.document(both, f"{OCI}.manifest.v1+json"), layout.document(both, INDEX_TYPE)]
    archive = write(layout)

    with pytest.raises(InvalidArgumentError, match="is not a manifest: it has 'manifests'"):
        archive.verify(archive.index.manifests[0])
    with pytest.raises(InvalidArgumentError, match="is not an index: it has 'config'"):
        archive.verify(archive.index.manifests[1])


def test_nested_indexes_have_an_end(layout: Layout, write) -> None:
    """A few levels are followed; a tower of them is refused."""
    layout.simple(LAYER, platform={"os": "linux", "architecture": "amd64"})
    nested = layout.manifests
    for _ in range(4):
        nested = [layout.document({"schemaVersion": 2, "manifests": nested}, INDEX_TYPE)]
    layout.manifests = [*nested, layout.document({"manifests": nested}, INDEX_TYPE)]
    archive = write(layout)

    assert len(archive.verify(archive.index.manifests[0])) == 7
    with pytest.raises(InvalidArgumentError, match="indexes are nested more than 4 deep"):
        archive.candidates(archive.index.manifests[1])


def test_repeated_indexes_are_read_once(layout: Layout, write) -> None:
    """A thousand mentions on each of three levels are not a thousand million reads."""
    layout.simple(LAYER, platform={"os": "linux", "architecture": "amd64"})
    nested = layout.manifests * 1000
    for _ in range(3):
        nested = [layout.document({"manifests": nested}, INDEX_TYPE)] * 1000
    layout.manifests = nested[:1]
    archive = write(layout)

    assert len(archive.candidates(only(archive))) == 1


def test_huge_documents_are_refused_unread(layout: Layout, write) -> None:
    """A manifest or an index of more than the limit is not held in memory."""
    big = layout.blob(b" " * ((8 << 20) + 1), f"{OCI}.manifest.v1+json")
    layout.manifests = [big]
    archive = write(layout)
    with pytest.raises(InvalidArgumentError, match=f"{big['digest']} has 8388609 bytes"):
        archive.verify(only(archive))
    entries = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", b" " * ((8 << 20) + 1))]
    with pytest.raises(InvalidArgumentError, match=r"index\.json has 8388609 bytes"):
        write(entries)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("hello", b"x")], "is no image: it has neither oci-layout nor manifest.json"),
        ([("oci-layout", b"{}")], r"oci-layout has no 'imageLayoutVersion'"),
        ([("oci-layout", b'{"imageLayoutVersion": "2.0"}')], "is of version '2.0', not 1.0.0"),
        ([("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')], "has oci-layout but no index.json"),
        (
            [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", b"[]")],
            r"index\.json is \[\], not an object",
        ),
        (
            [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", b"x")],
            r"index\.json is not valid JSON",
        ),
    ],
)
def test_what_is_no_image_archive_is_refused(write, entries, reason: str) -> None:
    """The message says what is missing or wrong."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InvalidArgumentError, match=reason):
        write(entries)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_other_artifacts_are_no_image(layout: Layout, write) -> None:
    """A manifest whose config is not an image's, such as a Helm chart, verifies but has no config or platform."""
    config = layout.blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    layout.manifests = [layout.document({"config": config, "layers": []}, f"{OCI}.manifest.v1+json")]
    archive = write(layout)

    assert len(archive.verify(only(archive))) == 2
    assert archive.candidates(only(archive))[0].platform is None
    with pytest.raises(
        InvalidArgumentError, match=r"is not an image's config but 'application/vnd\.cncf\.helm"
    ):
        archive.config(archive.manifest(only(archive)))


def test_closing_twice_is_harmless(layout: Layout, tmp_path: Path) -> None:
    """The second call closes nothing, above all no descriptor that has since been given to another file."""
    layout.simple(LAYER)
    archive = ImageArchive.open(layout.write(tmp_path / "a.tar"))
    archive.close()
    fd = os.open(tmp_path, os.O_RDONLY)
    archive.close()

    os.close(fd)
