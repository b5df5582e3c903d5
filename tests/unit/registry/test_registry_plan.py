"""Tests of `nixsnap.registry.plan`: what of which archives is pushed, and in which order."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from imagekit import OCI, Layout, config_of, layer, sha256, tar

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.archive import ImageArchive
from nixsnap.image.reference import Reference
from nixsnap.registry.plan import Plan, plan

INDEX = f"{OCI}.index.v1+json"
REF = Reference.parse("r.invalid/team/app:1")


@pytest.fixture
def open_archive(tmp_path: Path):
    """Writes a layout and opens it."""
    opened: list[ImageArchive] = []

    def open_one(layout: Layout) -> ImageArchive:
        opened.append(ImageArchive.open(layout.write(tmp_path / f"{len(opened)}.tar")))
        return opened[-1]

    yield open_one
    for archive in opened:
        archive.close()


def image(layout: Layout, text: str, *, architecture: str = "amd64", **fields: object) -> dict:
    layers = [layer(file=text)]
    return layout.simple(*layers, config=config_of(layers, architecture=architecture), **fields)


def single(text: str = "x", architecture: str = "amd64", **fields: object) -> Layout:
    layout = Layout()
    image(layout, text, architecture=architecture, **fields)
    return layout


def with_index(*, attested: bool = False) -> Layout:
    """A layout that lists one index of two images, and perhaps an attestation for the first."""
    layout = Layout()
    children = []
    for architecture in ("amd64", "arm64"):
        image(layout, architecture, architecture=architecture)
        children.append(layout.manifests.pop() | {"platform": {"os": "linux", "architecture": architecture}})
    if attested:
        image(layout, "statement", architecture="unknown")
        unknown = {"os": "unknown", "architecture": "unknown"}
        kind = {"vnd.docker.reference.type": "attestation-manifest"}
        children.append(layout.manifests.pop() | {"platform": unknown, "annotations": kind})
    layout.manifests = [layout.document({"schemaVersion": 2, "manifests": children}, INDEX)]
    return layout


def platforms(planned: Plan) -> list[str]:
    index = json.loads(planned.documents[-1].raw)
    return [
        "/".join(filter(None, (each["platform"]["architecture"], each["platform"].get("variant"))))
        for each in index["manifests"]
    ]


def is_in_order(planned: Plan) -> bool:
    """Whether everything is there before it is named."""
    there = {blob.digest for blob in planned.blobs}
    for document in planned.documents:
        fields = json.loads(document.raw)
        named = [
            *fields.get("layers", []),
            *fields.get("manifests", []),
            *filter(None, [fields.get("config")]),
        ]
        if not {each["digest"] for each in named} <= there:
            return False
        there.add(document.digest)
    return True


def test_one_image(open_archive):
    """Its manifest as it stands, and its blobs, which can be read again and again."""
    layout = single()
    planned = plan([open_archive(layout)], REF)
    (document,) = planned.documents
    assert (planned.digest, document.media_type) == (layout.manifests[0]["digest"], f"{OCI}.manifest.v1+json")
    assert document.raw == layout.blobs[planned.digest]
    assert {blob.digest for blob in planned.blobs} == set(layout.blobs) - {planned.digest}
    for blob in planned.blobs:
        for _ in range(2):
            with blob.open() as stream:
                assert stream.read() == layout.blobs[blob.digest]
        assert blob.size_bytes == len(layout.blobs[blob.digest])
    assert is_in_order(planned)


def test_one_image_of_two_names(open_archive):
    """Is one."""
    layout = single(name="r.invalid/a:1")
    layout.manifests.append(
        layout.manifests[0] | {"annotations": {"io.containerd.image.name": "r.invalid/b:1"}}
    )
    assert len(plan([open_archive(layout)], REF).documents) == 1


@pytest.mark.parametrize("attested", [False, True])
def test_index(open_archive, attested):
    """Goes as it is, with all that it names."""
    layout = with_index(attested=attested)
    planned = plan([open_archive(layout)], REF)
    assert planned.documents[-1].raw == layout.blobs[layout.manifests[0]["digest"]]
    assert {each.digest for each in (*planned.blobs, *planned.documents)} == set(layout.blobs)
    assert is_in_order(planned)


def test_index_of_indexes(open_archive):
    """Likewise."""
    layout = with_index()
    inner = layout.manifests[0]
    layout.manifests = [layout.document({"schemaVersion": 2, "manifests": [inner, inner]}, INDEX)]
    planned = plan([open_archive(layout)], REF)
    assert {each.digest for each in (*planned.blobs, *planned.documents)} == set(layout.blobs)
    assert is_in_order(planned)


def test_index_without_some_of_its_images(open_archive):
    """As `ctr image export --platform` leaves it: what there is is pushed, since a registry wants all of an index."""
    layout = with_index()
    children = json.loads(layout.blobs[layout.manifests[0]["digest"]])["manifests"]
    del layout.blobs[children[1]["digest"]]
    planned = plan([open_archive(layout)], REF)
    assert [each.digest for each in planned.documents] == [children[0]["digest"]]


def test_several_archives(open_archive):
    """Make an index, in the order in which they were given; the same bytes each time."""
    archives = [open_archive(single("x", architecture)) for architecture in ("arm64", "amd64")]
    planned = plan(archives, REF)
    assert platforms(planned) == ["arm64", "amd64"]
    assert planned.documents[-1].media_type == INDEX
    assert planned.digest == sha256(planned.documents[-1].raw)
    assert plan(archives, REF).documents == planned.documents
    assert is_in_order(planned)
    assert len(planned.blobs) == 3  # one layer is the same in both


def test_several_images_in_one_archive(open_archive):
    """Likewise."""
    layout = single("x", "amd64")
    image(layout, "x", architecture="arm64")
    assert platforms(plan([open_archive(layout)], REF)) == ["amd64", "arm64"]


def test_archive_with_an_index_and_another_one(open_archive):
    """All images are in one new index; the old one is not pushed."""
    planned = plan([open_archive(with_index(attested=True)), open_archive(single("x", "riscv64"))], REF)
    assert platforms(planned) == ["amd64", "arm64", "riscv64"]
    assert len(planned.documents) == 4


def test_same_image_in_two_archives(open_archive):
    """Is one."""
    assert len(plan([open_archive(single()), open_archive(single())], REF).documents) == 1


def test_two_images_for_one_platform(open_archive):
    """Are an error that names both."""
    first, second = open_archive(single("x")), open_archive(single("y"))
    with pytest.raises(
        InvalidArgumentError, match=r"has two images for linux/amd64: sha256:.* and sha256:"
    ) as caught:
        plan([first, second], REF)
    assert first.what in str(caught.value)
    assert second.what in str(caught.value)


def test_image_without_a_platform(open_archive):
    """Can be pushed alone, and not as one of several."""
    layout, layers = Layout(), [layer(file="x")]
    layout.simple(*layers, config=config_of(layers, architecture="", os=""))
    unnamed = open_archive(layout)
    assert len(plan([unnamed], REF).documents) == 1
    with pytest.raises(InvalidArgumentError, match="does not say what platform it is for"):
        plan([unnamed, open_archive(single("y"))], REF)


def test_nothing_to_push(open_archive):
    """Neither an empty archive nor one of something else."""
    with pytest.raises(InvalidArgumentError, match="has no image that could be pushed"):
        plan([open_archive(Layout())], REF)
    layout = Layout()
    layout.manifests.append(layout.blob(b"x", "application/x-unknown"))
    with pytest.raises(InvalidArgumentError, match="has no image that could be pushed"):
        plan([open_archive(layout)], REF)


def test_indexes_too_deep(open_archive):
    """Are refused, not followed."""
    layout = with_index()
    for _ in range(20):
        layout.manifests = [layout.document({"schemaVersion": 2, "manifests": layout.manifests}, INDEX)]
    with pytest.raises(InvalidArgumentError, match="nested more than"):
        plan([open_archive(layout)], REF)


def test_index_that_names_one_many_times(open_archive):
    """And that in an index named as often: each is looked at once, not some ten thousand million times."""
    layout = with_index()
    for _ in range(3):
        many = layout.manifests * 2000
        layout.manifests = [layout.document({"schemaVersion": 2, "manifests": many}, INDEX)]
    assert len(plan([open_archive(layout)], REF).documents) == 6


def test_bad_blob(open_archive):
    """Is found before anything is planned."""
    layout = single()
    victim = json.loads(layout.blobs[layout.manifests[0]["digest"]])["layers"][0]
    layout.blobs[victim["digest"]] = b"x" * victim["size"]
    with pytest.raises(InvalidArgumentError, match=victim["digest"]):
        plan([open_archive(layout)], REF)


def test_foreign_layer(open_archive):
    """What the archive leaves out is left out; the registry has it from elsewhere."""
    layout = Layout()
    raw = tar([("x", b"y")])
    foreign = layout.blob(raw, f"{OCI}.layer.nondistributable.v1.tar", urls=["https://elsewhere.invalid/"])
    layout.manifests.append(layout.image(config_of([raw]), [foreign]))
    del layout.blobs[foreign["digest"]]
    assert foreign["digest"] not in {blob.digest for blob in plan([open_archive(layout)], REF).blobs}


def test_docker_archive(tmp_path):
    """Has no manifest of its own; one is made."""
    from imagekit import docker_archive  # noqa: PLC0415

    raw = layer(file="x")
    path = tmp_path / "docker.tar"
    path.write_bytes(tar(docker_archive([{"config": config_of([raw]), "layers": [raw], "tags": ["a:1"]}])))
    assert tarfile.is_tarfile(path)
    with ImageArchive.open(path) as archive:
        planned = plan([archive], REF)
        assert is_in_order(planned)
        assert len(planned.blobs) == 2


def test_digest_in_the_reference(open_archive):
    """Must be that of what is pushed."""
    layout = single()
    archive = open_archive(layout)
    digest = layout.manifests[0]["digest"]
    assert plan([archive], Reference.parse(f"r.invalid/a@{digest}")).digest == digest
    with pytest.raises(InvalidArgumentError, match=f"what would be pushed has the digest {digest}"):
        plan([archive], Reference.parse(f"r.invalid/a@{sha256(b'')}"))


def test_store_path_is_no_registry(open_archive):
    """What CRI pulls by store path is not to be pushed there."""
    reference = Reference.parse("nix:0/nix/store/b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z-nix-image-redis.tar")
    with pytest.raises(InvalidArgumentError, match="names a store path"):
        plan([open_archive(single())], reference)


@pytest.mark.parametrize(
    ("annotations", "flags", "expected"),
    [
        ({}, [], ""),
        ({}, ["base"], "base"),
        ({}, ["other/app", "team/base", "base"], "team/base"),
        ({}, ["team/app"], ""),
        ({"io.containerd.image.name": "r.invalid/other:1"}, [], "other"),
        ({"io.containerd.image.name": "r.invalid/other:1"}, ["base"], "base"),
        ({"io.containerd.image.name": "else.invalid/other:1"}, [], ""),
        ({"io.containerd.image.name": "r.invalid/team/app:0"}, [], ""),
        ({"io.containerd.image.name": "nix:0/nix/store/x:1"}, [], ""),
        ({"containerd.io/distribution.source.r.invalid": "a/b,team/c,d"}, [], "team/c"),
        ({"containerd.io/distribution.source.else.invalid": "a/b"}, [], ""),
        ({"containerd.io/distribution.source.r.invalid": "x:pull repository:y:push,,../z"}, [], ""),
    ],
)
def test_repository_to_mount_from(open_archive, annotations, flags, expected):
    """The one that is called most like ours: of those given, else of those that the archive tells of."""
    layout = single()
    layout.manifests[0]["annotations"] = annotations
    planned = plan([open_archive(layout)], REF, mount_from=flags)
    assert {blob.mount_from for blob in planned.blobs} == {expected}
