"""Pods with user namespaces of their own (`hostUsers: false`), as kubelet asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import KubeNode, kube_node, store_archive
from lab import mounts_below, nix_closure
from lab.processes import wait_until
from lab.requirements import need_unpacked

# containerd 2 has CRI's own mounts (/etc/hosts and so on) idmapped by runc, and asks first whether it can: since 1.2.
pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)


@pytest.fixture
def kube(directory, installation, closure) -> Iterator[KubeNode]:
    """A node with a network for pods, and a runc that idmaps mounts."""
    runc = need_unpacked("runc/runc")
    for place in (directory, directory.parent):
        place.chmod(0o711)  # runc looks root directories up with the mapped ids
    with kube_node(directory, installation, closure, runc=str(runc)) as node:
        yield node


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_pods_of_one_image_with_ids_of_their_own(kube):
    """Sandbox and containers: root's files inside, the pod's ids outside, two pods at once, nothing left."""
    app = nix_closure(3, name="userns-pod", salt="userns-pod")
    reference = f"nix:0{store_archive(app, 'userns-pod')}"
    kube.cri.pull(reference)
    committed = set(kube.nixsnap.root.glob("snapshots/*"))
    command = [f"{app.top}/bin/sleep", "1000"]
    pods = {
        first_id: kube.run_pod_in_a_network(f"pod-{first_id}", first_id=first_id)
        for first_id in (131_072, 262_144)
    }
    sh = f"{app.top}/bin/sh"
    for first_id, pod in pods.items():
        before = set(kube.nixsnap.root.glob("snapshots/*"))
        container = pod.start("app", reference, command)
        (snapshot,) = set(kube.nixsnap.root.glob("snapshots/*")) - before
        said = pod.exec(
            container, sh, "-c", f"id -u; stat -c %u:%g / /nix/store {app.top}/bin; cat /proc/self/uid_map"
        )
        assert said.split() == ["0", "0:0", "0:0", "0:0", "0", str(first_id), "65536"]
        assert pod.exec(container, sh, "-c", "find /nix ! -user 0; find /nix ! -group 0") == ""
        pod.exec(container, sh, "-c", f"touch /new; chown 1:2 /new; echo mine > {app.top}/new")
        assert owner(snapshot / "fs/new") == (first_id + 1, first_id + 2)
        assert owner(snapshot / "fs" / app.top.removeprefix("/") / "new") == (first_id, first_id)
    assert owner(Path(app.top)) == (0, 0)
    for pod in pods.values():
        pod.remove()
    kube.containerd.collect_garbage()
    wait_until(
        lambda: set(kube.nixsnap.root.glob("snapshots/*")) == committed, what="remove the pods' snapshots"
    )
    assert mounts_below(kube.nixsnap.root) == []
