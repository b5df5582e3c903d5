"""`nix2container build` on what real Nix builds, and inside a Nix build."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from imagelab import Builder, layer_entries, read_image
from lab import Closure, nix_build
from lab.daemon import installed_program
from lab.nix import nix_store

CLOSURE = "containerd.io/snapshot/nix-closure"
PATH = "containerd.io/snapshot/nix-store-path."
HERE = Path(__file__).parent
BIG_BYTES = 384 << 20


def test_a_closure_becomes_mount_points(mixed: Closure, builder: Builder) -> None:
    """Exactly the closure is in the layer, each path of its kind, and the annotation names the closureInfo."""
    archive = builder.build("mixed", "--closure", mixed.info, "--ref", "lab.invalid/mixed:1")
    name, manifest, config = read_image(archive)
    entries = layer_entries(archive)

    assert name == "lab.invalid/mixed:1"
    assert [layer.annotations for layer in manifest.layers] == [{CLOSURE: mixed.info}]
    assert set(entries) == {"nix", "nix/store", *(path[1:] for path in mixed.paths)}
    assert {Path(path).is_dir() for path in mixed.paths} == {True, False}
    for path in mixed.paths:
        assert entries[path[1:]].isdir() is Path(path).is_dir()
        assert entries[path[1:]].mode == 0o555
    assert len(config.diff_ids) == 1


def test_copy_to_root_shows_the_application(mixed: Closure, builder: Builder) -> None:
    """Every link leads to a file of the closure, or to a link there, and be it to nowhere."""
    archive = builder.build("roots", "--closure", mixed.info, "--ref", "x:1", copy_to_root=[mixed.top])
    links = {name: entry.linkname for name, entry in layer_entries(archive).items() if entry.issym()}

    assert links["bin/sh"] == f"{mixed.top}/bin/sh"
    assert links["away"] == f"{mixed.top}/away"
    assert all(target.startswith(f"{mixed.top}/") and os.path.lexists(target) for target in links.values())


def test_a_list_gets_legacy_annotations(mixed: Closure, builder: Builder, directory: Path) -> None:
    """`nix-store --query --requisites` into a file is a closure as well."""
    requisites = nix_store("--query", "--requisites", mixed.top)
    listing = directory / "list"
    listing.write_text("".join(f"{path}\n" for path in requisites))
    manifest = read_image(builder.build("list", "--closure", listing, "--ref", "x:1"))[1]
    annotations = dict(manifest.layers[0].annotations)

    assert annotations.pop("containerd.io/snapshot/nix-layer") == "true"
    assert annotations == {f"{PATH}{number}": path for number, path in enumerate(requisites)}


def test_the_same_inputs_give_the_same_bytes(mixed: Closure, builder: Builder) -> None:
    """In another process too, under another hash seed, locale and time zone."""
    flags: list[str | Path] = ["--closure", mixed.info, "--annotations", "both", "--ref", "x:1"]
    config = {"Env": ["A=1"], "Labels": {"b": "1", "a": "2"}}
    first = builder.build("first", *flags, config=config, copy_to_root=[mixed.top])
    again = first.with_name("again.tar")
    flags += ["--config", first.with_name("first--config.json")]
    flags += ["--copy-to-root", first.with_name("first--copy-to-root.json")]
    environment = {"PYTHONHASHSEED": "7", "LC_ALL": "POSIX", "TZ": "Asia/Tokyo"}
    subprocess.run([installed_program("nix2container"), "build", *flags, again], env=environment, check=True)

    assert first.read_bytes() == again.read_bytes()


def test_inside_a_derivation(mixed: Closure) -> None:
    """`$out` knows its own `nix:0` name, keeps its closure alive, leaves nothing beside it, and can be rebuilt."""
    program = str(installed_program("nix2container"))
    out = nix_build(HERE / "image.nix", program=program, top=mixed.top, info=mixed.info)
    name, manifest, config = read_image(Path(out))

    assert name == f"nix:0{out}:latest"
    assert manifest.layers[0].annotations == {CLOSURE: mixed.info}
    assert config.config == {"Entrypoint": [f"{mixed.top}/bin/sh"]}
    assert not list(Path("/nix/store").glob(".nix2container-*"))
    # Nix finds the names of store paths in the archive, as long as its documents are not compressed.
    assert mixed.info in nix_store("--query", "--references", out)
    # Nix fails this if the bytes of the second build differ.
    (derivation,) = nix_store("--query", "--deriver", out)
    assert nix_store("--realise", "--check", derivation) == [out]


def test_a_big_base_takes_little_memory(directory: Path) -> None:
    """Layers go through in pieces: what is held in memory does not grow with them."""
    base = directory / "base.tar"
    _write_big_base(base)
    command = [
        installed_program("nix2container"),
        "build",
        "--from-image",
        base,
        "--ref",
        "x:1",
        directory / "out.tar",
    ]
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    measured = subprocess.run(
        [sys.executable, "-c", measure, *command], check=True, capture_output=True, text=True
    )

    assert (directory / "out.tar").stat().st_size > BIG_BYTES
    assert int(measured.stdout) * 1024 < 100 << 20  # getrusage(2) counts in KiB


def _write_big_base(path: Path) -> None:
    """Write a `docker save` of one layer of zeros, most of it a hole in the file."""
    hasher = hashlib.sha256()
    for _ in range(BIG_BYTES >> 20):
        hasher.update(bytes(1 << 20))
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hasher.hexdigest()}"]}
    config = json.dumps({"architecture": os.uname().machine, "os": "linux", "rootfs": rootfs}).encode()
    listing = json.dumps([{"Config": "c.json", "RepoTags": ["big:1"], "Layers": ["l/layer.tar"]}]).encode()
    with path.open("wb") as file:
        for name, content in (("c.json", config), ("manifest.json", listing)):
            file.write(_header(name, len(content)) + content + bytes(-len(content) % 512))
        file.write(_header("l/layer.tar", BIG_BYTES))
        file.truncate(file.tell() + BIG_BYTES + 1024)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()
