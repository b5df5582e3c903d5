"""A plain user's node: rootlesskit, and containerd and nixsnap inside the namespaces it makes.

    with Rootless.start(directory) as rootless:
        nixsnap = NixsnapDaemon.start(directory / "nixsnap", place=rootless)
        containerd = Containerd.start(
            installation, directory / "containerd", snapshotter=nixsnap.address, place=rootless
        )

The user is `nixsnap-test`, which packaging/test makes once and leaves: one without a home, a password or any right,
that has ranges of subordinate ids. Each `Rootless` has a home and an XDG_RUNTIME_DIR of its own, so several runs do
not meet. Everything runs as that user, ctr and `nix2container` as well: they join the namespaces as a person would.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from lab.cache import LAB_DIRECTORY
from lab.mounts import Mount, mounts
from lab.processes import Process, run
from lab.workspace import PREFIX

USER: Final = "nixsnap-test"
"""Made by make_test_user of packaging/lib/common.sh."""

_numbers = itertools.count(1)

# What containerd-rootless.sh of nerdctl does in there, as far as containerd and its shims need it: /run is a copy of
# the host's, made of symbolic links, and what is fixed to /run/containerd has to be the user's own.
_IN_NAMESPACE: Final = """
set -eu
rm -rf /run/containerd /run/nix-snapshotter
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
    }


def _program(path: Path, version: str) -> Path | None:
    if not os.access(path, os.X_OK):
        return None
    said = run(path, "--version", check=False).stdout
    return path if said.startswith(f"rootlesskit version {version}") else None


def missing_for_rootless() -> list[str]:
    """What this machine lacks for rootless nodes."""
    missing = [
        f"{name} on PATH"
        for name in ("slirp4netns", "newuidmap", "newgidmap", "nix-daemon", "nsenter")
        if not shutil.which(name)
    ]
    missing += [f"rootlesskit {name}" for name, variant in rootlesskit_variants().items() if variant is None]
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return [*missing, f"the user {USER}"]
    for table in ("/etc/subuid", "/etc/subgid"):
        if not any(line.startswith(f"{USER}:") for line in Path(table).read_text().splitlines()):
            missing.append(f"a range for {USER} in {table}")
    for device in ("/dev/net/tun", "/dev/fuse"):
        if not Path(device).exists() or Path(device).stat().st_mode & 0o666 != 0o666:
            missing.append(f"{device}, open to every user")
    if run(*as_user(), sys.executable, "-c", "", check=False).returncode != 0:
        missing.append(
            f"a Python that {USER} can run ({sys.executable} lies in a directory closed to others)"
        )
    if not _controllers():
        missing.append("cgroup v1 (on v2 a user gets cgroups from systemd alone)")
    return missing


@attrs.frozen(kw_only=True, eq=False)
class Rootless:
    """One running rootlesskit with its namespaces: a `lab.place.Place`."""

    directory: Path
    variant: Variant
    process: Process
    containerd_namespace: str
    """On cgroup v1 containerd puts containers into a directory of this name at the top of each hierarchy."""
    nix_daemon: Path
    """The socket of a Nix daemon that serves the machine's own store, as a user of a multi-user Nix has it."""

    @classmethod
    @contextmanager
    def start(cls, directory: Path, *, variant: Variant | None = None) -> Iterator[Rootless]:
        """Start it in a new directory below `directory`; all that runs in it must have ended when the block does."""
        variant = variant or rootlesskit_variants()["1"]
        if variant is None:
            raise FileNotFoundError("rootlesskit 1.x is not here; packaging/test brings it")
        own = directory / "rootless"
        own.mkdir()
        _let_pass(own)
        with contextlib.ExitStack() as stack:
            for name in ("home", "run", "run/containerd"):
                _make_private(own / name)
            name = f"nixsnap-test-{os.getpid()}-{next(_numbers)}"
            stack.enter_context(_cgroups(name))
            daemon = stack.enter_context(_nix_daemon(own))
            process = _start_rootlesskit(own, variant)
            stack.callback(process.stop)
            process.wait_until((own / "run/ready").exists, what="make its namespaces")
            yield cls(
                directory=own, variant=variant, process=process, containerd_namespace=name, nix_daemon=daemon
            )

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.directory / "home"

    @property
    def runtime_directory(self) -> Path:
        """XDG_RUNTIME_DIR."""
        return self.directory / "run"

    @property
    def state_directory(self) -> Path:
        """rootlesskit's, at the place where containerd-rootless has it."""
        return self.runtime_directory / "containerd-rootless"

    @property
    def child_pid(self) -> int:
        """The process whose namespaces to join."""
        return int((self.state_directory / "child_pid").read_text())

    @property
    def environment(self) -> Mapping[str, str]:
        """The user's own, with Nix going to the private daemon."""
        return {**_environment(self.directory), "NIX_REMOTE": f"unix://{self.nix_daemon}"}

    def argv(self, *argv: str | Path) -> Sequence[str | Path]:
        """The command that runs a command in the namespaces, as their root; it starts as the user, as a person would.

        The program gets SIGTERM when whoever runs it ends; joining a user namespace drops that wish, so it is
        made again.
        """
        net = [] if "--detach-netns" in self.variant.options else ["--net"]
        join = [
            "nsenter",
            "--preserve-credentials",
            "--user",
            "--mount",
            *net,
            f"--target={self.child_pid}",
            "--",
        ]
        return [*as_user(), *join, "setpriv", "--pdeathsig", "TERM", *argv]

    def subdirectory(self, name: str) -> Path:
        """Make a directory of the user's for one program."""
        directory = self.directory / name
        directory.mkdir()
        _give(directory)
        return directory

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespaces to its end."""
        return run(*self.argv(*argv), check=check, environment=self.environment)

    def run_outside(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, outside the namespaces."""
        return run(*as_user(), *argv, check=check, environment=self.environment)

    def give(self, path: Path) -> None:
        """Make a directory or file the user's."""
        _let_pass(path)
        _give(path)

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


def as_user() -> list[str]:
    """What comes before a command to run it as the user with nothing of root's left."""
    account = pwd.getpwnam(USER)
    return [
        # setpriv itself keeps root's capabilities up to the exec, which then finds what the user would not; so env.
        "setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "env", "--",
    ]  # fmt: skip


def _environment(directory: Path) -> dict[str, str]:
    return {
        "HOME": str(directory / "home"),
        "XDG_RUNTIME_DIR": str(directory / "run"),
        "USER": USER,
        "LOGNAME": USER,
        "TMPDIR": str(directory / "home"),
    }


def _start_rootlesskit(directory: Path, variant: Variant) -> Process:
    return Process.start(
        f"rootlesskit {variant.name}",
        *as_user(), "setpriv", "--pdeathsig", "TERM", variant.program,
        f"--state-dir={directory}/run/containerd-rootless", "--net=slirp4netns", "--mtu=65520",
        "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "--disable-host-loopback",
        "--port-driver=builtin", "--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib", *variant.options,
        "sh", "-c", _IN_NAMESPACE,
        log=directory / "rootlesskit.log",
        environment=_environment(directory),
    )  # fmt: skip


@contextmanager
def _nix_daemon(directory: Path) -> Iterator[Path]:
    socket = directory / "nix-daemon.sock"
    process = Process.start(
        "nix-daemon",
        "nix-daemon",
        log=directory / "nix-daemon.log",
        environment={
            "NIX_DAEMON_SOCKET_PATH": str(socket),
            "NIX_CONFIG": "build-users-group =\nsubstituters =\n",
        },
    )
    try:
        process.wait_until(socket.exists, what="make its socket")
        yield socket
    finally:
        process.stop()


@contextmanager
def _cgroups(name: str) -> Iterator[None]:
    """Directories of cgroup v1 that the user may write: rootless runc makes its containers' below them."""
    directories = [controller / name for controller in _controllers()]
    try:
        for directory in directories:
            directory.mkdir()
            for path in (directory, *directory.iterdir()):
                _give(path)
        yield
    finally:
        for directory in directories:
            for below in sorted(filter(Path.is_dir, directory.rglob("*")), reverse=True):
                below.rmdir()
            directory.rmdir()


def _controllers() -> list[Path]:
    return [mount.point for mount in mounts() if mount.fs_type == "cgroup"]


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700)
    _give(path)


def _give(path: Path) -> None:
    account = pwd.getpwnam(USER)
    os.chown(path, account.pw_uid, account.pw_gid)


def _let_pass(path: Path) -> None:
    """Let the user reach a path below a workspace, which is root's alone: pass through, not look around."""
    for directory in path.parents:
        if directory.name.startswith(PREFIX):
            directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
