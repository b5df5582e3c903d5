"""Rootfs views with mapped ids, called for without containerd between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from lab import NixsnapDaemon, mounts_below, run
from lab.mounts import unmount_below
from rpc import LABEL, Rpc, connect, files, refused, store_path_labels
from uglymappings import taken_by_the_rules, ugly_mappings

from nixsnap.api import snapshots_pb2

UID, GID = f"{LABEL}uidmapping", f"{LABEL}gidmapping"
IDS = {UID: "0:100000:65536", GID: "0:200000:65536"}
OTHERS = {UID: "0:300000:65536", GID: "0:400000:65536"}


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.fixture
def rpc(nixsnap, closure):
    """A daemon with a nix layer `nix` upon a plain layer `plain`."""
    with connect(nixsnap.address) as rpc:
        (files(rpc.prepare("extract plain")) / "etc").mkdir()
        os.chown(nixsnap.root / "snapshots/1/fs/etc", 5, 6)
        rpc.commit("plain", "extract plain")
        rpc.nix_layer("nix", closure.paths, "plain")
        yield rpc


def shown(mount, closure) -> set[tuple[int, int]]:
    """Owners in a view: of its root, the store, and what the closure has."""
    store = files(mount) / "nix/store"
    top = files(mount) / closure.top.removeprefix("/")
    return {owner(path) for path in (files(mount), store, *store.iterdir(), *top.rglob("*"))}


def test_owners_in_a_view(rpc, nixsnap, closure):
    """Root's files are the mapped root's, other layers' come along, and nothing is chowned on disk."""
    mount = rpc.prepare("container", "nix", IDS)
    assert list(mount.options) == ["rw", "rbind"]
    assert shown(mount, closure) == {(100_000, 200_000)}
    assert owner(files(mount) / "etc") == (100_005, 200_006)
    assert owner(nixsnap.root / "snapshots/1/fs/etc") == (5, 6)
    assert owner(Path(closure.top)) == (0, 0)
    assert len(nixsnap.view_mounts()) == 1


def test_two_mappings_and_none(rpc, closure):
    """Of the same layers, and the same stub layer, at once."""
    first, second, plain = (
        rpc.prepare("first", "nix", IDS),
        rpc.prepare("second", "nix", OTHERS),
        rpc.prepare("third", "nix"),
    )
    assert shown(first, closure) == {(100_000, 200_000)}
    assert shown(second, closure) == {(300_000, 400_000)}
    assert shown(plain, closure) == {(0, 0)}


def test_a_read_only_view(rpc, closure):
    """View takes the labels as Prepare does."""
    request = snapshots_pb2.ViewSnapshotRequest(key="view", parent="nix", labels=IDS)
    (mount,) = rpc.stub.View(request).mounts
    assert mount.options[0] == "ro"
    assert shown(mount, closure) == {(100_000, 200_000)}
    with pytest.raises(OSError, match="Read-only"):
        (files(mount) / "x").touch()


@contextmanager
def daemon_with(directory: Path, config: str) -> Iterator[tuple[NixsnapDaemon, Rpc]]:
    """A daemon with settings of its own, and a connection to it."""
    (directory / "n").mkdir()
    daemon = NixsnapDaemon.start(directory / "n", config=config + "[image_service]\nenable = false\n")
    try:
        with connect(daemon.address) as rpc:
            yield daemon, rpc
    finally:
        daemon.destroy()


@pytest.mark.parametrize("config", ['store_view = "data-only"\n', "readonly_store = true\n"])
def test_other_kinds_of_views(directory, closure, config):
    """Owners are mapped in each."""
    with daemon_with(directory, config) as (daemon, rpc):
        rpc.nix_layer("nix", closure.paths)
        mount = rpc.prepare("container", "nix", IDS)
        assert shown(mount, closure) == {(100_000, 200_000)}
        assert (files(mount) / closure.top.removeprefix("/") / "dependencies").read_text()
        rpc.remove("container")
        assert daemon.view_mounts() == []


def bound(rpc: Rpc, key: str, labels: dict[str, str]) -> tuple[Path, dict[str, Path]]:
    """What containerd is to mount: the root directory, and what at which store path; store paths read-only."""
    request = snapshots_pb2.PrepareSnapshotRequest(key=key, parent="nix", labels=labels)
    root, *within = rpc.stub.Prepare(request).mounts
    assert all(list(mount.options) == ["ro", "bind"] for mount in within)
    return Path(root.source), {mount.target: Path(mount.source) for mount in within}


def test_store_paths_that_are_mounts(directory, closure):
    """containerd gets them out of a read-only clone of the store that shows the mapped owners, for each container."""
    with daemon_with(directory, 'store_view = "bind"\n') as (daemon, rpc):
        rpc.nix_layer("nix", closure.paths)
        for key, labels, ids in (("first", IDS, (100_000, 200_000)), ("second", OTHERS, (300_000, 400_000))):
            root, within = bound(rpc, key, labels)
            assert sorted(within) == sorted(closure.paths)
            for path in (root, root / "nix/store", *within.values(), *within[closure.top].rglob("*")):
                assert owner(path) == ids
            assert (within[closure.top] / "dependencies").read_text()
            with pytest.raises(OSError, match="Read-only"):
                (within[closure.top] / "new").touch()
        _, unmapped = bound(rpc, "third", {})
        assert list(unmapped.values()) == [Path(path) for path in unmapped]
        assert len(daemon.view_mounts()) == 5
        rpc.remove("first")
        assert owner(within[closure.top]) == (300_000, 400_000)
        rpc.remove("second")
        rpc.remove("third")
        assert daemon.view_mounts() == []
        assert list((daemon.root / "views").iterdir()) == []


def test_a_mapped_store_that_was_taken_down(directory, closure):
    """By hand or by a boot: Mounts mounts it anew. One that no snapshot owns is swept at start-up."""
    with daemon_with(directory, 'store_view = "bind"\n') as (daemon, rpc):
        rpc.nix_layer("nix", closure.paths)
        before = bound(rpc, "container", IDS)
        for missing in ("views/2-store", "views/2", ""):
            unmount_below(daemon.root / missing)
            root, *within = rpc.stub.Mounts(snapshots_pb2.MountsRequest(key="container")).mounts
            assert (Path(root.source), {mount.target: Path(mount.source) for mount in within}) == before
            assert owner(before[1][closure.top]) == (100_000, 200_000)
            assert len(daemon.view_mounts()) == 2
        left = daemon.root / "views/9-store"
        left.mkdir()
        run("mount", "--bind", "/etc", left)
        daemon.kill()
        restarted = NixsnapDaemon.start(
            daemon.directory, config='store_view = "bind"\n[image_service]\nenable = false\n'
        )
        try:
            assert len(restarted.view_mounts()) == 2
            assert not left.exists()
            with connect(restarted.address) as again:
                again.remove("container")
            assert restarted.view_mounts() == []
        finally:
            restarted.destroy()


def test_a_kind_that_cannot(directory, closure):
    """fuse-overlayfs takes no idmapped layers."""
    with daemon_with(directory, 'store_view = "fuse"\n') as (daemon, rpc):
        rpc.nix_layer("nix", closure.paths)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "kind fuse", "store_view = overlay"):
            rpc.prepare("container", "nix", IDS)
        assert rpc.list() == ["nix"]
        assert daemon.view_mounts() == []
        assert [path.name for path in (daemon.root / "snapshots").iterdir()] == ["1"]


def test_after_a_reboot(rpc, nixsnap, closure):
    """The mapping is in the database: a daemon that finds no view mounts it with the same ids."""
    files(rpc.prepare("container", "nix", IDS)).joinpath("kept").touch()
    nixsnap.stop()
    unmount_below(nixsnap.root)
    restarted = NixsnapDaemon.start(nixsnap.directory)
    try:
        with connect(restarted.address) as again:
            mount = again.mounts("container")
            assert shown(mount, closure) == {(100_000, 200_000)}
            assert (files(mount) / "kept").exists()
            assert again.mounts("container") == mount
            assert len(restarted.view_mounts()) == 1
            again.remove("container")
    finally:
        restarted.destroy()


def test_commit_keeps_ids_as_they_are_on_disk(rpc, nixsnap, closure):
    """As after containerd's overlayfs snapshotter: the layer's files belong to the mapped ids for good."""
    mount = rpc.prepare("container", "nix", IDS)
    (files(mount) / "new").touch()
    os.chown(files(mount) / "new", 100_007, 200_008)
    before = rpc.usage("container")
    rpc.commit("committed", "container")
    assert nixsnap.view_mounts() == []
    assert (rpc.usage("committed").size, rpc.usage("committed").inodes) == (before.size, before.inodes)
    assert dict(rpc.stat("committed").labels) == {}
    upon = rpc.prepare("upon", "committed")
    assert owner(files(upon) / "new") == (100_007, 200_008)
    assert (files(upon) / closure.top.removeprefix("/") / "bin").is_dir()


def test_usage_counts_what_the_container_wrote(rpc):
    """Nothing that is shown from below, whatever its owner."""
    mount = rpc.prepare("container", "nix", IDS)
    empty = rpc.usage("container").inodes
    (files(mount) / "new").write_bytes(b"x" * 10_000)
    assert rpc.usage("container").inodes == empty + 1


def test_plain_chains_are_containerds_to_map(rpc, nixsnap):
    """Options as those of its overlayfs snapshotter; the upper layer belongs to the mapped root."""
    alone = rpc.prepare("alone", "", IDS)
    assert list(alone.options) == ["uidmap=0:100000:65536", "gidmap=0:200000:65536", "rw", "rbind"]
    assert owner(files(alone)) == (100_000, 200_000)
    upon = rpc.prepare("upon", "plain", IDS)
    assert upon.type == "overlay"
    assert list(upon.options[:2]) == ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]
    assert rpc.mounts("upon") == upon
    assert nixsnap.view_mounts() == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({UID: "root", GID: "0:1:1"}, (UID, "container-id:host-id:length")),
        ({UID: "0:1:1", GID: "0:5:10,5:50:10"}, (GID, "overlap")),
        ({UID: "0:4294967295:1", GID: "0:1:1"}, (UID, "4294967294")),
        ({UID: "1:1:1", GID: "0:1:1"}, (UID, "container id 0")),
        ({UID: "0:1:1"}, (GID, "is missing")),
        ({GID: "0:1:1"}, (UID, "is missing")),
        ({UID: ",".join(f"{n}:{n}:1" for n in range(341)), GID: "0:1:1"}, (UID, "341")),
    ],
)
@pytest.mark.parametrize("parent", ["nix", "plain", ""])
def test_labels_that_are_refused(rpc, nixsnap, labels, words, parent):
    """By name, whatever lies below, and nothing is made."""
    before = sorted(nixsnap.root.glob("*/*"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *words):
        rpc.prepare("container", parent, labels)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *words):
        rpc.stub.View(snapshots_pb2.ViewSnapshotRequest(key="container", parent=parent, labels=labels))
    assert rpc.list() == ["nix", "plain"]
    assert sorted(nixsnap.root.glob("*/*")) == before
    assert nixsnap.view_mounts() == []


def test_ugly_labels(rpc, nixsnap):
    """The kernel takes what we take; all else is InvalidArgument, by the label's name, and nothing of it stays."""
    before = sorted(nixsnap.root.glob("*/*"))
    counts = {True: 0, False: 0}
    for number, value in enumerate(ugly_mappings(600)):
        for key, labels in (("user", {**IDS, UID: value}), ("group", {**IDS, GID: value})):
            parent = ("nix", "plain", "")[number % 3]
            taken = taken_by_the_rules(value)
            counts[taken] += 1
            if taken:
                rpc.prepare(key, parent, labels)
                rpc.remove(key)
            else:
                with refused(grpc.StatusCode.INVALID_ARGUMENT, UID if key == "user" else GID):
                    rpc.prepare(key, parent, labels)
    assert min(counts.values()) > 30, counts
    assert rpc.list() == ["nix", "plain"]
    assert sorted(nixsnap.root.glob("*/*")) == before
    assert nixsnap.view_mounts() == []


def test_labels_of_a_nix_layer_are_refused_before_nix_runs(rpc, closure):
    """An image may carry them as annotations."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, UID):
        rpc.prepare("layer", "", store_path_labels(closure.paths) | {UID: "x", GID: "x"})
    assert rpc.list() == ["nix", "plain"]


def update(rpc, key: str, labels: dict[str, str], *paths: str):
    request = snapshots_pb2.UpdateSnapshotRequest(info={"name": key, "labels": labels})
    request.update_mask.paths.extend(paths)
    return rpc.stub.Update(request).info


@pytest.mark.parametrize("parent", ["nix", "plain"])
@pytest.mark.parametrize(
    ("labels", "paths"), [({}, ()), ({"a": "b"}, ("labels",)), ({UID: "0:1:1"}, (f"labels.{UID}",))]
)
def test_the_mapping_of_a_snapshot_stays(rpc, parent, labels, paths):
    """Its files belong to the mapped ids, so labels that say otherwise are refused, and none changes."""
    rpc.prepare("container", parent, IDS | {"colour": "blue"})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, UID, "container"):
        update(rpc, "container", labels, *paths)
    assert dict(rpc.stat("container").labels) == IDS | {"colour": "blue"}
    changed = update(rpc, "container", {"colour": "red"}, "labels.colour")
    assert dict(changed.labels) == IDS | {"colour": "red"}


def test_a_snapshot_without_a_mapping_gets_none(rpc):
    """Its files belong to root."""
    rpc.prepare("container", "nix")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, UID):
        update(rpc, "container", IDS)


def test_labels_of_a_committed_snapshot_are_but_words(rpc):
    """Whatever they say, nothing is mounted for it."""
    assert dict(update(rpc, "nix", {UID: "x"}).labels) == {UID: "x"}


def test_removal_and_sweep(rpc, nixsnap):
    """A view with mapped ids goes as any other; and so do clones that a killed daemon left attached."""
    rpc.prepare("container", "nix", IDS)
    rpc.remove("container")
    assert nixsnap.view_mounts() == []
    left = nixsnap.root / "views/new-9-layers-0"
    left.mkdir()
    run("mount", "--bind", "/etc", left)
    nixsnap.kill()
    restarted = NixsnapDaemon.start(nixsnap.directory)
    try:
        assert mounts_below(restarted.root) == []
        assert not left.exists()
    finally:
        restarted.destroy()


def test_layers_that_cannot_be_idmapped(directory, overlaid):
    """Refused by name of the file system, with the way out, and nothing is made; without mapped ids all is as ever."""
    (directory / "n").mkdir()
    daemon = NixsnapDaemon.start(
        directory / "n", root=overlaid / "root", config="[image_service]\nenable = false\n"
    )
    try:
        assert "no containers with mapped ids" in daemon.log_text()
        with connect(daemon.address) as rpc:
            rpc.prepare("extract")
            rpc.commit("plain", "extract")
            words = (str(overlaid), "(overlay)", "cannot be mounted with mapped ids", "slow_chown = true")
            for parent in ("", "plain"):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, *words):
                    rpc.prepare("container", parent, IDS)
            assert rpc.list() == ["plain"]
            assert len(list((daemon.root / "snapshots").iterdir())) == 1
            assert rpc.prepare("container", "plain").source
    finally:
        daemon.destroy()


def test_copies_that_belong_to_the_mapped_ids(directory, overlaid):
    """`slow_chown`: files of an image are copied and given away, set-user-id bits kept; once, not at each mount."""
    (directory / "n").mkdir()
    settings = {
        "root": overlaid / "root",
        "config": "slow_chown = true\n[image_service]\nenable = false\n",
    }
    daemon = NixsnapDaemon.start(directory / "n", **settings)
    # Ids that lie within the range they come from would show a second change.
    labels = {UID: "0:1000:65536", GID: "0:2000:65536"}
    try:
        with connect(daemon.address) as rpc:
            tree = files(rpc.prepare("extract"))
            (tree / "setuid").write_text("x")
            (tree / "setuid").chmod(0o4755)
            deep = tree.joinpath(*["d"] * 1200)
            run("mkdir", "-p", deep)
            (tree / "link").symlink_to("/etc/passwd")
            os.chown(tree / "d", 5, 6)
            rpc.commit("plain", "extract")
            mount = rpc.prepare("container", "plain", labels)
            shown = files(mount)

            def check() -> None:
                assert owner(shown) == owner(shown / "setuid") == owner(shown / "link") == (1000, 2000)
                assert oct((shown / "setuid").stat().st_mode) == "0o104755"
                assert owner(shown / "d") == (1005, 2006)
                assert owner(shown.joinpath(*["d"] * 1200)) == (1000, 2000)

            check()
            assert owner(Path("/etc/passwd")) == (0, 0)
            assert owner(daemon.root / "snapshots/1/fs/setuid") == (0, 0)
            assert "chowning copies" in daemon.log_text()
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "read-only view"):
                request = snapshots_pb2.ViewSnapshotRequest(key="view", parent="plain", labels=labels)
                rpc.stub.View(request)
        daemon.stop()
        unmount_below(daemon.root)
        daemon = NixsnapDaemon.start(directory / "n", **settings)
        with connect(daemon.address) as rpc:
            assert rpc.mounts("container") == mount
            check()
            rpc.remove("container")
            assert daemon.view_mounts() == []
    finally:
        daemon.destroy()


def test_chowning_that_was_interrupted(directory, overlaid):
    """Nothing is given away twice: the container is refused, with the way out, and what it wrote stays."""
    (directory / "n").mkdir()
    settings = {"root": overlaid / "root", "config": "slow_chown = true\n[image_service]\nenable = false\n"}
    daemon = NixsnapDaemon.start(directory / "n", **settings)
    try:
        with connect(daemon.address) as rpc:
            (files(rpc.prepare("extract")) / "file").touch()
            rpc.commit("plain", "extract")
            rpc.prepare("container", "plain", IDS)
        daemon.kill()
        unmount_below(daemon.root)
        (daemon.root / "snapshots/2/chowned").unlink()
        left = daemon.root / "views/new-2-chown"
        left.mkdir()
        run("mount", "--bind", "/etc", left)
        daemon = NixsnapDaemon.start(directory / "n", **settings)
        with connect(daemon.address) as rpc:
            assert not left.exists()
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "interrupted", "create it again"):
                rpc.mounts("container")
            assert daemon.view_mounts() == []
            assert owner(daemon.root / "snapshots/2/fs/file") == (100_000, 200_000)
            rpc.remove("container")
            again = files(rpc.prepare("container", "plain", IDS))
            assert owner(again / "file") == (100_000, 200_000)
    finally:
        daemon.destroy()


def test_copies_that_there_is_no_space_for(directory, overlaid):
    """Nothing of the container stays: no snapshot, no view, no file."""
    (directory / "n").mkdir()
    daemon = NixsnapDaemon.start(
        directory / "n",
        root=overlaid / "root",
        config="slow_chown = true\n[image_service]\nenable = false\n",
    )
    try:
        with connect(daemon.address) as rpc:
            (files(rpc.prepare("extract")) / "file").write_bytes(b"x" * 4_000_000)
            rpc.commit("plain", "extract")
            space = os.statvfs(overlaid)
            used = (space.f_blocks - space.f_bfree) * space.f_bsize
            run("mount", "-o", f"remount,size={used + 1_000_000}", directory / "base")
            with pytest.raises(grpc.RpcError, match="fchownat: No space left on device"):
                rpc.prepare("container", "plain", IDS)
            assert rpc.list() == ["plain"]
            assert daemon.view_mounts() == []
            assert [path.name for path in (daemon.root / "snapshots").iterdir()] == ["1"]
            assert list((daemon.root / "views").iterdir()) == []
    finally:
        daemon.destroy()


def test_plain_images_mapped_here(directory):
    """`plain_idmap = nixsnap`, for containerd before 2.0: one bind mount, of an idmapped view, read-only ones too."""
    with daemon_with(directory, 'plain_idmap = "nixsnap"\n') as (daemon, rpc):
        (files(rpc.prepare("extract")) / "file").touch()
        rpc.commit("plain", "extract")
        mount = rpc.prepare("container", "plain", IDS)
        assert list(mount.options) == ["rw", "rbind"]
        assert owner(files(mount)) == owner(files(mount) / "file") == (100_000, 200_000)
        assert rpc.mounts("container") == mount
        request = snapshots_pb2.ViewSnapshotRequest(key="view", parent="plain", labels=IDS)
        (view,) = rpc.stub.View(request).mounts
        assert owner(files(view) / "file") == (100_000, 200_000)
        assert owner(daemon.root / "snapshots/1/fs/file") == (0, 0)
        assert len(daemon.view_mounts()) == 2
        rpc.commit("committed", "container")
        rpc.remove("view")
        assert daemon.view_mounts() == []
        assert rpc.prepare("unmapped", "plain").type == "overlay"


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("kind", ["overlay", "bind"])
def test_a_store_that_cannot_be_idmapped(directory, overlaid, kind, slow):
    """It is named; with `slow_chown` the layers' files and store paths are given away, and what is in these is not."""
    path = f"/nix/store/{'a' * 32}-path"
    host = overlaid / "host"
    (host / path.removeprefix("/")).mkdir(parents=True)
    (host / path.removeprefix("/") / "file").write_text("content")
    builder = directory / "builder"
    builder.write_text('#!/bin/sh\nln -s "$2" "$1"\n')
    builder.chmod(0o755)
    config = f'store_view = "{kind}"\nstore_root = "{host}"\nexternal_builder = "{builder}"\n'
    with daemon_with(directory, config + ("slow_chown = true\n" if slow else "")) as (daemon, rpc):
        rpc.nix_layer("nix", [path])
        if not slow:
            words = (f"{host}/nix/store", "(overlay)", "cannot be mounted with mapped ids", "slow_chown")
            with refused(grpc.StatusCode.FAILED_PRECONDITION, *words):
                rpc.prepare("container", "nix", IDS)
            assert rpc.list() == ["nix"]
            assert list((daemon.root / "views").iterdir()) == []
        else:
            top, within = bound(rpc, "container", IDS)
            shown = within.get(path, top / path.removeprefix("/"))
            assert (
                owner(top) == owner(top / "nix") == owner(top / path.removeprefix("/")) == (100_000, 200_000)
            )
            assert owner(shown / "file") == (0, 0)
            assert (shown / "file").read_text() == "content"
            rpc.remove("container")
        assert daemon.view_mounts() == []
