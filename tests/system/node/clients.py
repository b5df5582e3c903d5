"""Other people's clients of containerd, with the node's containerd and `nix` as their snapshotter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from lab import Node, Process, run, unmount_below
from lab.requirements import need_unpacked

TRANSFER_SERVICE = """
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "{snapshotter}"
"""
"""What a containerd needs for its transfer service to unpack with a proxy snapshotter (docs/nerdctl.md of nerdctl)."""


@attrs.frozen
class Program:
    """A command with the flags that make it work on the node."""

    words: tuple[str | Path, ...]
    environment: dict[str, str] = attrs.field(factory=dict)

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*self.words, *arguments, environment=self.environment, check=check)


def nerdctl(node: Node) -> Program:
    """nerdctl, its own files below the node's directory."""
    own = node.directory / "nerdctl"
    (own / "networks").mkdir(parents=True, exist_ok=True)
    flags = (
        *(
            "--address",
            node.containerd.address,
            "--namespace",
            node.containerd.namespace,
            "--snapshotter",
            "nix",
        ),
        *("--data-root", own / "data", "--cni-path", "/usr/lib/cni", "--cni-netconfpath", own / "networks"),
        *("--cgroup-manager", "cgroupfs", "--insecure-registry", "--hosts-dir", own),
    )
    return Program((need_unpacked("nerdctl/nerdctl"), *flags), node.containerd.installation.environment)


@contextmanager
def nerdctl_in(node: Node) -> Iterator[Program]:
    """nerdctl, as `docker` gives Docker."""
    yield nerdctl(node)


@contextmanager
def docker(node: Node, *, driver: str = "nix") -> Iterator[Program]:
    """Docker's command line, with an engine of its own that has no networks.

    With a containerd snapshotter as its driver it keeps its images in the node's containerd; `vfs` is Docker's own.
    """
    engine = need_unpacked("docker/usr/sbin/dockerd")
    own = node.directory / "docker"
    own.mkdir()
    settings = {
        "features": {"containerd-snapshotter": driver != "vfs"},
        "storage-driver": driver,
        "containerd": str(node.containerd.address),
        "containerd-namespace": "docker",
        "data-root": str(own / "root"),
        "exec-root": str(own / "exec"),
        "pidfile": str(own / "pid"),
        "hosts": [f"unix://{own}/sock"],
        # Nothing of the machine's network is touched.
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "ip-forward": False,
        "userland-proxy": False,
    }
    (own / "daemon.json").write_text(json.dumps(settings))
    process = Process.start(
        "dockerd",
        *(engine, "--config-file", own / "daemon.json"),
        log=own / "log",
        environment=node.containerd.installation.environment,
    )
    client = Program(
        (need_unpacked("docker/usr/bin/docker"), "--host", f"unix://{own}/sock"),
        {"DOCKER_CONFIG": str(own / "config")},
    )
    try:
        process.wait_until(lambda: client("version", check=False).returncode == 0, what="answer")
        yield client
    finally:
        process.stop()
        unmount_below(own)


@contextmanager
def original_snapshotter(directory: Path, environment: dict[str, str]) -> Iterator[Path]:
    """The Go nix-snapshotter; gives its socket."""
    address = directory / "original.sock"
    (directory / "original.toml").write_text("[image_service]\nenable = false\n")
    process = Process.start(
        "the original",
        *(need_unpacked("original/nix-snapshotter"), "--config", directory / "original.toml"),
        *("--address", address, "--root", directory / "original"),
        log=directory / "original.log",
        environment=environment,
    )
    try:
        process.wait_until(address.exists, what="listen")
        yield address
    finally:
        process.stop()
        unmount_below(directory / "original")
