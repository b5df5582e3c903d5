"""The rootless lab itself, on containerd's own overlayfs snapshotter: what the other rootless tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Containerd, Installation, Rootless, build_plain_image, mounts_below, rootlesskit_variants, run
from lab.processes import processes_naming
from lab.requirements import need_containerd, need_rootless
from lab.session import USER

REFERENCE = "lab.invalid/plain:1"


def run_plain(containerd: Containerd, directory: Path, script: str) -> list[str]:
    """Load the plain image and run a script in a container of it."""
    archive = build_plain_image(directory / "plain.tar", reference=REFERENCE)
    containerd.ctr("image", "import", "--snapshotter", "overlayfs", archive)
    return containerd.run(REFERENCE, "/bin/sh", "-c", script, snapshotter="overlayfs").stdout.splitlines()


@pytest.mark.parametrize("name", rootlesskit_variants())
def test_every_rootlesskit(directory: Path, name: str):
    """Debian 12's rootlesskit and Debian 13's, the latter with its child in the host's network namespace as well."""
    variant = need_rootless(name)
    with Rootless.start(directory, variant=variant) as rootless:
        assert rootless.run("id", "-u").stdout == "0\n"
        assert rootless.run_outside("id", "-un").stdout == f"{USER}\n"
        here, there = (
            run("readlink", "/proc/self/ns/net").stdout,
            rootless.run("readlink", "/proc/self/ns/net").stdout,
        )
        assert (here == there) == (name == "2-detach-netns")
        containerd = Containerd.start(
            need_containerd("1.7"), rootless.subdirectory("containerd"), place=rootless
        )
        try:
            printed = run_plain(containerd, directory, "id -u; cat /proc/self/uid_map")
        finally:
            containerd.stop()
    assert printed[0] == "0"
    assert int(printed[1].split()[1]) > 0, "root of the container is somebody else outside"
    assert mounts_below(directory) == []
    assert processes_naming(directory) == []


def test_every_containerd(directory: Path, rootless: Rootless, installation: Installation):
    """Each release runs a container in the namespaces, and stopping it leaves nothing mounted there."""
    containerd = Containerd.start(installation, rootless.subdirectory("containerd"), place=rootless)
    before = rootless.mount_count()
    assert run_plain(containerd, directory, "echo hello") == ["hello"]
    containerd.start_container(REFERENCE, "/bin/sleep", "1000", snapshotter="overlayfs")
    assert rootless.mounts_below(containerd.directory)
    containerd.stop()
    assert rootless.mount_count() == before
    assert processes_naming(containerd.directory) == []


def test_user_has_no_rights(rootless: Rootless, closure):
    """What runs as the user has nothing of root's: not its files, not its capabilities, not its Nix store to write."""
    assert rootless.run_outside("cat", "/etc/shadow", check=False).returncode != 0
    status = rootless.run_outside("cat", "/proc/self/status").stdout
    assert [line.split()[1].strip("0") for line in status.splitlines() if line.startswith("CapPrm")] == [""]
    assert rootless.run("touch", f"{closure.top}/x", check=False).returncode != 0
    assert rootless.run("cat", f"{closure.top}/dependencies").stdout
    assert rootless.run("nix-store", "--query", "--hash", closure.top).stdout.startswith("sha256:")
