"""A plain user of a systemd that tests have booted: lingering, so with a service manager and a message bus."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from lab.processes import run, wait_until
from lab.session import USER
from lab.systemd import Systemd

HOME: Final = Path("/home/u")


@attrs.frozen(kw_only=True, eq=False)
class Login:
    """The user, with a home of their own."""

    machine: Systemd
    uid: int
    variables: Mapping[str, str]
    """What sessions and services have in their environment beside the usual."""

    @classmethod
    def open(cls, machine: Systemd, **variables: str) -> Login:
        """Make a home, and have root enable lingering, which is what the user is told to ask for."""
        machine.run("usermod", "--home", HOME, USER)
        machine.run("install", "-d", "-o", USER, "-m", "0700", HOME)
        uid = int(machine.run("id", "-u", USER).stdout)
        login = cls(machine=machine, uid=uid, variables=variables)
        login.run("mkdir", "-p", f"{HOME}/.config/environment.d")
        lines = "".join(f"{name}={value}\n" for name, value in variables.items())
        machine.path(HOME / ".config/environment.d/lab.conf").write_text(lines)
        machine.run("loginctl", "enable-linger", USER)
        wait_until(login.is_in, what="start the user's service manager")
        return login

    def is_in(self) -> bool:
        """Whether the user has a service manager."""
        return self.systemctl("is-system-running", check=False).stdout.strip() in {"running", "degraded"}

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, as from a shell of theirs."""
        usual = {"HOME": HOME, "USER": USER, "XDG_RUNTIME_DIR": f"/run/user/{self.uid}"}
        environment = [f"{name}={value}" for name, value in {**usual, **self.variables}.items()]
        become = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "env", "-i")
        path = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        enter = ("nsenter", f"--target={self.machine.pid}", "--all", "--")
        return run(*enter, *become, path, *environment, *argv, check=check)

    def systemctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl for the user's service manager; a failure comes with the end of the journal."""
        result = self.run("systemctl", "--user", "--no-pager", *arguments, check=False)
        assert result.returncode == 0 or not check, result.stdout + result.stderr + self.machine.journal()
        return result

    def show(self, unit: str, name: str) -> str:
        """A property of a unit of the user's."""
        return self.systemctl("show", "--property", name, "--value", unit).stdout.strip()
