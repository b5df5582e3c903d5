"""Where the daemon's files are: the system's directories for the machine's root, XDG's for everyone else.

Rootless containerd and its snapshotter run as root of a user namespace, so being uid 0 says little. Such a root's
XDG_RUNTIME_DIR is still the one of the user it was; a whole system in a user namespace (LXC and the like) has none for
its services, and `/run/user/0` for its root's sessions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

_UID_MAP: Final = Path("/proc/self/uid_map")


@attrs.frozen(kw_only=True)
class Places:
    """Default paths.

    Attributes:
        config: The configuration file.
        address: The socket that the daemon serves on.
        root: Directory of snapshots, views, stub layers, GC roots and metadata.
        containerd_address: containerd's socket.
    """

    config: Path
    address: Path
    root: Path
    containerd_address: Path


SYSTEM: Final = Places(
    config=Path("/etc/nix-snapshotter/config.toml"),
    address=Path("/run/nix-snapshotter/nix-snapshotter.sock"),
    root=Path("/var/lib/containerd/io.containerd.snapshotter.v1.nix"),
    containerd_address=Path("/run/containerd/containerd.sock"),
)


def default_places() -> Places:
    """The places of whoever runs this."""
    if is_rootless(os.geteuid(), uid_map=_UID_MAP.read_text(encoding="ascii"), environment=os.environ):
        return user_places(os.environ)
    return SYSTEM


def is_rootless(uid: int, *, uid_map: str, environment: Mapping[str, str]) -> bool:
    """Whether a process works for a plain user.

    Args:
        uid: Its effective user id.
        uid_map: The content of its `/proc/self/uid_map`, user_namespaces(7).
        environment: Its environment.
    """
    if uid != 0:
        return True
    return owner(uid_map) != 0 and environment.get("XDG_RUNTIME_DIR", "/run/user/0") != "/run/user/0"


def owner(uid_map: str) -> int:
    """The user id, outside, of a user namespace's root."""
    mapped = (line.split() for line in uid_map.splitlines())
    return next((int(outside) for inside, outside, _ in mapped if inside == "0"), 0)


def user_places(environment: Mapping[str, str]) -> Places:
    """The places of a user: XDG's (basedir-spec), whose variables do not count where they are no absolute paths."""
    home = Path(environment.get("HOME") or "~").expanduser()
    data = _directory(environment, "XDG_DATA_HOME", home / ".local/share")
    config = _directory(environment, "XDG_CONFIG_HOME", home / ".config")
    runtime = _directory(environment, "XDG_RUNTIME_DIR", Path(f"/run/user/{os.geteuid()}"))
    return Places(
        config=config / "nix-snapshotter/config.toml",
        address=runtime / "nix-snapshotter/nix-snapshotter.sock",
        # Outside the directory that rootlesskit covers with a copy, /var/lib: GC roots lie in it, and Nix's collector
        # looks for them from the host.
        root=data / "nix-snapshotter",
        containerd_address=runtime / "containerd/containerd.sock",
    )


def _directory(environment: Mapping[str, str], name: str, default: Path) -> Path:
    path = Path(environment.get(name, ""))
    return path if path.is_absolute() else default
