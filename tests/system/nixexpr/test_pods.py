"""Images of the expressions, on a Kubernetes node: from a registry, and from the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from expressions import REPOSITORY
from kube import KubeNode, kube_node
from lab import run
from lab.processes import wait_until
from registries import start_docker_registry

pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)


@pytest.fixture
def kube(directory, installation, closure) -> Iterator[KubeNode]:
    """A node for pods; its pause image is a Nix image of `closure`."""
    with kube_node(directory, installation, closure) as node:
        yield node


def said(kube: KubeNode, image: str, arguments: list[str] | None = None) -> str:
    """Run a container of an image in a pod, and return what it logs until it ends."""
    pod = kube.cri.run_pod("pod", kube.directory / "logs")
    pod.start("app", image, arguments=arguments or [])
    log = kube.directory / "logs/app.log"
    wait_until(lambda: log.exists() and log.read_text() != "", what="say something")
    pod.remove()
    # A line of CRI's log format: time, stream, F for a full line, text.
    return log.read_text().split(" ", 3)[3]


def test_example_runs_as_a_pod(nix, kube):
    """The pod of examples/declarative-k8s.nix: its image is pulled by its name alone, and runs with its arguments."""
    built = nix.build_file(REPOSITORY / "examples/declarative-k8s.nix", "--argstr", "name", "redis")
    (container,) = json.loads((built / "share/k8s/redis-pod.json").read_text())["spec"]["containers"]
    kube.cri.pull(container["image"])
    assert said(kube, container["image"], container["args"]) == "redis-server --protected-mode no\n"
    assert kube.roots() == [Path(container["image"]).name]


def test_copied_to_a_registry_and_pulled(nix, kube):
    """`copyToRegistry` pushes under the name that it is given, and CRI pulls that."""
    registry = start_docker_registry(kube.directory / "registry")
    image = """buildImage {
      name = "lab.invalid/app";
      config.entrypoint = [ "${pkgs.redis}/bin/redis-server" "--port" "1" ];
    }"""
    target = f'imageName = "{registry.host}/team/app"; imageTag = "2"; plainHTTP = true;'
    try:
        run(nix.build(f"({image}).copyToRegistry {{ {target} }}") / "bin/copy-to-registry")
        kube.cri.pull(f"{registry.host}/team/app:2")
        assert said(kube, f"{registry.host}/team/app:2") == "redis-server --port 1\n"
        assert "inferred" not in kube.nixsnap.log_text()
    finally:
        registry.stop()
