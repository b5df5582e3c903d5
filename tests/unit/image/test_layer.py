"""Tests of `nixsnap.image.layer`."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from imagekit import DIGEST, FakeStore

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.layer import Entry, Layer, plan_layer, write_layer
from nixsnap.image.roots import merge_roots
from nixsnap.nix.storepath import StorePath


def build(store: FakeStore, paths: list[str], roots: list[str] | None = None) -> tuple[Layer, bytes]:
    """Build a layer; return it and its blob."""
    parsed = [StorePath.parse(path, store_dir=store.dir) for path in paths]
    out = io.BytesIO()
    layer = write_layer(plan_layer(parsed, merge_roots(roots or [], store_dir=store.dir)), out)
    return layer, out.getvalue()


def members(blob: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob)), errors="surrogateescape") as archive:
        return {member.name: member for member in archive.getmembers()}


def test_a_mount_point_for_each_path(store: FakeStore) -> None:
    """A directory for a directory, an empty file for a file, and the directories above them, all as Nix has them."""
    paths = [store.add("dir", {"f": "content"}), store.add("file", "content")]
    entries = members(build(store, paths)[1])
    above = [
        str(part).lstrip("/") for part in reversed([store.path, *store.path.parents]) if part != Path("/")
    ]

    assert list(entries) == [*above, *(path.lstrip("/") for path in paths)]
    assert all(entries[name].isdir() and entries[name].mode == 0o755 for name in above)
    directory, file = (entries[path.lstrip("/")] for path in paths)
    assert (directory.isdir(), directory.mode) == (True, 0o555)
    assert (file.isreg(), file.mode, file.size) == (True, 0o555, 0)


@pytest.mark.parametrize(
    ("leads_to", "is_directory"),
    [
        ("/", True),
        ("/etc/passwd", False),
        ("/absent", False),
        ("{real}", True),
        ("{link}", True),
        ("{self}", False),
    ],
)
def test_a_path_that_is_a_link(store: FakeStore, leads_to: str, is_directory: bool) -> None:  # noqa: FBT001
    """It gets the mount point that what it leads to needs; a link to nothing, or in a circle, an empty file."""
    real = store.add("real", {})
    link = store.add("link", Path(real))
    own = Path(store.dir, f"{DIGEST}-x")
    own.symlink_to(leads_to.format(real=real, link=link, self=own))
    entry = members(build(store, [str(own)])[1])[str(own).lstrip("/")]

    assert entry.isdir() is is_directory
    assert entry.isreg() is not is_directory
    assert entry.mode == 0o555


def test_a_path_that_does_not_exist_is_named(store: FakeStore) -> None:
    """With the way out."""
    path = f"{store.dir}/{DIGEST}-absent"
    with pytest.raises(NotFoundError, match=f"store path {path} does not exist") as caught:
        build(store, [path])
    assert caught.value.hint == "realise it before building"


def test_roots_become_links(store: FakeStore) -> None:
    """Directories 0755, links to the store, root's all of them, dated 1970."""
    root = store.add("root", {"bin": {"sh": "x"}})
    entries = members(build(store, [root], [root])[1])

    assert (entries["bin"].isdir(), entries["bin"].mode) == (True, 0o755)
    assert (entries["bin/sh"].issym(), entries["bin/sh"].linkname) == (True, f"{root}/bin/sh")
    owners = {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in entries.values()}
    assert owners == {(0, 0, "", "", 0)}


def test_digests_and_size_are_those_of_what_is_written(store: FakeStore) -> None:
    """The diff ID is the tar's, digest and size are the blob's."""
    layer, blob = build(store, [store.add("x", {})])

    assert layer.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(blob)).hexdigest()}"
    assert layer.size == len(blob)


def test_the_bytes_depend_on_nothing_else(store: FakeStore, monkeypatch) -> None:
    """Neither on the order of the list, nor the clock, the modes and times of the files, the user or the umask."""
    paths = [store.add(name, {"d": {"f": name}}) for name in "abc"]
    first = build(store, paths, [f"{paths[0]}/d"])[1]
    monkeypatch.setattr("time.time", lambda: 2e9)
    os.utime(paths[0], (1e9, 1e9))
    Path(paths[1]).chmod(0o700)
    umask = os.umask(0o077)
    try:
        again = build(store, paths[::-1], [f"{paths[0]}/d"])[1]
    finally:
        os.umask(umask)

    assert again == first
    # RFC 1952: no flags, so no name; no time; system unknown.
    assert first[:4] == b"\x1f\x8b\x08\x00"
    assert first[4:8] == bytes(4)
    assert first[9] == 255


def test_an_empty_layer(store: FakeStore) -> None:
    """Nothing at all is an archive as well, such as of an image with a config alone."""
    assert members(build(store, [])[1]) == {}


def test_names_of_any_bytes_and_length(store: FakeStore) -> None:
    """Names that ustar has no room for, and names and targets that are not UTF-8, come out as they are."""
    long = "d" * 200
    root = store.add("root", {long: {"caf\udce9-\u00fc": "x"}})
    entries = members(build(store, [root], [root])[1])

    assert entries[f"{long}/caf\udce9-\u00fc"].linkname == f"{root}/{long}/caf\udce9-\u00fc"


def test_names_keep_their_bytes_in_any_locale(monkeypatch) -> None:
    """Where Python decodes file names as Latin-1, the layer has the bytes of the disk all the same."""
    monkeypatch.setattr("os.fsencode", lambda name: name.encode("latin-1"))
    out = io.BytesIO()
    entry = Entry(kind=tarfile.SYMTYPE, mode=0o777, target="/caf\u00e9-target")
    write_layer({"caf\u00e9-name": entry}, out)
    (link,) = members(out.getvalue()).values()

    assert (link.name, link.linkname) == ("caf\udce9-name", "/caf\udce9-target")


@pytest.mark.parametrize("depth", [1, 2])
def test_a_root_may_not_hide_the_store(store: FakeStore, depth: int) -> None:
    """A link or file where a directory above the store must be is named, with its root."""
    parts = store.dir.strip("/").split("/")[:depth]
    content: dict = {parts[-1]: "x"}
    for part in reversed(parts[:-1]):
        content = {part: content}
    root, path = store.add("root", content), store.add("x", {})
    with pytest.raises(InvalidArgumentError) as caught:
        build(store, [path], [root])
    assert str(caught.value) == f"copy-to-root: {root!r} has {'/' + '/'.join(parts)!r}, where {path} must be"


def test_a_root_may_not_reach_into_a_store_path(store: FakeStore) -> None:
    """Not even with a directory, into which it would put files."""
    path = store.add("x", {})
    content: dict = {"f": "x"}
    for part in reversed(path.strip("/").split("/")):
        content = {part: content}
    root = store.add("root", content)
    with pytest.raises(InvalidArgumentError, match=f"where {path} must be"):
        build(store, [path], [root])


def test_a_root_may_have_directories_above_the_store(store: FakeStore) -> None:
    """`/nix/var` beside `/nix/store` is no conflict."""
    top = store.dir.strip("/").split("/")[0]
    root, path = store.add("root", {top: {"var": {"f": "x"}}}), store.add("x", {})
    entries = members(build(store, [path], [root])[1])

    assert entries[f"{top}/var/f"].issym()
    assert entries[path.lstrip("/")].isdir()
