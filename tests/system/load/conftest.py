"""Loading into real containerds: one of each release for all tests, and a namespace for each test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from lab import Containerd, Installation, Workspace, installed_program

# Archives made by hand, which the unit tier tampers with as well.
sys.path.insert(0, str(Path(__file__).parents[2] / "unit/containerd"))

# runc's state directory, and cgroups, are the machine's.
_namespaces = (f"load-{os.getpid()}-{number}" for number in itertools.count(1))


@attrs.frozen(kw_only=True)
class Target:
    """A containerd and a namespace of it that nobody else uses."""

    containerd: Containerd
    namespace: str

    def argv(self, *arguments: str | Path) -> list[str]:
        """The command line of `nix2container load` into it."""
        program = installed_program("nix2container")
        flags = ["--address", self.containerd.address, "--namespace", self.namespace, "load"]
        return [str(word) for word in (program, *flags, *arguments)]

    def load(
        self, *arguments: str | Path, snapshotter: str = "overlayfs", stdin: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `nix2container load` to its end, whatever that is."""
        with stdin.open("rb") if stdin else Path("/dev/null").open("rb") as source:
            return subprocess.run(
                self.argv("--snapshotter", snapshotter, *arguments),
                stdin=source,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

    def ctr(self, *arguments: str | Path, check: bool = True) -> str:
        """What `ctr` prints for the namespace."""
        return self.containerd.ctr(*arguments, namespace=self.namespace, check=check).stdout

    def blobs(self) -> set[str]:
        """The digests in the content store."""
        return set(self.ctr("content", "ls", "--quiet").split())

    def images(self) -> set[str]:
        """The names of the image records."""
        return set(self.ctr("image", "ls", "--quiet").split())

    def labels(self, digest: str) -> dict[str, str]:
        """A blob's labels."""
        for line in self.ctr("content", "ls").splitlines():
            name, _, labels = line.partition("\t")[0], *line.rpartition("\t")[1:]
            if name == digest and labels != "-":
                return dict(label.split("=", 1) for label in labels.split(","))
        return {}

    def snapshots(self, snapshotter: str = "overlayfs") -> set[str]:
        """The keys and names of the snapshots."""
        lines = self.ctr("snapshot", "--snapshotter", snapshotter, "ls").splitlines()[1:]
        # Key, parent if any, kind; the keys that unpackers make have a space in them.
        return {" ".join(line.split()[: 2 if line.startswith("extract-") else 1]) for line in lines}

    def leftovers(self, snapshotter: str = "overlayfs") -> dict[str, list[str]]:
        """What a load must not leave, whether or not it succeeds: leases, ingests, active snapshots."""
        active = self.ctr("content", "active").splitlines()[1:]
        leases = self.ctr("leases", "ls", "--quiet").split()
        found = {
            "leases": leases,
            "ingests": active,
            "keys": [key for key in self.snapshots(snapshotter) if key.startswith("extract-")],
        }
        return {kind: names for kind, names in found.items() if names}

    def everything(self, snapshotter: str = "overlayfs") -> dict[str, object]:
        """All that a load could leave."""
        found = {"images": self.images(), "blobs": self.blobs(), "snapshots": self.snapshots(snapshotter)}
        return {kind: names for kind, names in found.items() if names} | self.leftovers(snapshotter)

    def collect(self) -> None:
        """Let containerd collect its garbage, now."""
        self.ctr("leases", "create", "--id", "collect")
        self.ctr("leases", "delete", "--sync", "collect")


@pytest.fixture(scope="session")
def start_once(workspace: Workspace) -> Iterator[Callable[[Installation], Containerd]]:
    """Starts each release's containerd the first time it is asked for; none has a snapshotter but its own."""
    started: dict[Installation, Containerd] = {}

    def start(installation: Installation) -> Containerd:
        if installation not in started:
            started[installation] = Containerd.start(installation, workspace.subdirectory())
        return started[installation]

    yield start
    for containerd in started.values():
        containerd.stop()


@pytest.fixture
def target_in() -> Callable[[Containerd], Target]:
    """Makes a new namespace in a containerd."""
    return lambda containerd: Target(containerd=containerd, namespace=next(_namespaces))


@pytest.fixture
def target(installation: Installation, start_once: Callable[[Installation], Containerd]) -> Target:
    """A new namespace in each containerd release."""
    return Target(containerd=start_once(installation), namespace=next(_namespaces))
