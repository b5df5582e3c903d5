"""Any client: what we built and loaded runs by it, and what it loads or pulls by itself runs as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import clients
import pytest
from clients import TRANSFER_SERVICE, Program, docker, nerdctl
from lab import Containerd, NixsnapDaemon, build_image, build_plain_image, installed_program, load_image, run
from lab.processes import wait_until
from registries import Registry, start_docker_registry

REFERENCE = "lab.invalid/app:1"
NO_ROOTLESS_DOCKER = pytest.mark.real_root(
    "a plain user's Docker lives in namespaces that it makes by itself"
)


@pytest.fixture
def archive(node, closure) -> Path:
    return build_image(closure, node.directory / "app.tar", reference=REFERENCE)


@pytest.fixture
def registry(node) -> Iterator[Registry]:
    registry = start_docker_registry(node.directory / "registry")
    yield registry
    registry.stop()


def pushed(registry: Registry, archive: Path) -> str:
    """Push it, and return its reference."""
    reference = f"{registry.host}/team/app:1"
    run(installed_program("nix2container"), "push", "--plain-http", "--ref", reference, archive)
    return reference


def looks_right(client: Program, reference: str, closure) -> bool:
    """Run a container by the client's own `run`, and see whether it has its closure and its files."""
    script = "ls /nix/store; cat /nix/store/*-dep-2/share/f"
    shown = client("run", "--rm", "--net", "none", reference, f"{closure.top}/bin/sh", "-c", script).stdout
    names = sorted(path.removeprefix("/nix/store/") for path in closure.paths)
    return shown.split() == [*names, "2"]


def test_nerdctl_runs_what_we_loaded(node, closure, archive):
    """`nix2container load`, then `nerdctl run`."""
    load_image(node.containerd, archive, namespace=node.containerd.namespace)
    assert looks_right(nerdctl(node), REFERENCE, closure)
    assert "inferred" not in node.nixsnap.log_text()


def test_nerdctl_loads(node, closure, archive):
    """`nerdctl load` passes no annotations on; the nix layer is recognised."""
    client = nerdctl(node)
    client("load", "--input", archive)
    assert looks_right(client, REFERENCE, closure)
    assert "inferred" in node.nixsnap.log_text()


def test_nerdctl_pulls(node, closure, archive, registry):
    """`nerdctl pull` passes them on."""
    reference = pushed(registry, archive)
    client = nerdctl(node)
    client("pull", reference)
    assert looks_right(client, reference, closure)
    assert "inferred" not in node.nixsnap.log_text()


@NO_ROOTLESS_DOCKER
def test_docker_loads(node, closure, archive):
    """`docker load` into containerd's image store; the nix layer is recognised, and all of it goes with the image."""
    with docker(node) as client:
        assert REFERENCE in client("load", "--input", archive).stdout
        assert looks_right(client, REFERENCE, closure)
        client("rmi", REFERENCE)
    node.containerd.collect_garbage()
    assert "inferred" in node.nixsnap.log_text()
    assert list((node.nixsnap.root / "snapshots").iterdir()) == []
    assert list((node.nixsnap.root / "gcroots").iterdir()) == []


@NO_ROOTLESS_DOCKER
def test_docker_pulls(node, closure, archive, registry):
    """`docker pull` passes annotations on."""
    reference = pushed(registry, archive)
    with docker(node) as client:
        client("pull", reference)
        assert looks_right(client, reference, closure)
    assert "inferred" not in node.nixsnap.log_text()


@pytest.mark.parametrize(
    "make_client", [clients.nerdctl_in, pytest.param(clients.docker, marks=NO_ROOTLESS_DOCKER)]
)
def test_commit(node, closure, archive, make_client):
    """A container becomes an image: what it changed, in store paths too, is an ordinary layer upon the nix layer."""
    emptied, changed, *_ = (path for path in closure.paths if "-dep-" in path)
    script = f"""
    echo top > /top; echo mine > {changed}/share/f; rm {emptied}/share/f; echo new > {emptied}/share/n
    exec {closure.top}/bin/sleep 1000
    """
    with make_client(node) as client:
        client("load", "--input", archive)
        client(
            "run",
            "--detach",
            "--net",
            "none",
            "--name",
            "work",
            REFERENCE,
            f"{closure.top}/bin/sh",
            "-c",
            script,
        )
        wait_until(lambda: client("exec", "work", f"{closure.top}/bin/cat", f"{emptied}/share/n", check=False)
                   .stdout == "new\n", what="be done")  # fmt: skip
        client("commit", "work", "lab.invalid/committed:1")
        client("rm", "--force", "work")
        look = f"cat /top {changed}/share/f; ls {emptied}/share; ls /nix/store"
        shown = client(
            "run", "--rm", "--net", "none", "lab.invalid/committed:1", f"{closure.top}/bin/sh", "-c", look
        )
    names = sorted(path.removeprefix("/nix/store/") for path in closure.paths)
    assert shown.stdout.split() == ["top", "mine", "n", *names]


@pytest.mark.parametrize("installation", ["2"], indirect=True)
@NO_ROOTLESS_DOCKER
def test_docker_loads_into_a_store_of_its_own(node, closure):
    """The archive is Docker's too: an engine without containerd's image store reads name, config and layers."""
    base = build_plain_image(node.directory / "base.tar", reference="lab.invalid/base:1")
    upon = build_image(
        closure, node.directory / "upon.tar", reference=REFERENCE, options=["--from-image", base]
    )
    with docker(node, driver="vfs") as client:
        assert REFERENCE in client("load", "--input", upon).stdout
        (image,) = json.loads(client("image", "inspect", REFERENCE).stdout)
        assert image["Config"]["Env"] == [f"PATH={closure.top}/bin"]
        assert len(image["RootFS"]["Layers"]) == 2
        shown = client("run", "--rm", "--net", "none", REFERENCE, "/bin/ls", "/nix/store").stdout
        assert shown.split() == sorted(path.removeprefix("/nix/store/") for path in closure.paths)


def test_ctr_pulls(node, closure, archive, registry):
    """`ctr image pull`, which unpacks by itself, passes none on."""
    reference = pushed(registry, archive)
    local = ["--local"] if node.containerd.installation.series == "2" else []
    node.containerd.ctr("image", "pull", *local, "--plain-http", "--snapshotter", "nix", reference)
    shown = node.containerd.run(reference, f"{closure.top}/bin/ls", "/nix/store")
    assert len(shown.stdout.split()) == len(closure.paths)
    assert "inferred" in node.nixsnap.log_text()


def test_nothing_is_inferred_unasked(installation, directory, closure):
    """`infer_nix_layers = false`: an imported layer is what it is, empty directories, and nothing of it can be run."""
    for name in ("n", "c"):
        (directory / name).mkdir()
    nixsnap = NixsnapDaemon.start(
        directory / "n", config="infer_nix_layers = false\n[image_service]\nenable = false\n"
    )
    containerd = Containerd.start(installation, directory / "c", snapshotter=nixsnap.address)
    try:
        archive = build_image(closure, directory / "app.tar", reference=REFERENCE)
        local = ["--local"] if installation.series == "2" else []
        containerd.ctr("image", "import", *local, "--snapshotter", "nix", archive)
        refused = containerd.run(REFERENCE, f"{closure.top}/bin/true", check=False)
        assert refused.returncode != 0
        assert f"{closure.top}/bin/true: no such file or directory" in refused.stderr
        assert nixsnap.view_mounts() == []
    finally:
        containerd.stop()
        nixsnap.destroy()


@pytest.mark.parametrize("installation", ["2"], indirect=True)
def test_transfer_service_pulls(nixsnap, installation, directory, closure):
    """The transfer service, by which `ctr image pull` of 2.x has containerd do it, passes them on."""
    (directory / "c").mkdir()
    containerd = Containerd.start(
        installation,
        directory / "c",
        snapshotter=nixsnap.address,
        extra_config=TRANSFER_SERVICE.format(snapshotter="nix"),
    )
    registry = start_docker_registry(directory / "registry")
    try:
        reference = pushed(registry, build_image(closure, directory / "app.tar", reference=REFERENCE))
        containerd.ctr("image", "pull", "--plain-http", "--snapshotter", "nix", reference)
        shown = containerd.run(reference, f"{closure.top}/bin/ls", "/nix/store")
        assert len(shown.stdout.split()) == len(closure.paths)
        assert "inferred" not in nixsnap.log_text()
    finally:
        registry.stop()
        containerd.stop()
