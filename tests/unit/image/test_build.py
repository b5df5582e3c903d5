"""Tests of `nixsnap.image.build`, with a store of the test's own, and of base images."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from imagekit import NAMES, OCI, OCI_LAYER, FakeStore, Layout, config_of, docker_archive, layer, sha256, tar

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image import assemble, build
from nixsnap.image.archive import ImageArchive
from nixsnap.image.build import Request
from nixsnap.image.closure import AnnotationForm, Closure
from nixsnap.image.layer import Layer
from nixsnap.image.oci import Manifest
from nixsnap.image.platform import Platform
from nixsnap.image.reference import Reference
from nixsnap.nix.storepath import StorePath

CLOSURE = "containerd.io/snapshot/nix-closure"
LAYER = "containerd.io/snapshot/nix-layer"
PATH = "containerd.io/snapshot/nix-store-path."
AMD64 = Platform.parse("linux/amd64")
BASE_LAYER = layer(etc="base")


@attrs.define
class Kit:
    """Builds in a directory, with a store beside it."""

    store: FakeStore
    directory: Path

    def file(self, name: str, value: Any) -> str:
        path = self.directory / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)

    def build(self, *, name: str = "out.tar", **fields: Any) -> Path:
        out = self.directory / name
        defaults = {
            "reference": Reference.parse("x.invalid/app:1"),
            "platform": AMD64,
            "store_dir": self.store.dir,
        }
        build.build(Request(out=str(out), **(defaults | fields)))
        return out

    def base(self, entries: list | None = None) -> str:
        entries = entries or docker_archive(
            [{"config": config_of([BASE_LAYER]), "layers": [BASE_LAYER], "tags": ["base:1"]}]
        )
        path = self.directory / "base.tar"
        path.write_bytes(tar(entries))
        return str(path)


@pytest.fixture
def kit(store: FakeStore, tmp_path: Path) -> Kit:
    directory = tmp_path / "work"
    directory.mkdir()
    return Kit(store, directory)


def read(out: Path) -> tuple[Manifest, dict[str, Any], dict[str, bytes]]:
    """Verify an archive; return its manifest, its config and every file in it."""
    with ImageArchive.open(out) as archive:
        (descriptor,) = archive.index.manifests
        archive.verify(descriptor)
        manifest = archive.manifest(descriptor)
        config = json.loads(archive.read_document(manifest.config))
    with tarfile.open(out) as plain:
        files = {each.name: plain.extractfile(each).read() for each in plain.getmembers() if each.isreg()}
    return manifest, config, files


def layer_names(files: dict[str, bytes], digest: str) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(files[f"blobs/{digest.replace(':', '/')}"])) as content:
        return content.getnames()


def test_the_archive_is_a_layout_and_dockers(kit: Kit) -> None:
    """Both listings name the image and its blobs; entries are in order, root's, and dated 1970."""
    info = kit.store.add_closure_info([kit.store.add("a", {})])
    out = kit.build(closure=info)
    manifest, _, files = read(out)
    index, docker = json.loads(files["index.json"]), json.loads(files["manifest.json"])

    assert index["manifests"][0]["annotations"] == {NAMES[0]: "x.invalid/app:1", NAMES[1]: "1"}
    assert index["manifests"][0]["platform"] == {"architecture": "amd64", "os": "linux"}
    assert index["mediaType"] == f"{OCI}.index.v1+json"
    assert files["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'
    blob = "blobs/{}".format
    assert docker == [
        {
            "Config": blob(manifest.config.digest.replace(":", "/")),
            "RepoTags": ["x.invalid/app:1"],
            "Layers": [blob(manifest.layers[0].digest.replace(":", "/"))],
        }
    ]
    with tarfile.open(out) as archive:
        members = archive.getmembers()
    assert [each.name for each in members] == sorted(each.name for each in members)
    assert [each.name for each in members if each.isdir()] == ["blobs", "blobs/sha256"]
    assert {(each.uid, each.gid, each.mtime) for each in members} == {(0, 0, 0)}


def test_a_hub_image_has_its_familiar_name_for_docker(kit: Kit) -> None:
    """containerd's name is the long one, Docker's the short one."""
    files = read(kit.build(reference=Reference.parse("redis")))[2]

    assert (
        json.loads(files["index.json"])["manifests"][0]["annotations"][NAMES[0]]
        == "docker.io/library/redis:latest"
    )
    assert json.loads(files["manifest.json"])[0]["RepoTags"] == ["redis:latest"]


def test_nothing_given_is_an_empty_image(kit: Kit) -> None:
    """Every input may be left out."""
    manifest, config, files = read(kit.build())

    assert layer_names(files, manifest.layers[0].digest) == []
    assert manifest.layers[0].annotations == {}
    assert config == {
        "created": "1970-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(bytes(1024))]},
        "history": [
            {"created": "1970-01-01T00:00:00Z", "created_by": "nix2container build", "comment": "nix layer"}
        ],
    }


def test_inputs_come_together(kit: Kit) -> None:
    """Closure, roots and config each find their place."""
    root = kit.store.add("root", {"bin": {"sh": "x"}})
    info = kit.store.add_closure_info([root])
    manifest, config, files = read(
        kit.build(
            closure=info,
            copy_to_root=kit.file("roots.json", [root]),
            config=kit.file("config.json", {"entrypoint": ["/bin/sh"]}),
        )
    )

    assert config["config"] == {"Entrypoint": ["/bin/sh"]}
    assert manifest.layers[0].media_type == f"{OCI_LAYER}+gzip"
    assert manifest.layers[0].annotations == {CLOSURE: info}
    names = layer_names(files, manifest.layers[0].digest)
    assert {"bin", "bin/sh", root.lstrip("/")} <= set(names)


@pytest.mark.parametrize("form", list(AnnotationForm))
def test_each_form_of_annotations(kit: Kit, form: AnnotationForm) -> None:
    """What is asked for is written; the layer is the same."""
    path = kit.store.add("a", {})
    info = kit.store.add_closure_info([path])
    layer_annotations = read(kit.build(closure=info, annotations=form))[0].layers[0].annotations
    legacy = {LAYER: "true", f"{PATH}0": path}

    assert (
        layer_annotations
        == {
            AnnotationForm.CLOSURE: {CLOSURE: info},
            AnnotationForm.LEGACY: legacy,
            AnnotationForm.BOTH: {CLOSURE: info, **legacy},
        }[form]
    )


def test_the_legacy_form_leaves_the_config_out(kit: Kit) -> None:
    """As the Go tool does; with closureInfo each path that it lists needs its mount point."""
    config, path = kit.store.add("config.json", "{}"), kit.store.add("a", {})
    info = kit.store.add_closure_info([config, path])
    mere_list = kit.file("list", f"{config}\n{path}\n")
    for closure, form, expected in (
        (mere_list, None, [path]),
        (info, AnnotationForm.LEGACY, [path]),
        (info, AnnotationForm.BOTH, [config, path]),
        (info, None, [config, path]),
    ):
        manifest, _, files = read(kit.build(closure=closure, config=config, annotations=form))
        names = layer_names(files, manifest.layers[0].digest)
        assert [f"/{name}" for name in names if f"/{name}" in {config, path}] == expected
        annotated = [value for key, value in manifest.layers[0].annotations.items() if key.startswith(PATH)]
        assert annotated == ([] if form is None and closure == info else expected)


def test_the_bytes_depend_on_the_inputs_alone(kit: Kit, monkeypatch) -> None:
    """Neither on the name of the archive nor on clock, umask, directory or the order of a directory's files."""
    root = kit.store.add("root", {name: name for name in "zyxabc"})
    fields = {
        "closure": kit.store.add_closure_info([root]),
        "copy_to_root": kit.file("roots.json", [root]),
        "from_image": kit.base(),
        "config": kit.file("config.json", {"Labels": {"b": "1", "a": "2"}, "Env": ["A=1"]}),
        "annotations": AnnotationForm.BOTH,
    }
    first = kit.build(**fields).read_bytes()
    real_scandir = os.scandir
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.chdir("/")

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is open."""

    def scandir(path):
        with real_scandir(path) as entries:
            return Reversed(reversed(list(entries)))

    monkeypatch.setattr(os, "scandir", scandir)
    umask = os.umask(0o077)
    try:
        fields["config"] = kit.file("other.json", {"env": ["A=1"], "labels": {"a": "2", "b": "1"}})
        again = kit.build(name="other.tar", **fields).read_bytes()
    finally:
        os.umask(umask)

    assert again == first


def test_on_a_base_image(kit: Kit) -> None:
    """Its layers come first as they are, config and history are built upon, and its blobs are in the archive."""
    history = [{"created_by": "one"}, {"created_by": "env", "empty_layer": True}]
    config = config_of([BASE_LAYER], config={"Env": ["PATH=/bin"], "Cmd": ["sh"]}, history=history)
    base = kit.base(docker_archive([{"config": config, "layers": [BASE_LAYER], "tags": ["base:1"]}]))
    own = kit.file("config.json", {"Env": ["A=1"]})
    manifest, config, files = read(kit.build(from_image=base, config=own))

    assert manifest.layers[0].digest == sha256(BASE_LAYER)
    assert files[f"blobs/sha256/{sha256(BASE_LAYER)[7:]}"] == BASE_LAYER
    assert manifest.layers[0].media_type == OCI_LAYER
    assert manifest.layers[0].annotations == {}
    assert config["config"] == {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"]}
    assert config["rootfs"]["diff_ids"][0] == sha256(BASE_LAYER)
    assert len(config["rootfs"]["diff_ids"]) == 2
    assert [each["created_by"] for each in config["history"]] == ["one", "env", "nix2container build"]


def test_an_image_of_ours_as_base_keeps_its_closure(kit: Kit) -> None:
    """Its nix layer's annotations survive, and so does its blob; a base may be compressed as a whole."""
    one, two = (kit.store.add_closure_info([kit.store.add(name, {})]) for name in ("one", "two"))
    lower = kit.build(closure=one, name="lower.tar")
    packed = kit.directory / "lower.tar.gz"
    packed.write_bytes(gzip.compress(lower.read_bytes()))
    for base in (lower, packed):
        manifest = read(kit.build(closure=two, from_image=str(base)))[0]
        assert [each.annotations for each in manifest.layers] == [{CLOSURE: one}, {CLOSURE: two}]


def test_docker_media_types_of_a_base_become_ocis(kit: Kit) -> None:
    """By what the layer is, where Docker's type leaves that open."""
    docker = "application/vnd.docker.image.rootfs.diff.tar"
    packed = gzip.compress(BASE_LAYER)
    layout = Layout()
    typed = [
        (BASE_LAYER, docker),
        (packed, docker),
        (packed, f"{docker}.gzip"),
        (packed, f"{OCI_LAYER}+gzip+encrypted"),
    ]
    described = [layout.blob(raw, media_type, annotations={"k": media_type}) for raw, media_type in typed]
    manifest_type = "application/vnd.docker.distribution.manifest.v2+json"
    layout.manifests = [
        layout.image(config_of([BASE_LAYER, packed, packed, packed]), described, media_type=manifest_type)
    ]
    manifest, _, files = read(kit.build(from_image=kit.base(layout.entries())))

    types = [each.media_type for each in manifest.layers[:-1]]
    assert types == [OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+gzip+encrypted"]
    assert [each.annotations["k"] for each in manifest.layers[:-1]] == [media_type for _, media_type in typed]
    assert manifest.media_type == f"{OCI}.manifest.v1+json"
    assert files[f"blobs/sha256/{sha256(packed)[7:]}"] == packed


def test_the_platform_chooses_the_base(kit: Kit) -> None:
    """Of an index of several, at any depth; the result is for that platform, and keeps the base's OS version."""
    layout = Layout()
    for architecture in ("amd64", "arm64"):
        raw = layer(arch=architecture)
        config = {**config_of([raw]), "architecture": architecture, "os.version": "10.0"}
        layout.simple(raw, config=config, platform={"os": "linux", "architecture": architecture})
    layout.manifests = [layout.document({"manifests": layout.manifests}, f"{OCI}.index.v1+json")]
    base = kit.base(layout.entries())
    manifest, config, _ = read(kit.build(from_image=base, platform=Platform.parse("linux/arm64")))

    assert manifest.layers[0].digest == sha256(layer(arch="arm64"))
    assert (config["architecture"], config["os.version"]) == ("arm64", "10.0")
    with pytest.raises(NotFoundError, match=r"is not for linux/riscv64: it has linux/amd64, linux/arm64$"):
        kit.build(from_image=base, platform=Platform.parse("linux/riscv64"))


def test_a_lower_variant_is_a_base_but_another_architecture_is_not(kit: Kit) -> None:
    """arm/v6 code runs in an arm/v7 image, whose variant stays; 386 is no base for amd64, though it would run."""
    layout = Layout()
    layout.simple(BASE_LAYER, config=config_of([BASE_LAYER], variant="v6") | {"architecture": "arm"})
    config = read(kit.build(from_image=kit.base(layout.entries()), platform=Platform.parse("linux/arm/v7")))[
        1
    ]
    assert (config["architecture"], config["variant"]) == ("arm", "v7")

    layout = Layout()
    layout.simple(BASE_LAYER, config=config_of([BASE_LAYER]) | {"architecture": "386"})
    with pytest.raises(NotFoundError, match="is not for linux/amd64: it has linux/386"):
        kit.build(from_image=kit.base(layout.entries()))


def test_several_images_for_a_platform_are_named(kit: Kit) -> None:
    """Which of `docker save a b` is meant cannot be guessed; two names of one image are one."""
    one = {"config": config_of([BASE_LAYER]), "layers": [BASE_LAYER], "tags": ["a:1", "b:1"]}
    other = {"config": config_of([BASE_LAYER], author="x"), "layers": [BASE_LAYER], "tags": ["c:1"]}

    kit.build(from_image=kit.base(docker_archive([one])))
    names = "docker.io/library/a:1 or docker.io/library/b:1, docker.io/library/c:1"
    with pytest.raises(InvalidArgumentError, match=f"has several images for linux/amd64: {names}$"):
        kit.build(from_image=kit.base(docker_archive([one, other])))


def test_a_base_without_history_gets_one(kit: Kit) -> None:
    """Docker pairs entries and layers, so that each layer must have one."""
    history = read(kit.build(from_image=kit.base()))[1]["history"]

    assert [each["comment"] for each in history] == ["base image", "nix layer"]


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_base_leaves_nothing(kit: Kit, part: str, damage: str) -> None:
    """Every blob of it is checked, a layer while it is copied; nothing new is in the directory."""
    layout = Layout()
    layout.simple(BASE_LAYER)
    manifest = json.loads(layout.blobs[layout.manifests[0]["digest"]])
    digest = {
        "layer": sha256(BASE_LAYER),
        "config": manifest["config"]["digest"],
        "manifest": layout.manifests[0]["digest"],
    }[part]
    if damage == "missing":
        del layout.blobs[digest]
    else:
        layout.blobs[digest] = layout.blobs[digest][:-1] + b"!"
    base = kit.base(layout.entries())
    with pytest.raises(InvalidArgumentError, match=digest):
        kit.build(from_image=base)
    assert [each.name for each in kit.directory.iterdir()] == ["base.tar"]


@pytest.mark.parametrize("difference", [-1, 1])
@pytest.mark.parametrize("mentions", [1, 2])
def test_a_base_that_lies_about_a_layers_size(kit: Kit, difference: int, mentions: int) -> None:
    """The lie would break the archive's own structure, or stand in its manifest beside a true mention."""
    layout = Layout()
    true = layout.blob(BASE_LAYER, OCI_LAYER)
    false = {**true, "size": true["size"] + difference}
    described = [true, false][-mentions:]
    layout.manifests = [layout.image(config_of([BASE_LAYER] * mentions), described)]
    base = kit.base(layout.entries())
    sizes = f"{len(BASE_LAYER)} bytes; its descriptor says {false['size']}$"
    with pytest.raises(
        InvalidArgumentError, match=rf"base\.tar': the layer {sha256(BASE_LAYER)} has {sizes}"
    ):
        kit.build(from_image=base)
    assert [each.name for each in kit.directory.iterdir()] == ["base.tar"]


def test_links_out_of_the_closure_are_warned_of(kit: Kit, caplog) -> None:
    """A root that the image does not hold; what a link among the roots leads to is what counts."""
    real = kit.store.add("real", {"f": "x"})
    link = kit.store.add("link", Path(real))
    roots = kit.file("roots.json", [link])
    with caplog.at_level(logging.WARNING):
        kit.build(copy_to_root=roots, closure=kit.file("list", f"{link}\n{real}\n"))
        kit.build(copy_to_root=roots, from_image=kit.base())
        assert not caplog.records
        kit.build(copy_to_root=roots, closure=kit.file("list", f"{link}\n"))
    assert f"copy-to-root: {link} is not in the closure: links to {real} will lead nowhere" in caplog.text


def test_a_long_manifest_is_warned_of_and_a_longer_one_refused(kit: Kit, caplog, monkeypatch) -> None:
    """Registries take 4 MiB, and nothing of ours reads more than 8."""
    info = kit.store.add_closure_info([kit.store.add("a", {})])
    monkeypatch.setattr(build, "MAX_PUSHABLE_MANIFEST", 600)
    with caplog.at_level(logging.WARNING):
        kit.build(closure=info)
        assert not caplog.records
        kit.build(closure=info, annotations=AnnotationForm.BOTH)
    assert "it can be loaded, but registries take no more than 600" in caplog.text
    monkeypatch.setattr(assemble.document, "MAX_DOCUMENT", 600)
    with pytest.raises(InvalidArgumentError, match=r"the manifest would have [0-9]+ bytes; at most 600"):
        kit.build(name="long.tar", closure=info, annotations=AnnotationForm.BOTH)
    assert not (kit.directory / "long.tar").exists()


@pytest.mark.parametrize(
    ("field", "text", "error", "reason"),
    [
        ("closure", "/etc/passwd\n", InvalidArgumentError, "line 1: '/etc/passwd' is not a store path"),
        ("config", '{"a": 1}', InvalidArgumentError, "has 'a', which"),
        ("copy_to_root", '["/etc"]', InvalidArgumentError, "'/etc' is not a path in"),
        ("from_image", "hello", InvalidArgumentError, "is damaged at byte 0|is not a tar archive"),
        ("closure", None, NotFoundError, "/absent' does not exist"),
        ("config", None, NotFoundError, "/absent' does not exist"),
        ("copy_to_root", None, NotFoundError, "/absent' does not exist"),
        ("from_image", None, NotFoundError, "/absent' does not exist"),
    ],
)
def test_bad_inputs_leave_nothing(kit: Kit, field: str, text: str | None, error, reason: str) -> None:
    """Each input that is malformed or missing is named, and no archive is made."""
    given = "/absent" if text is None else kit.file("input", text)
    with pytest.raises(error, match=reason):
        kit.build(**{field: given})
    assert not (kit.directory / "out.tar").exists()


def test_ten_thousand_legacy_annotations_can_be_pushed() -> None:
    """Paths of a usual length make a manifest far below what registries take."""
    names = [f"{number:032}-package-with-a-name-of-some-length-{number}" for number in range(10_000)]
    closure = Closure(paths=tuple(StorePath(name=name) for name in names))
    image = assemble.assemble(
        platform=AMD64,
        run_config={},
        base=None,
        layer=Layer(diff_id=sha256(b""), digest=sha256(b""), size=1),
        annotations=closure.annotations(AnnotationForm.LEGACY),
    )

    assert len(image.manifest.layers[0].annotations) == 10_001
    assert image.descriptor.size < build.MAX_PUSHABLE_MANIFEST / 2
