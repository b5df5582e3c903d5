"""The image service as kubelet calls it: by kubelet's own client, with its deadlines, of which a pull has none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest
from kube import PAUSE, KubeNode, store_archive
from lab import build_image, installed_program, nix_closure, run
from lab.requirements import need_unpacked
from registries import start_docker_registry

pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)


@attrs.frozen
class Kubelet:
    """Calls of kubelet's, each by a process."""

    address: Path

    def call(self, method: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(need_unpacked("kubelet/kubelet"), self.address, method, *arguments, check=check)

    def answer(self, method: str, *arguments: str) -> Any:
        return json.loads(self.call(method, *arguments).stdout)


@pytest.fixture
def kubelet(kube: KubeNode) -> Kubelet:
    return Kubelet(kube.nixsnap.address)


def test_an_image_of_the_store(kube, kubelet):
    """It is not there, is pulled, is there under its name, and is gone when it was removed."""
    reference = f"nix:0{store_archive(nix_closure(1, salt='kubelet'), 'kubelet')}:latest"
    assert "image" not in kubelet.answer("status", reference)
    image_id = kubelet.answer("pull", reference)
    status = kubelet.answer("status", reference)
    assert (status["image"]["id"], status["image"]["repo_tags"]) == (image_id, [reference])
    assert {tag for image in kubelet.answer("list") for tag in image.get("repo_tags", [])} == {
        reference,
        PAUSE,
    }
    assert kubelet.answer("fsinfo")["image_filesystems"]
    kubelet.call("remove", image_id)
    assert "image" not in kubelet.answer("status", reference)
    assert kube.roots() == []


def test_an_image_of_a_registry(kube, kubelet, closure):
    """It goes to containerd, and takes as long as it takes."""
    registry = start_docker_registry(kube.directory / "registry")
    try:
        reference = f"{registry.host}/team/app:1"
        archive = build_image(closure, kube.directory / "app.tar", reference=reference)
        run(installed_program("nix2container"), "push", "--plain-http", "--ref", reference, archive)
        assert kubelet.answer("pull", reference, "user", "password") == kube.cri.image_id(reference)
    finally:
        registry.stop()


def test_refusals(kubelet):
    """Kubelet shows the message in the pod's events: it names the thing."""
    for reference, words in (
        ("nix:0/etc/passwd", "InvalidArgument desc = image reference 'nix:0/etc/passwd'"),
        (f"nix:0/nix/store/{'a' * 32}-x.tar:latest", "NotFound desc = cannot realise"),
        ("localhost:1/none:1", "connection refused"),
    ):
        refused = kubelet.call("pull", reference, check=False)
        assert refused.returncode == 1
        assert words in refused.stderr
