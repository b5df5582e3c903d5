"""A plain user's node: rootlesskit, and containerd and nixsnap inside the namespaces it makes.

    with Rootless.start(directory) as rootless:
        nixsnap = NixsnapDaemon.start(rootless.subdirectory("nixsnap"), place=rootless)
        containerd = Containerd.start(
            installation, rootless.subdirectory("containerd"), snapshotter=nixsnap.address, place=rootless
        )

Everything runs as that user, ctr and `nix2container` as well: they join the namespaces as a person would.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from lab.cache import LAB_DIRECTORY
from lab.mounts import Mount, mounts
from lab.processes import Process, run
from lab.session import Session, as_user, missing_for_session

# What containerd-rootless.sh of nerdctl does in there, as far as containerd and its shims need it: /run is a copy of
# the host's, made of symbolic links, and what is fixed to /run/containerd has to be the user's own.
_IN_NAMESPACE: Final = """
set -eu
rm -rf /run/containerd /run/nix-snapshotter /var/lib/cni
mkdir /run/containerd
mount --bind "$XDG_RUNTIME_DIR/containerd" /run/containerd
touch "$XDG_RUNTIME_DIR/ready"
exec sleep infinity
"""


@attrs.frozen
class Variant:
    """A rootlesskit and how it is called."""

    name: str
    program: Path
    options: tuple[str, ...] = ()


def rootlesskit_variants() -> dict[str, Variant | None]:
    """Every way to run rootlesskit that nixsnap promises to work with; None for those this machine lacks."""
    first = _program(Path("/usr/bin/rootlesskit"), "1.")
    second = _program(LAB_DIRECTORY / "rootlesskit-2/usr/bin/rootlesskit", "2.")
    return {
        "1": Variant("1", first) if first else None,
        "2": Variant("2", second) if second else None,
        "2-detach-netns": Variant("2-detach-netns", second, ("--detach-netns",)) if second else None,
        # What pods take: a sandbox in the host's network has its host name as well, and joins the namespace of both.
        "2-utsns": Variant("2-utsns", second, ("--utsns",)) if second else None,
    }


def _program(path: Path, version: str) -> Path | None:
    if not os.access(path, os.X_OK):
        return None
    said = run(path, "--version", check=False).stdout
    return path if said.startswith(f"rootlesskit version {version}") else None


def missing_for_rootless() -> list[str]:
    """What this machine lacks for rootless nodes."""
    variants = rootlesskit_variants().items()
    return [*missing_for_session(), *(f"rootlesskit {name}" for name, variant in variants if variant is None)]


@attrs.frozen(kw_only=True, eq=False)
class Rootless(Session):
    """One running rootlesskit with its namespaces: a `lab.place.Place`."""

    variant: Variant
    process: Process

    @classmethod
    @contextmanager
    def start(cls, directory: Path, *, variant: Variant | None = None) -> Iterator[Rootless]:
        """Start it in a new directory below `directory`; all that runs in it must have ended when the block does."""
        variant = variant or rootlesskit_variants()["1"]
        if variant is None:
            raise FileNotFoundError("rootlesskit 1.x is not here; packaging/test brings it")
        with Session.open(directory) as session:
            process = _start_rootlesskit(session, variant)
            try:
                process.wait_until((session.runtime_directory / "ready").exists, what="make its namespaces")
                yield cls(**attrs.asdict(session, recurse=False), variant=variant, process=process)
            finally:
                process.stop()

    @property
    def child_pid(self) -> int:
        """The process whose namespaces to join."""
        return int((self.state_directory / "child_pid").read_text())

    @property
    def environment(self) -> Mapping[str, str]:
        """The user's own; and rootlesskit's state directory, which what it starts knows too."""
        return {**super().environment, "ROOTLESSKIT_STATE_DIR": str(self.state_directory)}

    def argv(self, *argv: str | Path) -> Sequence[str | Path]:
        """The command that runs a command in the namespaces, as their root; it starts as the user, as a person would.

        The program gets SIGTERM when whoever runs it ends; joining a user namespace drops that wish, so it is
        made again.
        """
        net = [] if "--detach-netns" in self.variant.options else ["--net"]
        uts = ["--uts"] if "--utsns" in self.variant.options else []
        join = [
            "nsenter",
            "--preserve-credentials",
            "--user",
            "--mount",
            *net,
            *uts,
            f"--target={self.child_pid}",
            "--",
        ]
        return [*as_user(), *join, "setpriv", "--pdeathsig", "TERM", *argv]

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespaces to its end."""
        return run(*self.argv(*argv), check=check, environment=self.environment)

    def mounts(self) -> list[Mount]:
        """Every mount in the namespaces."""
        return mounts(self.child_pid)

    def mounts_below(self, directory: Path) -> list[Mount]:
        """The mounts in the namespaces at `directory` or beneath it."""
        return [mount for mount in self.mounts() if mount.point.is_relative_to(directory)]

    def mount_count(self) -> int:
        """How many mounts the namespaces hold."""
        return len(self.mounts())

    def unmount_below(self, directory: Path) -> None:
        """Detach what is mounted there, the newest first."""
        for mount in reversed(self.mounts_below(directory)):
            self.run("umount", "--lazy", mount.point)


def _start_rootlesskit(session: Session, variant: Variant) -> Process:
    return Process.start(
        f"rootlesskit {variant.name}",
        *as_user(), "setpriv", "--pdeathsig", "TERM", variant.program,
        f"--state-dir={session.state_directory}", "--net=slirp4netns", "--mtu=65520",
        "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "--disable-host-loopback",
        "--port-driver=builtin", "--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib", *variant.options,
        "sh", "-c", _IN_NAMESPACE,
        log=session.directory / "rootlesskit.log",
        environment=session.environment,
    )  # fmt: skip
