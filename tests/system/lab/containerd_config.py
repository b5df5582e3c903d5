"""The configuration of a private containerd: version 2 for containerd 1.x, version 3 for 2.x."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class CriSettings:
    """How containerd's CRI plugin is set up: for pods in raw CRI calls, with no kubelet and no registry."""

    sandbox_image: str
    """The pause image's reference; it must be loaded into the namespace k8s.io."""
    snapshotter: str = "nix"
    cni_conf_dir: Path | None = None
    """Where pod networks are described; by default an empty directory (containerd makes it when it is not there)."""
    cni_bin_dir: Path = Path("/usr/lib/cni")
    runc: str = "runc"
    """The program that runs containers."""


_CRI_PLUGINS = {
    2: ["io.containerd.grpc.v1.cri"],
    3: ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"],
}


def _cri_v2(cri: CriSettings, cni_conf_dir: Path) -> dict[str, dict[str, Any]]:
    """CRI of containerd 1.x: one plugin."""
    plugin = "plugins.'io.containerd.grpc.v1.cri'"
    return {
        plugin: {
            "sandbox_image": cri.sandbox_image,
            "restrict_oom_score_adj": True,  # root of a container may lack CAP_SYS_RESOURCE
            "netns_mounts_under_state_dir": True,  # /run/netns is the machine's
            "stream_server_port": "0",
        },
        f"{plugin}.containerd": {
            "snapshotter": cri.snapshotter,
            "disable_snapshot_annotations": False,
            "default_runtime_name": "runc",
        },
        f"{plugin}.containerd.runtimes.runc": {"runtime_type": "io.containerd.runc.v2"},
        f"{plugin}.containerd.runtimes.runc.options": {"BinaryName": cri.runc},
        f"{plugin}.cni": {"bin_dir": str(cri.cni_bin_dir), "conf_dir": str(cni_conf_dir)},
    }


def _cri_v3(cri: CriSettings, cni_conf_dir: Path) -> dict[str, dict[str, Any]]:
    """CRI of containerd 2.x: images, runtime and the streaming server are plugins of their own."""
    images, runtime = "plugins.'io.containerd.cri.v1.images'", "plugins.'io.containerd.cri.v1.runtime'"
    return {
        images: {"snapshotter": cri.snapshotter, "disable_snapshot_annotations": False},
        f"{images}.pinned_images": {"sandbox": cri.sandbox_image},
        runtime: {"restrict_oom_score_adj": True, "netns_mounts_under_state_dir": True},
        f"{runtime}.containerd": {"default_runtime_name": "runc"},
        f"{runtime}.containerd.runtimes.runc": {"runtime_type": "io.containerd.runc.v2"},
        f"{runtime}.containerd.runtimes.runc.options": {"BinaryName": cri.runc},
        f"{runtime}.cni": {"bin_dirs": [str(cri.cni_bin_dir)], "conf_dir": str(cni_conf_dir)},
        "plugins.'io.containerd.grpc.v1.cri'": {"stream_server_port": "0"},
    }


def _toml(table: dict[str, Any]) -> str:
    """Render keys of strings, booleans, numbers and lists of strings: for these JSON's notation is TOML's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def render_config(directory: Path, *, major: int, snapshotter: Path | None, cri: CriSettings | None) -> str:
    """The configuration for a containerd of that major version, all it makes below `directory`."""
    version = 3 if major > 1 else 2
    top: dict[str, Any] = {
        "version": version,
        "root": str(directory / "root"),
        "state": str(directory / "state"),
        "disabled_plugins": [] if cri else _CRI_PLUGINS[version],
    }
    tables: dict[str, dict[str, Any]] = {
        "grpc": {"address": str(directory / "containerd.sock")},
        "ttrpc": {"address": str(directory / "containerd.sock.ttrpc")},
        "plugins.'io.containerd.internal.v1.opt'": {"path": str(directory / "opt")},
        # Its socket is machine-wide: two containerds would fight over it.
        "plugins.'io.containerd.nri.v1.nri'": {"disable": True},
    }
    if snapshotter:
        proxy = {"type": "snapshot", "address": str(snapshotter), "capabilities": ["remap-ids"]}
        tables["proxy_plugins.nix"] = proxy
    if cri:
        cni_conf_dir = cri.cni_conf_dir or directory / "cni"
        tables |= _cri_v3(cri, cni_conf_dir) if version == 3 else _cri_v2(cri, cni_conf_dir)
    return _toml(top) + "".join(f"\n[{name}]\n{_toml(table)}" for name, table in tables.items())
