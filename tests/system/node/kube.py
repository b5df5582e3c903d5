"""A Kubernetes node without kubelet: containerd with CRI, nixsnap as its image service, and images in the store."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import grpc
from cri import POD, Cri, Pod
from lab import (
    Closure,
    Containerd,
    CriSettings,
    Installation,
    NixsnapDaemon,
    build_image,
    load_image,
    run,
)
from lab.daemon import installed_program
from lab.nix import nix_environment
from lab.processes import wait_until

PAUSE = "lab.invalid/pause:1"
NETWORK = f"198.{18 + os.getpid() // 256 % 2}.{os.getpid() % 256}."
"""How the addresses of pods begin: the host gets a route to each, and other runs have pods at the same time."""

ARCHIVE = """
{ builder, closureInfo, config, roots, options, name }:
derivation {
  inherit name;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  closureInfo = builtins.storePath closureInfo;
  args = [
    "-c"
    "exec ${builder} build --config ${config} --copy-to-root ${roots} ${options} --closure $closureInfo $out"
  ];
}
"""


def store_archive(
    closure: Closure,
    name: str,
    *,
    config: dict | None = None,
    roots: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> str:
    """Build an image inside a derivation, so that its archive is a store path and knows its own nix:0 name."""
    with tempfile.TemporaryDirectory(prefix="nixsnap-archive.") as scratch:
        for file, value in (
            ("config", config or {"Cmd": [f"{closure.top}/bin/sleep", "1000"]}),
            ("roots", roots),
        ):
            Path(scratch, file).write_text(json.dumps(value))
        Path(scratch, "archive.nix").write_text(ARCHIVE)
        words = {
            "builder": installed_program("nix2container"),
            "closureInfo": closure.info,
            "config": f"{scratch}/config",
            "roots": f"{scratch}/roots",
            "options": " ".join(options),
            "name": f"{name}.tar",
        }
        arguments = [word for key, value in words.items() for word in ("--argstr", key, str(value))]
        built = run(
            "nix-build", "--no-out-link", f"{scratch}/archive.nix", *arguments, environment=nix_environment()
        )
        return built.stdout.strip()


@attrs.frozen
class KubeNode:
    nixsnap: NixsnapDaemon
    containerd: Containerd
    cri: Cri
    directory: Path

    def run_pod_in_a_network(self, name: str, *, first_id: int | None = None) -> Pod:
        """Run a pod in a network namespace of its own, with a veth pair made by the ptp plug-in of CNI."""
        ipam = {"type": "host-local", "subnet": f"{NETWORK}0/24", "dataDir": str(self.directory / "ipam")}
        network = {"cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "ptp", "ipam": ipam}]}
        (self.directory / "c/cni").mkdir(exist_ok=True)
        (self.directory / "c/cni/10-lab.conflist").write_text(json.dumps(network))
        pods: list[Pod] = []

        def runs() -> bool:
            with contextlib.suppress(
                grpc.RpcError
            ):  # containerd notices a new CNI configuration a moment later
                pods.append(self.cri.run_pod(name, self.directory / "logs", network=POD, first_id=first_id))
            return bool(pods)

        wait_until(runs, what="set up the pod's network")
        return pods[0]

    def roots(self) -> list[str]:
        """Names of the image archives that are rooted."""
        place = self.nixsnap.root / "gcroots/images"
        return [path.name for path in place.iterdir()] if place.exists() else []


@contextmanager
def kube_node(
    directory: Path, installation: Installation, closure: Closure, *, config: str = "", runc: str = "runc"
) -> Iterator[KubeNode]:
    """A node with CRI whose pause image is a Nix image of `closure`, and kubelet's image endpoint at nixsnap.

    `config` is nixsnap's, and precedes the table of the image service; `runc` is the program that runs containers.
    """
    for name in ("n", "c"):
        (directory / name).mkdir()
    address = directory / "c/containerd.sock"
    nixsnap = NixsnapDaemon.start(
        directory / "n", config=f'{config}[image_service]\ncontainerd_address = "{address}"\n'
    )
    cri_settings = CriSettings(sandbox_image=PAUSE, runc=runc)
    containerd = Containerd.start(
        installation, directory / "c", snapshotter=nixsnap.address, cri=cri_settings
    )
    pause = build_image(
        closure,
        directory / "pause.tar",
        reference=PAUSE,
        config={"Cmd": [f"{closure.top}/bin/sleep", "100000"]},
    )
    load_image(containerd, pause, namespace="k8s.io")
    cri = Cri(runtime=containerd.address, images=nixsnap.address)
    try:
        yield KubeNode(nixsnap, containerd, cri, directory)
    finally:
        cri.close()
        containerd.stop()
        nixsnap.destroy()
