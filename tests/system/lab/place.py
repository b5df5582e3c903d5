"""Where a node runs: on the host as root, or in a plain user's namespaces (`lab.rootless`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lab.mounts import Mount, mount_count, mounts_below, unmount_below


class Place(Protocol):
    """Where programs run and what is mounted there."""

    @property
    def containerd_namespace(self) -> str:
        """The containerd namespace to use; on cgroup v1 also the cgroup directory that containers get."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What programs need in their environment there."""

    def argv(self, *argv: str | Path) -> Sequence[str | Path]:
        """The command that runs a command there."""

    def give(self, path: Path) -> None:
        """Let the programs there write in a directory, or to a file, of ours."""

    def mounts_below(self, directory: Path) -> list[Mount]:
        """The mounts there, at `directory` or beneath it."""

    def mount_count(self) -> int:
        """How many mounts there are."""

    def unmount_below(self, directory: Path) -> None:
        """Take down the mounts there at `directory` or beneath it."""


class Host:
    """The machine itself, as root."""

    containerd_namespace = "lab"
    environment: Mapping[str, str] = {}

    def argv(self, *argv: str | Path) -> Sequence[str | Path]:
        """The command itself."""
        return argv

    def give(self, path: Path) -> None:
        """Root may write anywhere."""

    def mounts_below(self, directory: Path) -> list[Mount]:
        """The host's mounts at `directory` or beneath it."""
        return mounts_below(directory)

    def mount_count(self) -> int:
        """How many mounts the host has."""
        return mount_count()

    def unmount_below(self, directory: Path) -> None:
        """Take them down."""
        unmount_below(directory)


HOST = Host()
