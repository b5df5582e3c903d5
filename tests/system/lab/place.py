"""Where a node runs: on the host as root, or in a plain user's namespaces (`lab.rootless`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from lab.mounts import Mount, mount_count, mounts_below, unmount_below

AS_USER: Final = "NIXSNAP_TEST_AS_USER"
"""Set where a whole run of tests is in a plain user's namespaces (`rootless/test_as_user.py`), to the containerd
namespace to use there: on cgroup v1 the user may write in the cgroups of that name alone."""


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
    """What the tests themselves run in: the machine, as root, or a plain user's namespaces, as their root."""

    containerd_namespace = os.environ.get(AS_USER, "lab")
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
