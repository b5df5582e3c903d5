"""The lab: private containerds, nixsnap daemons and Nix closures for everything that wants the real thing.

System tests, benchmarks and `packaging/demo` all start their node through this package:

    with Workspace.create() as workspace:
        nixsnap = NixsnapDaemon.start(workspace.subdirectory())
        containerd = Containerd.start(
            newest_containerd(), workspace.subdirectory(), snapshotter=nixsnap.address
        )
        archive = build_image(nix_closure(200), workspace.path / "image.tar", reference="lab.invalid/app:1")
        load_image(containerd, archive)
        print(containerd.run("lab.invalid/app:1", "/bin/sh", "-c", "ls /nix/store").stdout)

Nothing here touches the machine's own containerd: every instance has its own root, state, sockets and opt
directory below one workspace directory. Whatever a workspace started or mounted is gone when it closes, and
the next one sweeps what a killed run left behind. Needs root, runc and Nix; no package but nixsnap's own.
"""

from __future__ import annotations

from lab.containerd import (
    Containerd,
    Installation,
    containerd_installations,
    containerd_series,
    newest_containerd,
)
from lab.containerd_config import CriSettings
from lab.daemon import NixsnapDaemon, installed_program
from lab.images import LayerFile, add_plain_layer, build_image, build_plain_image, load_image
from lab.mounts import Mount, mount_count, mounts, mounts_below, unmount_below
from lab.netns import DetachedNetwork
from lab.nix import Closure, closure_info, nix_build, nix_closure, nix_environment
from lab.node import Node
from lab.privatestore import PrivateStore
from lab.processes import CommandError, Process, run
from lab.rootless import Rootless, rootlesskit_variants
from lab.workspace import Workspace

__all__ = [
    "Closure",
    "CommandError",
    "Containerd",
    "CriSettings",
    "DetachedNetwork",
    "Installation",
    "LayerFile",
    "Mount",
    "NixsnapDaemon",
    "Node",
    "PrivateStore",
    "Process",
    "Rootless",
    "Workspace",
    "add_plain_layer",
    "build_image",
    "build_plain_image",
    "closure_info",
    "containerd_installations",
    "containerd_series",
    "installed_program",
    "load_image",
    "mount_count",
    "mounts",
    "mounts_below",
    "newest_containerd",
    "nix_build",
    "nix_closure",
    "nix_environment",
    "rootlesskit_variants",
    "run",
    "unmount_below",
]
