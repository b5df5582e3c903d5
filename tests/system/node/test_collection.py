"""Nix's collector on a Kubernetes node: it takes nothing of an image that lives, and all of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import KubeNode, kube_node, store_archive
from lab import nix_closure, run
from lab.privatestore import PrivateStore
from lab.processes import wait_until

pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)


@pytest.fixture
def store(directory, closure) -> PrivateStore:
    """A store that nobody else minds being collected, and a cache that has the pause image's closure."""
    store = PrivateStore.below(directory)
    store.publish(closure)
    return store


@pytest.fixture
def kube(directory, installation, closure, store, monkeypatch) -> Iterator[KubeNode]:
    """A node whose store is that one."""
    monkeypatch.setattr("lab.daemon.nix_environment", lambda: store.environment)
    with kube_node(directory, installation, closure, config=f'store_root = "{store.root}"\n') as node:
        yield node


def test_an_image_is_collected_when_it_is_removed(kube, store, closure):
    """Archive, closureInfo and closure stay as long as image or pod are there, and go with the last of them."""
    app = nix_closure(3, name="collected", salt="collected")
    archive = store_archive(app, "collected")
    run("nix", "copy", "--to", f"file://{store.cache}", archive, environment=store.environment)
    reference = f"nix:0{archive}"
    everything = {archive, app.info, *app.paths}
    kube.cri.pull(reference)
    store.collect_garbage()
    assert {path for path in everything if not store.has(path)} == set()

    pod = kube.cri.run_pod("collected", kube.directory / "logs")
    container = pod.start("app", reference)
    store.collect_garbage()
    listed = pod.exec(container, f"{app.top}/bin/ls", "/nix/store").split()
    assert listed == sorted(path.removeprefix("/nix/store/") for path in app.paths)

    # A container keeps its snapshots, as with every image; the archive is no more needed.
    kube.cri.remove_image(reference)
    kube.containerd.collect_garbage(namespace="k8s.io")
    store.collect_garbage()
    assert not store.has(archive)
    assert pod.exec(container, f"{app.top}/bin/cat", f"{app.top}/dependencies")

    pod.remove()

    def is_gone() -> bool:
        kube.containerd.collect_garbage(namespace="k8s.io")
        store.collect_garbage()
        return not {path for path in everything if store.has(path)} - set(closure.paths)

    wait_until(is_gone, what="be collected", timeout_seconds=60)
    assert {path for path in closure.paths if not store.has(path)} == set()  # the pause image lives
