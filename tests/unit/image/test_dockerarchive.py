"""Tests of `docker save` archives, of every layout that there has been, read by `nixsnap.image.archive`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from imagekit import NAMES, OCI_LAYER, config_of, docker_archive, layer, link, sha256, tar

from nixsnap.containerd.plan import plan
from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests, document
from nixsnap.image.archive import ImageArchive
from nixsnap.image.platform import Platform

ONE, TWO = layer(one="1"), layer(two="2")
IMAGE = {"config": config_of([ONE, TWO]), "layers": [ONE, TWO], "tags": ["app:1"]}


@pytest.fixture
def write(tmp_path: Path):
    opened: list[ImageArchive] = []

    def open_archive(entries: list) -> ImageArchive:
        path = tmp_path / f"{len(opened)}.tar"
        path.write_bytes(tar(entries))
        opened.append(ImageArchive.open(path))
        return opened[-1]

    yield open_archive
    for archive in opened:
        archive.close()


def test_becomes_an_oci_image(write) -> None:
    """Names are normalised as containerd does, layers keep their order, and all of it verifies."""
    archive = write(docker_archive([IMAGE]))
    (descriptor,) = archive.index.manifests
    manifest = archive.manifest(descriptor)

    assert descriptor.annotations == {NAMES[0]: "docker.io/library/app:1", NAMES[1]: "1"}
    assert descriptor.platform == Platform.parse("linux/amd64")
    assert [(each.media_type, each.digest, each.size) for each in manifest.layers] == [
        (OCI_LAYER, sha256(raw), len(raw)) for raw in (ONE, TWO)
    ]
    assert len(archive.verify(descriptor)) == 4
    assert archive.config(manifest).diff_ids == (sha256(ONE), sha256(TWO))


def test_the_config_stays_byte_for_byte(write) -> None:
    """What we know nothing of survives, and the image ID with it."""
    config = config_of([ONE, TWO], docker_version="1.0", container_config={"Hostname": "x"})
    archive = write(docker_archive([{**IMAGE, "config": config}]))
    manifest = archive.manifest(archive.index.manifests[0])

    assert manifest.config.digest == sha256(json.dumps(config).encode())


def test_a_config_is_read_once(write, monkeypatch) -> None:
    """However often manifest.json names it: that costs its writer a few bytes a time, and us the whole config."""
    read = []
    parse = document.parse
    monkeypatch.setattr(document, "parse", lambda raw, what: read.append(what) or parse(raw, what))
    archive = write(docker_archive([{**IMAGE, "tags": [f"app:{number}"]} for number in range(5)]))

    assert len(archive.index.manifests) == 5
    assert sum("manifest.json" not in what and "index.json" not in what for what in read) == 1


def test_layers_of_several_names_are_verified_once(write, monkeypatch) -> None:
    """A name more costs an archive's writer a line, and would cost us all the layers."""
    archive = write(docker_archive([{**IMAGE, "tags": ["app:1", "app:2"]}, {**IMAGE, "tags": ["other:1"]}]))
    read = []
    of_stream = digests.of_stream
    monkeypatch.setattr(
        digests, "of_stream", lambda stream, **how: read.append(1) or of_stream(stream, **how)
    )
    planned = plan(archive, platform=Platform.parse("linux/amd64"), ref=None, prefix="")

    assert [image.name for image in planned.images] == [
        f"docker.io/library/{name}" for name in ("app:1", "app:2", "other:1")
    ]
    assert len(read) == 3  # two layers and the config


def test_each_name_is_in_the_index(write) -> None:
    """One image of two names, and one without."""
    images = [
        {**IMAGE, "tags": ["a:1", "ghcr.io/b"]},
        {"config": config_of([ONE]), "layers": [ONE], "tags": None},
    ]
    archive = write(docker_archive(images))

    names = [each.annotations.get(NAMES[0]) for each in archive.index.manifests]
    assert names == ["docker.io/library/a:1", "ghcr.io/b:latest", None]
    assert len({each.digest for each in archive.index.manifests}) == 2


def test_compressed_layers_are_kept(write) -> None:
    """nixpkgs can write gzip or zstd layers; the media type says so and the blob is as it was."""
    zstandard = pytest.importorskip("zstandard", reason="zstd data is made with the package zstandard")
    packed = [gzip.compress(ONE), zstandard.ZstdCompressor().compress(TWO), b""]
    config = config_of([ONE, TWO, b""])
    archive = write(docker_archive([{"config": config, "layers": packed}]))
    layers = archive.manifest(archive.index.manifests[0]).layers

    types = [f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd", OCI_LAYER]
    assert [(each.media_type, each.digest) for each in layers] == list(
        zip(types, map(sha256, packed), strict=True)
    )


def test_layers_that_are_links(write) -> None:
    """`docker save` of old wrote a shared layer once and linked to it; names may begin with `./`."""
    config = json.dumps(config_of([ONE, ONE])).encode()
    listing = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    entries = [("./a/layer.tar", ONE), link("./b/layer.tar", "../a/layer.tar")]
    archive = write([*entries, ("./c.json", config), ("./manifest.json", json.dumps(listing).encode())])

    assert [each.digest for each in archive.manifest(archive.index.manifests[0]).layers] == [sha256(ONE)] * 2


def test_an_oci_layout_beside_it_counts(write) -> None:
    """Docker 25 and later, and we, write both; the layout is the one that has digests."""
    layout = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", b'{"manifests": []}')]

    assert write([*docker_archive([IMAGE]), *layout]).index.manifests == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Config": "absent.json"}, r"lacks the config 'absent\.json' that manifest\.json names"),
        ({"Config": "../../etc/passwd"}, r"lacks the config '\.\./\.\./etc/passwd'"),
        ({"Layers": ["absent", "x"]}, "lacks the layer 'absent'"),
        ({"Layers": ["/etc/passwd", "x"]}, "lacks the layer '/etc/passwd'"),
        ({"Layers": []}, r"manifest\.json\[0\] has 0 layers, and its config 2 diff IDs"),
        ({"RepoTags": ["Not A Name"]}, "'Not A Name' is not an image reference"),
        ({"RepoTags": "x"}, r'RepoTags is "x", not an array'),
        ({"Config": 1}, r"Config is 1, not a string"),
        ({"Config": None}, r"manifest\.json\[0\] has no 'Config'"),
    ],
)
def test_a_bad_listing_is_refused(write, change, reason: str) -> None:
    """What manifest.json says wrongly is named; a name in it never leads out of the archive."""
    *files, (name, raw) = docker_archive([IMAGE])
    listing = json.loads(raw)
    listing[0] |= change
    with pytest.raises(InvalidArgumentError, match=reason):
        write([*files, (name, json.dumps(listing).encode())])


def test_a_layer_that_is_not_its_diff_id_is_refused(write) -> None:
    """A layer without compression is known by its config."""
    image = {**IMAGE, "layers": [ONE, ONE + b"!"]}
    reason = f"has the digest {sha256(ONE + b'!')}; its config says {sha256(TWO)}"
    with pytest.raises(InvalidArgumentError, match=reason):
        write(docker_archive([image]))


@pytest.mark.parametrize("raw", [b"{}", b"x", b'[{"Config": "c"}', b"[1]"])
def test_a_malformed_listing_is_refused(write, raw: bytes) -> None:
    """manifest.json is an array of objects."""
    with pytest.raises(InvalidArgumentError, match=r"manifest\.json"):
        write([("manifest.json", raw)])
