"""`nix2container load` into containerd 1.6, 1.7 and 2.x: what it leaves there, and what it leaves when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
from handmade_archives import REF, ArchiveBuilder, digest_of, layer_tar, small_image
from lab import Containerd, build_plain_image, unmount_below
from lab.processes import wait_until

NAME_OF_SMALL = "lab.invalid/small:1"
PLAIN = "lab.invalid/plain:1"
BIG_BYTES = 64 << 20


def test_loaded_image_runs(target, tmp_path):
    """The name is printed, and a container of it runs."""
    result = target.load(build_plain_image(tmp_path / "plain.tar", reference=PLAIN))
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{PLAIN}\n", "")
    said = target.ctr(
        "run", "--rm", "--snapshotter", "overlayfs", PLAIN, target.namespace, "/bin/echo", "it runs"
    )
    assert said == "it runs\n"


def test_what_is_there_afterwards(target, tmp_path):
    """Every blob, labelled as containerd's own clients label them, the snapshots, the record, and nothing else."""
    builder = small_image(tmp_path / "small.tar")
    assert target.load(tmp_path / "small.tar").returncode == 0
    assert target.images() == {NAME_OF_SMALL}
    assert target.blobs() == set(builder.blobs)
    assert target.leftovers() == {}
    manifest = builder.entries[0]["digest"]
    document = json.loads(builder.blobs[manifest])
    config, layers = document["config"]["digest"], [layer["digest"] for layer in document["layers"]]
    assert target.labels(manifest) == {
        "containerd.io/gc.ref.content.config": config,
        "containerd.io/gc.ref.content.l.0": layers[0],
        "containerd.io/gc.ref.content.l.1": layers[1],
    }
    top = target.labels(config)["containerd.io/gc.ref.snapshot.overlayfs"]
    assert target.snapshots() == {builder.diff_ids[layers[0]], top}
    assert target.labels(layers[0]) == {"containerd.io/uncompressed": builder.diff_ids[layers[0]]}


def test_annotations_become_snapshot_labels(target, tmp_path):
    """What `ctr image import` leaves out: the layer's annotations, those with containerd's prefix."""
    builder = small_image(tmp_path / "small.tar")
    target.load(tmp_path / "small.tar")
    config = json.loads(builder.blobs[builder.entries[0]["digest"]])["config"]["digest"]
    top = target.labels(config)["containerd.io/gc.ref.snapshot.overlayfs"]
    info = json.loads(target.ctr("snapshot", "--snapshotter", "overlayfs", "info", top))
    assert info["Labels"] == {"containerd.io/snapshot/test": "yes", "containerd.io/snapshot.ref": top}


def test_nothing_is_collected_while_the_image_lives_and_all_of_it_after(target, tmp_path):
    """The labels hold everything through a collection; without the record nothing does."""
    builder = small_image(tmp_path / "small.tar")
    target.load(tmp_path / "small.tar")
    snapshots = target.snapshots()
    target.collect()
    assert (target.blobs(), target.snapshots()) == (set(builder.blobs), snapshots)
    target.ctr("image", "rm", "--sync", NAME_OF_SMALL)
    assert target.everything() == {}


def test_second_load_changes_nothing(target, tmp_path):
    """It says so, prints the name all the same, and writes nothing to containerd's database."""
    small_image(tmp_path / "small.tar")
    target.load(tmp_path / "small.tar")
    target.collect()  # else containerd would do so, and write, in a moment
    database = target.containerd.directory / "root/io.containerd.metadata.v1.bolt/meta.db"
    before = database.read_bytes()
    result = target.load(tmp_path / "small.tar")
    assert (result.returncode, result.stdout) == (0, f"{NAME_OF_SMALL}\n")
    assert result.stderr == f"{NAME_OF_SMALL} is loaded already\n"
    assert database.read_bytes() == before, "containerd's database was written to"


def test_load_completes_what_import_did(target, tmp_path):
    """After `ctr image import`, which unpacks without annotations elsewhere, a load adds what is missing."""
    builder = small_image(tmp_path / "small.tar")
    target.ctr("image", "import", "--no-unpack", tmp_path / "small.tar")
    result = target.load(tmp_path / "small.tar")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(target.snapshots()) == 2
    assert set(builder.blobs) <= target.blobs()
    assert target.leftovers() == {}


def test_load_repoints_a_name(target, tmp_path):
    """A new build of an image takes over its name; what only the old one had is collected."""
    old = small_image(tmp_path / "old.tar", text=b"old\n")
    new = small_image(tmp_path / "new.tar", text=b"new\n")
    target.load(tmp_path / "old.tar")
    result = target.load(tmp_path / "new.tar")
    assert (result.returncode, result.stderr) == (0, "")
    assert new.entries[0]["digest"] in target.ctr("image", "ls")
    target.collect()
    assert target.blobs() == set(new.blobs)
    assert not set(old.blobs) & set(new.blobs)


def test_load_into_a_second_namespace(target, tmp_path):
    """Blobs that another namespace has are adopted: containerd has the data, the namespace must still get it."""
    builder = small_image(tmp_path / "small.tar")
    target.load(tmp_path / "small.tar")
    second = attrs.evolve(target, namespace=f"{target.namespace}b")
    assert second.load(tmp_path / "small.tar").returncode == 0
    target.ctr("image", "rm", "--sync", NAME_OF_SMALL)
    assert target.everything() == {}
    assert second.blobs() == set(builder.blobs)
    assert second.leftovers() == {}


def test_load_from_standard_input(target, tmp_path):
    """An archive comes through a pipe as well."""
    builder = small_image(tmp_path / "small.tar")
    argv = target.argv("--snapshotter", "overlayfs", "-")
    with subprocess.Popen(["cat", tmp_path / "small.tar"], stdout=subprocess.PIPE) as cat:
        result = subprocess.run(argv, stdin=cat.stdout, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{NAME_OF_SMALL}\n", "")
    assert target.blobs() == set(builder.blobs)


def test_load_of_compressed_and_docker_archives(target, tmp_path):
    """A gzipped archive, and one that `docker save` might have written, load like any other."""
    builder = ArchiveBuilder()
    layer = builder.blobs[builder.layer({"f": b"x"})["digest"]]
    config = {
        "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": list(builder.diff_ids.values())},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["small:docker"], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    subprocess.run(["tar", "-C", tmp_path, "-czf", tmp_path / "docker.tar.gz", *files], check=True)
    result = target.load(tmp_path / "docker.tar.gz")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "docker.io/library/small:docker\n"
    assert target.leftovers() == {}


def test_index_of_several_platforms(target, tmp_path):
    """The platform asked for is stored and unpacked; the other one can follow, and both stay."""
    builder = ArchiveBuilder()
    manifests = [
        builder.manifest([builder.layer({"f": name.encode()})], platform=name)
        for name in ("linux/s390x", "linux/riscv64")
    ]
    builder.named(builder.index(manifests), NAME_OF_SMALL)
    builder.write(tmp_path / "image.tar")
    assert target.load("--platform", "linux/s390x", tmp_path / "image.tar").returncode == 0
    assert len(target.blobs()) == 4
    assert target.load("--platform", "linux/riscv64", tmp_path / "image.tar").returncode == 0
    target.collect()
    assert target.blobs() == set(builder.blobs)
    assert len(target.snapshots()) == 2


def test_names(target, tmp_path):
    """Two names of one image are two records; --ref replaces both; a bare tag is named after the file."""
    builder = ArchiveBuilder()
    manifest = builder.manifest([builder.layer({"f": b"x"})])
    builder.named(manifest, "nix:0/nix/store/abc-image.tar:latest")
    builder.entry(manifest, {REF: "v1"})
    builder.write(tmp_path / "image.tar")
    result = target.load(tmp_path / "image.tar")
    names = ["nix:0/nix/store/abc-image.tar:latest", "import-image.tar:v1"]
    assert result.stdout.splitlines() == names
    assert target.images() == set(names)
    assert target.load("--ref", "other", tmp_path / "image.tar").stdout == "docker.io/library/other:latest\n"
    assert target.images() == {*names, "docker.io/library/other:latest"}


def test_kubernetes_namespace(target, tmp_path):
    """There the record carries CRI's label."""
    small_image(tmp_path / "small.tar", name=f"lab.invalid/{target.namespace}:1")
    kubernetes = attrs.evolve(target, namespace="k8s.io")
    assert kubernetes.load(tmp_path / "small.tar").returncode == 0
    (line,) = [each for each in kubernetes.ctr("image", "ls").splitlines() if target.namespace in each]
    assert line.split()[-1] == "io.cri-containerd.image=managed"


def test_many_loads_at_once(target, tmp_path):
    """Eight loads of two images that share a layer: all succeed, and nothing is left but the images."""
    builder = ArchiveBuilder()
    shared = builder.layer({"shared": os.urandom(4 << 20)})
    for number in range(2):
        own = builder.layer({"own": f"{number}".encode()})
        builder.named(builder.manifest([shared, own]), f"lab.invalid/image{number}:1")
        builder.write(tmp_path / f"{number}.tar")
        builder.entries.clear()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: target.load(tmp_path / f"{number % 2}.tar"), range(8)))
    assert [
        (each.returncode, each.stderr.replace("is loaded already", "")) for each in results if each.returncode
    ] == []
    assert target.images() == {"lab.invalid/image0:1", "lab.invalid/image1:1"}
    assert len(target.snapshots()) == 3
    assert target.leftovers() == {}


def break_layer(builder: ArchiveBuilder) -> None:
    """The layer is not what its digest says."""
    digest = next(iter(builder.blobs))
    builder.blobs[digest] = builder.blobs[digest][:-1] + b"!"


def drop_layer(builder: ArchiveBuilder) -> None:
    """The layer is not there."""
    del builder.blobs[next(iter(builder.blobs))]


def lie_about_size(builder: ArchiveBuilder) -> None:
    """The index gives the manifest another size."""
    builder.entries[0]["size"] += 1


def forget_name(builder: ArchiveBuilder) -> None:
    """The image has no name."""
    builder.entries[0]["annotations"] = {}


@pytest.mark.parametrize("damage", [break_layer, drop_layer, lie_about_size, forget_name])
def test_broken_archive(target, tmp_path, damage):
    """It is refused in one line that names it, before anything is stored."""
    builder = small_image(tmp_path / "small.tar")
    damage(builder)
    builder.write(tmp_path / "small.tar")
    result = target.load(tmp_path / "small.tar")
    assert (result.returncode, result.stdout) == (2, "")
    assert "small.tar" in result.stderr.splitlines()[0]
    assert target.everything() == {}


def test_truncated_archive(target, tmp_path):
    """However much of an archive is missing, what is there is not loaded."""
    small_image(tmp_path / "small.tar")
    data = (tmp_path / "small.tar").read_bytes()
    for length in (0, 100, 1000, len(data) // 2):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        result = target.load(tmp_path / "cut.tar")
        assert (result.returncode, result.stdout) == (2, ""), length
        assert "cut.tar" in result.stderr
    assert target.everything() == {}


def test_archive_that_climbs_out(target, tmp_path):
    """A path that leaves the archive condemns it."""
    small_image(tmp_path / "small.tar")
    (tmp_path / "evil").write_text("evil")
    subprocess.run(
        ["tar", "-C", tmp_path, "-rPf", tmp_path / "small.tar", "--transform", "s,^evil,../../evil,", "evil"],
        check=True,
    )
    result = target.load(tmp_path / "small.tar")
    assert result.returncode == 2
    assert "climbs out" in result.stderr
    assert target.everything() == {}


def test_another_platform(target, tmp_path):
    """An image for another machine is refused, and the message has both platforms."""
    builder = ArchiveBuilder()
    builder.named(builder.manifest([builder.layer({"f": b"x"})], platform="linux/s390x"), NAME_OF_SMALL)
    result = target.load(builder.write(tmp_path / "image.tar"))
    assert result.returncode == 3
    assert "linux/s390x" in result.stderr
    assert target.everything() == {}


def test_wrong_diff_id(target, tmp_path):
    """What only unpacking can find: the layer is stored by then, and collected before the command ends."""
    builder = ArchiveBuilder()
    layers = [builder.layer({"f": b"x"}), builder.layer({"g": b"y"})]
    diff_ids = [builder.diff_ids[layers[0]["digest"]], digest_of(b"something else")]
    builder.named(builder.manifest(layers, diff_ids=diff_ids), NAME_OF_SMALL)
    result = target.load(builder.write(tmp_path / "image.tar"))
    assert result.returncode == 2
    assert digest_of(b"something else") in result.stderr
    assert target.everything() == {}


def test_layer_that_is_no_tar(target, tmp_path):
    """containerd's own words come out, and nothing stays."""
    builder = ArchiveBuilder()
    layer = builder.blob(b"this is no tar archive", "application/vnd.oci.image.layer.v1.tar")
    builder.named(builder.manifest([layer], diff_ids=[layer["digest"]]), NAME_OF_SMALL)
    result = target.load(builder.write(tmp_path / "image.tar"))
    assert result.returncode != 0
    assert layer["digest"] in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert target.everything() == {}


def test_unknown_snapshotter(target, tmp_path):
    """It is named, with what to do, before anything is stored."""
    small_image(tmp_path / "small.tar")
    result = target.load(tmp_path / "small.tar", snapshotter="missing")
    assert result.returncode == 2
    assert "snapshotter not loaded: missing" in result.stderr
    assert "[proxy_plugins]" in result.stderr
    assert target.everything() == {}


def test_bad_namespace(target, tmp_path):
    """containerd checks namespaces; its words come out."""
    small_image(tmp_path / "small.tar")
    result = attrs.evolve(target, namespace="no/good").load(tmp_path / "small.tar")
    assert result.returncode == 2
    assert "no/good" in result.stderr


def big_image(path: Path) -> ArchiveBuilder:
    """Write an archive with a layer that takes a while to store, uncompressed random bytes; return its builder."""
    builder = ArchiveBuilder()
    tar = layer_tar({"big": os.urandom(BIG_BYTES)})
    layer = builder.blob(tar, "application/vnd.oci.image.layer.v1.tar")
    builder.named(builder.manifest([layer], diff_ids=[layer["digest"]]), NAME_OF_SMALL)
    builder.write(path)
    return builder


def interrupt(target, path: Path, number: signal.Signals) -> int:
    """Send a signal to a load while it stores; return its exit status."""
    ingests = target.containerd.directory / "root/io.containerd.content.v1.content/ingest"

    def is_storing() -> bool:
        return any(each.stat().st_size > 1 << 20 for each in ingests.glob("*/data"))

    with subprocess.Popen(
        target.argv("--snapshotter", "overlayfs", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as loading:
        while not is_storing():
            assert loading.poll() is None, "the load ended before it could be interrupted"
            time.sleep(0.001)
        os.kill(loading.pid, number)
        return loading.wait(60)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_load_leaves_nothing(target, tmp_path, number, status):
    """Neither record nor lease nor ingest, and no blob."""
    big_image(tmp_path / "big.tar")
    assert interrupt(target, tmp_path / "big.tar", number) == status
    assert target.everything() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_standard_input_can_be_interrupted(target, number):
    """One signal is enough while the archive does not come."""
    with subprocess.Popen(
        target.argv("-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as loading:
        loading.stdin.write(b"x")
        loading.stdin.flush()
        reading = Path(f"/proc/{loading.pid}/wchan")
        wait_until(lambda: "pipe" in reading.read_text(), what="the load reads the pipe")
        loading.send_signal(number)
        assert loading.wait(20) in {-number, 130}


def test_killed_load_is_taken_up_again(target, tmp_path):
    """After SIGKILL there is no record; the next load goes on where that one was, and succeeds."""
    builder = big_image(tmp_path / "big.tar")
    assert interrupt(target, tmp_path / "big.tar", signal.SIGKILL) == -signal.SIGKILL
    assert target.images() == set()
    assert "nixsnap-sha256:" in target.ctr("content", "active")
    assert target.load(tmp_path / "big.tar").returncode == 0
    assert target.blobs() == set(builder.blobs)
    (lease,) = target.ctr("leases", "ls", "--quiet").split()  # the dead one's, until it expires
    target.ctr("leases", "delete", "--sync", lease)
    assert target.leftovers() == {}
    assert target.blobs() == set(builder.blobs)


def test_missing_containerd(tmp_path, target):
    """The socket is named, and the flag that says where it is."""
    small_image(tmp_path / "small.tar")
    argv = target.argv("--snapshotter", "overlayfs", tmp_path / "small.tar")
    argv[argv.index("--address") + 1] = str(tmp_path / "none.sock")
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 6
    assert f"cannot connect to containerd at {tmp_path}/none.sock: No such file" in result.stderr
    assert "--address" in result.stderr


def test_containerd_that_dies_meanwhile(target, tmp_path, directory):
    """The command ends at once, with one line; started again, containerd has no record of the image."""
    big_image(tmp_path / "big.tar")
    containerd = Containerd.start(target.containerd.installation, directory)
    doomed = attrs.evolve(target, containerd=containerd)
    try:
        ingests = directory / "root/io.containerd.content.v1.content/ingest"
        with subprocess.Popen(
            doomed.argv("--snapshotter", "overlayfs", tmp_path / "big.tar"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as loading:
            wait_until(lambda: any(ingests.glob("*/data")), what="the load stores")
            containerd.process.kill()
            _, said = loading.communicate(timeout=60)
        assert loading.returncode == 6, said
        assert "cannot store blob" in said.splitlines()[-1]
        containerd.restart()
        assert doomed.images() == set()
    finally:
        containerd.stop()


def test_full_disk(target, tmp_path, directory):
    """The message says so, and what was stored is gone again."""
    big_image(tmp_path / "big.tar")
    (directory / "root").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", directory / "root"], check=True)
    containerd = Containerd.start(target.containerd.installation, directory)
    full = attrs.evolve(target, containerd=containerd)
    try:
        result = full.load(tmp_path / "big.tar")
        assert result.returncode == 8
        assert "no space left on device" in result.stderr
        assert full.everything() == {}
    finally:
        containerd.stop()
        unmount_below(directory)
