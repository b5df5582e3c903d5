"""The user that rootless nodes belong to, as if logged in.

The user is `nixsnap-test`, which packaging/test makes once and leaves: one without a home, a password or any right,
that has ranges of subordinate ids. Each session has a home and an XDG_RUNTIME_DIR of its own, so several runs do not
meet.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from lab.cgroups import V1, cgroups, hierarchies
from lab.nix import nix_environment
from lab.processes import Process, run
from lab.workspace import PREFIX

USER: Final = "nixsnap-test"
"""Made by make_test_user of packaging/lib/common.sh."""

_numbers = itertools.count(1)


def missing_for_session() -> list[str]:
    """What this machine lacks for sessions."""
    missing = [
        f"{name} on PATH"
        for name in ("slirp4netns", "newuidmap", "newgidmap", "nix-daemon", "nsenter")
        if not shutil.which(name)
    ]
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return [*missing, f"the user {USER}"]
    missing += [
        f"a range for {USER} in {table}"
        for table in ("/etc/subuid", "/etc/subgid")
        if not any(line.startswith(f"{USER}:") for line in Path(table).read_text().splitlines())
    ]
    missing += [
        f"{device}, open to every user"
        for device in ("/dev/net/tun", "/dev/fuse")
        if not Path(device).exists() or Path(device).stat().st_mode & 0o666 != 0o666
    ]
    if run(*as_user(), sys.executable, "-c", "", check=False).returncode != 0:
        missing.append(
            f"a Python that {USER} can run ({sys.executable} lies in a directory closed to others)"
        )
    if not hierarchies(V1):
        missing.append("cgroup v1 (on v2 a user gets cgroups from systemd alone)")
    return missing


@attrs.frozen(kw_only=True, eq=False)
class Session:
    """The user, logged in as it were: a home, an XDG_RUNTIME_DIR, cgroups, and a multi-user Nix."""

    directory: Path
    containerd_namespace: str
    """On cgroup v1 containerd puts containers into a directory of this name at the top of each hierarchy."""
    nix_daemon: Path
    """The socket of a Nix daemon that serves the machine's own store."""

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Session]:
        """Make one in a new directory below `directory`."""
        own = directory / "rootless"
        own.mkdir()
        _let_pass(own)
        for name in ("home", "run", "run/containerd"):
            _make_private(own / name)
        with cgroups(str(next(_numbers)), V1) as made, _nix_daemon(own) as nix_daemon:
            for cgroup in made:  # rootless runc makes its containers' below these
                for path in (cgroup, *cgroup.iterdir()):
                    _give(path)
            yield cls(directory=own, containerd_namespace=made[0].name, nix_daemon=nix_daemon)

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
    def environment(self) -> Mapping[str, str]:
        """The user's own, with Nix going to the private daemon."""
        return {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime_directory),
            "USER": USER,
            "LOGNAME": USER,
            "TMPDIR": str(self.home),
            "NIX_REMOTE": f"unix://{self.nix_daemon}",
        }

    def subdirectory(self, name: str) -> Path:
        """Make a directory of the user's for one program."""
        directory = self.directory / name
        directory.mkdir()
        _give(directory)
        return directory

    def run_outside(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, outside the namespaces."""
        return run(*as_user(), *argv, check=check, environment=self.environment)

    def give(self, path: Path) -> None:
        """Make a directory or file the user's."""
        _let_pass(path)
        _give(path)


def as_user() -> list[str]:
    """What comes before a command to run it as the user with nothing of root's left."""
    account = pwd.getpwnam(USER)
    return [
        # setpriv itself keeps root's capabilities up to the exec, which then finds what the user would not; so env.
        "setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "env",
    ]  # fmt: skip


@contextmanager
def _nix_daemon(directory: Path) -> Iterator[Path]:
    socket = directory / "nix-daemon.sock"
    process = Process.start(
        "nix-daemon",
        "nix-daemon",
        log=directory / "nix-daemon.log",
        environment={
            "NIX_DAEMON_SOCKET_PATH": str(socket),
            "NIX_CONFIG": nix_environment()["NIX_CONFIG"],
        },
    )
    try:
        process.wait_until(socket.exists, what="make its socket")
        yield socket
    finally:
        process.stop()


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
