"""What an archive comes to: names, platforms, labels, and what is refused before anything is stored."""

from __future__ import annotations

import pytest
from handmade_archives import NAME, REF, ArchiveBuilder, small_image

from nixsnap.containerd.plan import plan
from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.archive import ImageArchive
from nixsnap.image.platform import Platform

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


def plan_of(builder: ArchiveBuilder, directory, *, platform=None, ref=None, prefix=""):
    """Write the archive and plan it."""
    with ImageArchive.open(builder.write(directory / "image.tar")) as archive:
        return plan(archive, platform=platform or Platform.host(), ref=ref, prefix=prefix)


def one_image(*, platform: str | None = None, annotations: dict[str, str] | None = None) -> ArchiveBuilder:
    """An archive of one image, listed with `annotations`."""
    builder = ArchiveBuilder()
    manifest = builder.manifest([builder.layer({"f": b"x"})], platform=platform)
    builder.entry(manifest, {NAME: "lab.invalid/one:1"} if annotations is None else annotations)
    return builder


def two_platforms() -> tuple[ArchiveBuilder, dict[str, dict]]:
    """An archive builder with an image of two platforms, not yet listed, and the manifests by platform."""
    builder = ArchiveBuilder()
    manifests = {
        name: builder.manifest([builder.layer({"f": name.encode()})], platform=name)
        for name in ("linux/amd64", "linux/arm64")
    }
    return builder, manifests


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({NAME: "lab.invalid/one:1"}, "lab.invalid/one:1"),
        ({NAME: "lab.invalid/one:1", REF: "1"}, "lab.invalid/one:1"),
        (
            {NAME: "nix:0/nix/store/abc-Image+x.tar:latest", REF: "latest"},
            "nix:0/nix/store/abc-Image+x.tar:latest",
        ),
        ({REF: "lab.invalid/one:1"}, "lab.invalid/one:1"),
        ({REF: "one@sha256:" + "0" * 64}, "one@sha256:" + "0" * 64),
        ({REF: "v1"}, "import-x.tar:v1"),
    ],
)
def test_names(tmp_path, annotations, name):
    """Names are those that `ctr image import` gives, exactly as the archive has them; a bare tag gets a prefix."""
    found = plan_of(one_image(annotations=annotations), tmp_path, prefix="import-x.tar")
    assert [image.name for image in found.images] == [name]


@pytest.mark.parametrize("annotations", [{}, {NAME: ""}, {REF: "v1"}])
def test_no_name(tmp_path, annotations):
    """Without a name, and for a bare tag from a pipe, the way out is --ref."""
    with pytest.raises(InvalidArgumentError, match="does not name its image") as caught:
        plan_of(one_image(annotations=annotations), tmp_path)
    assert "--ref" in caught.value.hint


@pytest.mark.parametrize("name", ["a b", "a\nb", "a\x1b[2Jb", "a" * 1025])
def test_names_that_cannot_be_shown(tmp_path, name):
    """A name that would forge a line or a terminal's screen is refused, and shown escaped."""
    with pytest.raises(InvalidArgumentError, match="is not an image name") as caught:
        plan_of(one_image(annotations={NAME: name}), tmp_path)
    assert caught.value.message.isprintable()


def test_ref_takes_the_place_of_names(tmp_path):
    """--ref is normalised, as CRI and nerdctl will look for it."""
    found = plan_of(one_image(), tmp_path, ref="redis")
    assert [image.name for image in found.images] == ["docker.io/library/redis:latest"]


def test_ref_that_is_none(tmp_path):
    """A reference is checked before anything else."""
    with pytest.raises(InvalidArgumentError, match="not an image reference"):
        plan_of(one_image(), tmp_path, ref="Not A Reference")


def test_ref_for_several_images(tmp_path):
    """One name cannot stand for two images."""
    builder = one_image()
    builder.named(builder.manifest([builder.layer({"g": b"y"})]), "lab.invalid/two:1")
    with pytest.raises(InvalidArgumentError, match="should hold one image"):
        plan_of(builder, tmp_path, ref="lab.invalid/x:1")


def test_two_names_for_one_image(tmp_path):
    """Each name becomes a record, each blob is stored once."""
    builder = ArchiveBuilder()
    manifest = builder.manifest([builder.layer({"f": b"x"})])
    for name in ("lab.invalid/one:1", "lab.invalid/one:latest"):
        builder.named(manifest, name)
    found = plan_of(builder, tmp_path)
    assert [image.name for image in found.images] == ["lab.invalid/one:1", "lab.invalid/one:latest"]
    assert len(found.blobs) == 3
    assert [image.target.annotations[NAME] for image in found.images] == [
        "lab.invalid/one:1",
        "lab.invalid/one:latest",
    ]


def test_one_name_for_two_platforms(tmp_path):
    """Manifests of several platforms under one name, with no index over them: the one that runs here is meant."""
    builder, manifests = two_platforms()
    for manifest in manifests.values():
        builder.named(manifest, "lab.invalid/one:1")
    for platform in (AMD64, ARM64):
        found = plan_of(builder, tmp_path, platform=platform)
        assert found.images[0].target.digest == manifests[str(platform)]["digest"]


def test_one_name_for_two_images(tmp_path):
    """Two images that both run here cannot both have the name."""
    builder = one_image()
    builder.named(builder.manifest([builder.layer({"g": b"y"})]), "lab.invalid/one:1")
    with pytest.raises(InvalidArgumentError, match=r"should hold one image for .* has 2"):
        plan_of(builder, tmp_path)


def test_labels_keep_what_a_manifest_names(tmp_path):
    """containerd's collector follows these labels and no others."""
    builder = small_image(tmp_path / "small.tar")
    found = plan_of(builder, tmp_path)
    image = found.images[0]
    assert found.blobs[-1].digest == image.target.digest
    assert found.blobs[-1].labels == {
        "containerd.io/gc.ref.content.config": image.config.digest,
        "containerd.io/gc.ref.content.l.0": image.layers[0].descriptor.digest,
        "containerd.io/gc.ref.content.l.1": image.layers[1].descriptor.digest,
    }
    assert all(blob.labels == {} for blob in found.blobs[:-1])
    assert {blob.digest for blob in found.blobs} == set(builder.blobs)


def test_labels_of_an_index_name_what_is_stored(tmp_path):
    """Only the platform's manifest is stored; its label has its place in the index, whatever the platform."""
    builder, manifests = two_platforms()
    builder.named(builder.index(list(manifests.values())), "lab.invalid/one:1")
    for place, (platform, manifest) in enumerate(manifests.items()):
        found = plan_of(builder, tmp_path, platform=Platform.parse(platform))
        assert found.blobs[-1].digest == found.images[0].target.digest
        assert found.blobs[-1].labels == {f"containerd.io/gc.ref.content.m.{place}": manifest["digest"]}
        assert len(found.blobs) == 4


def test_another_platform(tmp_path):
    """An image for another machine is refused by name."""
    with pytest.raises(NotFoundError, match="no image for linux/arm64: it has linux/amd64"):
        plan_of(one_image(platform="linux/amd64"), tmp_path, platform=ARM64)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("damage", ["missing", "altered", "cut"])
def test_every_blob_is_verified(tmp_path, victim, damage):
    """Layer, config and manifest: each is missed, and each wrong byte found."""
    builder = one_image()
    digest = list(builder.blobs)[victim]
    data = builder.blobs.pop(digest)
    if damage != "missing":
        builder.blobs[digest] = data[:-1] + (bytes([data[-1] ^ 1]) if damage == "altered" else b"")
    with pytest.raises(InvalidArgumentError, match=digest):
        plan_of(builder, tmp_path)


def test_diff_ids_must_match_the_layers(tmp_path):
    """A config for another number of layers is a lie."""
    builder = ArchiveBuilder()
    layers = [builder.layer({"f": b"x"}), builder.layer({"g": b"y"})]
    builder.named(builder.manifest(layers, diff_ids=["sha256:" + "0" * 64]), "lab.invalid/one:1")
    with pytest.raises(InvalidArgumentError, match="1 diff IDs for 2 layers"):
        plan_of(builder, tmp_path)


@pytest.mark.parametrize(("length", "fits"), [(4096, True), (4097, False)])
def test_annotations_that_are_too_long_for_labels(tmp_path, length, fits):
    """containerd would refuse the label (labels.Validate: 4096 bytes) when the blobs are stored already."""
    name = "containerd.io/snapshot/x"
    builder = ArchiveBuilder()
    layer = builder.layer({"f": b"x"}, **{name: "é" * ((length - len(name)) // 2) + "x" * (length % 2)})
    builder.named(builder.manifest([layer]), "lab.invalid/one:1")
    if fits:
        plan_of(builder, tmp_path)
    else:
        with pytest.raises(InvalidArgumentError, match="containerd's labels end at 4096"):
            plan_of(builder, tmp_path)


def test_long_annotations_that_stay_annotations(tmp_path):
    """What does not become a label has no such limit."""
    builder = ArchiveBuilder()
    builder.named(builder.manifest([builder.layer({"f": b"x"}, note="n" * 10_000)]), "lab.invalid/one:1")
    assert plan_of(builder, tmp_path).images[0].layers[0].snapshot_labels.keys() == {
        "containerd.io/snapshot.ref"
    }


def test_foreign_layer_that_is_not_there(tmp_path):
    """A layer that only a registry has cannot be unpacked."""
    builder = ArchiveBuilder()
    layer = builder.layer({"f": b"x"})
    foreign = {**layer, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}
    builder.named(builder.manifest([foreign]), "lab.invalid/one:1")
    del builder.blobs[layer["digest"]]
    with pytest.raises(InvalidArgumentError, match=f"lacks the layer {layer['digest']}"):
        plan_of(builder, tmp_path)
