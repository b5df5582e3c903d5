"""Kubernetes' way: an image that is a store path, a pod of it, and no registry."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from kube import NETWORK, store_archive
from lab import NixsnapDaemon, add_plain_layer, build_image, build_plain_image, nix_closure, run
from lab.daemon import installed_program
from lab.nix import nix_store
from lab.processes import wait_until
from registries import start_docker_registry

pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)

ACCOUNTS = """
$builder mkdir -p $out/etc
echo app:x:1234:1234::/:/bin/sh > $out/etc/passwd
"""


def test_pod_of_a_store_path(kube):
    """All of a pod's life: network by CNI, image by its store path, at once a container of it, with a user by name.

    The pause image is a Nix image too; no registry is there; nothing is left at the end.
    """
    app = nix_closure(3, name="pod-app", script=ACCOUNTS)
    script = f"echo started; exec {app.top}/bin/sleep 1000"
    archive = store_archive(
        app,
        "pod",
        config={"Cmd": [f"{app.top}/bin/sh", "-c", script], "Env": [f"PATH={app.top}/bin"]},
        roots=(app.top,),
    )
    reference = f"nix:0{archive}"
    pod = kube.run_pod_in_a_network("pod")
    image_id = kube.cri.pull(reference)
    assert image_id.startswith("sha256:")
    assert kube.cri.image_id(reference) == image_id
    container = pod.start("app", reference, user="app")
    assert pod.exec(container, "id", "-u") == "1234\n"
    assert NETWORK in pod.exec(container, "ip", "-4", "addr", "show", "eth0")
    listed = pod.exec(container, "ls", "/nix/store").split()
    assert listed == sorted(path.removeprefix("/nix/store/") for path in app.paths)
    log = kube.directory / "logs/app.log"
    wait_until(lambda: "started" in log.read_text(), what="write its log")
    pod.remove()
    kube.cri.remove_image(reference)
    assert kube.cri.image_id(reference) == ""
    assert kube.roots() == []


def test_containers_of_one_pod(kube, closure):
    """Two containers in the pod's network; one reads what the other serves."""
    reference = f"nix:0{store_archive(closure, 'network')}"
    kube.cri.pull(reference)
    sh = f"{closure.top}/bin"
    pod = kube.run_pod_in_a_network("net")
    # It stays when it has served: containerd may fail to stop a container that ends by itself at that moment.
    serve = f"echo served | {sh}/nc -l -p 8080; exec {sh}/sleep 1000"
    server = pod.start("server", reference, [f"{sh}/sh", "-c", serve])
    client = pod.start("client", reference, [f"{sh}/sleep", "1000"])
    ask = f"until {sh}/nc 127.0.0.1 8080 < /dev/null 2> /dev/null; do {sh}/sleep 0.1; done"
    assert pod.exec(client, f"{sh}/sh", "-c", ask) == "served\n"
    assert server != client
    pod.remove()


def test_registry_in_between(kube, closure):
    """Build, push to a registry, pull through CRI, which hands the annotations on, and run."""
    registry = start_docker_registry(kube.directory / "registry")
    reference = f"{registry.host}/team/app:1"
    archive = build_image(closure, kube.directory / "app.tar", reference=reference)
    run(installed_program("nix2container"), "push", "--plain-http", "--ref", reference, archive)
    try:
        kube.cri.pull(reference)
        pod = kube.cri.run_pod("pulled", kube.directory / "logs")
        container = pod.start("app", reference, [f"{closure.top}/bin/sleep", "1000"])
        listed = pod.exec(container, f"{closure.top}/bin/ls", "/nix/store").split()
        assert listed == sorted(path.removeprefix("/nix/store/") for path in closure.paths)
        assert "inferred" not in kube.nixsnap.log_text()
        pod.remove()
    finally:
        registry.stop()


def test_layers_of_every_kind(kube, closure, tmp_path):
    """A plain base, a nix layer, a plain layer that changes both, and a nix layer on top, as one image in a pod."""
    base = build_plain_image(tmp_path / "base.tar", reference="lab.invalid/base:1")
    first = build_image(
        closure, tmp_path / "first.tar", reference="lab.invalid/first:1", options=["--from-image", base]
    )
    changed, emptied = (path for path in closure.paths if path.endswith(("-dep-0", "-dep-1")))
    changes = {
        "etc/motd": "of the plain layer\n",
        f"{changed[1:]}/share/f": "changed\n",
        f"{emptied[1:]}/share/.wh.f": "",
        "bin/.wh.yes": "",
    }
    changes_upon = add_plain_layer(
        first, tmp_path / "changes.tar", reference="lab.invalid/changes:1", files=changes
    )
    upper = nix_closure(2, salt="upper", name="upper-app")
    top = store_archive(upper, "layers", options=("--from-image", str(changes_upon)))
    kube.cri.pull(f"nix:0{top}")
    pod = kube.cri.run_pod("layers", kube.directory / "logs")
    container = pod.start("app", f"nix:0{top}", ["/bin/sleep", "1000"])
    script = f"cat /etc/motd {changed}/share/f; ls {emptied}/share; test -e /bin/yes || echo deleted"
    assert pod.exec(container, "/bin/sh", "-c", script) == "of the plain layer\nchanged\ndeleted\n"
    for each, salt in ((closure, ""), (upper, "upper")):
        last = max(path for path in each.paths if "-dep-" in path and path not in {changed, emptied})
        number = last.rpartition("-")[2]
        assert pod.exec(container, f"{each.top}/bin/cat", f"{last}/share/f") == f"{number} {salt}\n"
    listed = pod.exec(container, f"{upper.top}/bin/ls", "/nix/store").split()
    assert set(listed) == {path.removeprefix("/nix/store/") for path in (*closure.paths, *upper.paths)}
    pod.remove()


def test_the_same_image_without_annotations(kube):
    """`ctr image import` passes none on, and the pod of it is the same."""
    app = nix_closure(3, salt="imported")  # the layer of `closure` is unpacked already, for the pause image
    archive = build_image(app, kube.directory / "app.tar", reference="lab.invalid/imported:1")
    local = ["--local"] if kube.containerd.installation.series == "2" else []
    kube.containerd.ctr("image", "import", *local, "--snapshotter", "nix", archive, namespace="k8s.io")
    wait_until(lambda: bool(kube.cri.image_id("lab.invalid/imported:1")), what="be known to CRI")
    assert "inferred" in kube.nixsnap.log_text()
    pod = kube.cri.run_pod("imported", kube.directory / "logs")
    container = pod.start("app", "lab.invalid/imported:1", [f"{app.top}/bin/sleep", "1000"])
    listed = pod.exec(container, f"{app.top}/bin/ls", "/nix/store").split()
    assert listed == sorted(path.removeprefix("/nix/store/") for path in app.paths)
    pod.remove()


def test_roots_live_as_long_as_the_image(kube):
    """While containerd has the image, Nix's collector finds roots for archive and closure; afterwards for neither."""
    app = nix_closure(2, name="rooted-app", salt="rooted")
    archive = store_archive(app, "rooted")
    kube.cri.pull(f"nix:0{archive}:latest")
    for path in (archive, *app.paths):
        assert any(str(kube.nixsnap.root) in root for root in nix_store("--query", "--roots", path)), path
    kube.cri.remove_image(f"nix:0{archive}:latest")

    def rooted() -> bool:
        return any(
            str(kube.nixsnap.root) in root for root in nix_store("--query", "--roots", archive, app.top)
        )

    wait_until(lambda: not rooted(), what="give the roots up")


def test_roots_of_images_are_made_good_at_start(kube):
    """A root that was lost is there again, and one whose image is gone goes, once daemon and containerd both run."""
    archive = store_archive(nix_closure(2, name="lost-root", salt="lost-root"), "lost-root")
    name = Path(archive).name
    kube.cri.pull(f"nix:0{archive}")
    assert kube.roots() == [name]
    kube.nixsnap.stop()
    places = kube.nixsnap.root / "gcroots/images"
    shutil.rmtree(places / name)
    orphan = places / f"{'0' * 32}-orphan.tar"
    orphan.mkdir()
    config = (kube.nixsnap.directory / "nixsnap.toml").read_text()
    again = NixsnapDaemon.start(kube.nixsnap.directory, config=config)
    try:
        wait_until(lambda: kube.roots() == [name], what="mend the roots of images")
        wait_until(
            lambda: any(str(places) in root for root in nix_store("--query", "--roots", archive)),
            what="root the archive",
        )
    finally:
        again.stop()


def test_concurrent_pulls_are_one(kube):
    """Ten pods that want the same image get it from one pull."""
    archive = store_archive(nix_closure(2, name="ten", salt="ten"), "ten")
    with ThreadPoolExecutor(10) as pool:
        ids = set(pool.map(kube.cri.pull, [f"nix:0{archive}"] * 10))
    assert len(ids) == 1
    assert kube.nixsnap.log_text().count("pulled reference=") == 1


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("nix:0/etc/passwd", grpc.StatusCode.INVALID_ARGUMENT, "/etc/passwd"),
        ("nix:0/nix/store/../../x", grpc.StatusCode.INVALID_ARGUMENT, "../../x"),
        ("nix:0/nix/store/" + "a" * 32 + "-x.tar", grpc.StatusCode.NOT_FOUND, "a" * 32),
        (
            "nix:0/nix/store/" + "a" * 32 + "-x.tar@sha256:" + "0" * 64,
            grpc.StatusCode.INVALID_ARGUMENT,
            "nix:0",
        ),
    ],
)
def test_bad_references(kube, reference, code, words):
    """They are refused by name; no image, lease or root is left."""
    with pytest.raises(grpc.RpcError) as raised:
        kube.cri.pull(reference)
    assert raised.value.code() is code
    assert words in raised.value.details()
    assert kube.roots() == []
    assert kube.containerd.ctr("leases", "ls", "--quiet", namespace="k8s.io").stdout.split() == []


def test_a_store_path_that_is_no_archive(kube, closure, tmp_path):
    """A directory, or a file that is no image archive, is refused by name and gets no root."""
    (tmp_path / "no-archive").write_text("hello")
    for path in (closure.top, nix_store("--add", str(tmp_path / "no-archive"))[0]):
        with pytest.raises(grpc.RpcError) as raised:
            kube.cri.pull(f"nix:0{path}")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert path in raised.value.details()
    assert kube.roots() == []


def test_containerd_may_restart(kube, closure):
    """The image service answers again as soon as containerd does."""
    archive = store_archive(closure, "restart")
    kube.cri.pull(f"nix:0{archive}")
    kube.containerd.process.stop()
    with pytest.raises(grpc.RpcError) as raised:
        kube.cri.images()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    kube.containerd.restart()

    def answers() -> bool:
        try:
            return f"nix:0{archive}:latest" in kube.cri.images()
        except grpc.RpcError:
            return False

    wait_until(answers, what="answer again")
