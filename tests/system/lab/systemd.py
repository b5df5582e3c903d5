"""A systemd as process 1, in namespaces of its own, for tests of our units.

    with Systemd.boot(directory) as machine:
        machine.install_units("nix-snapshotter.service")
        machine.systemctl("start", "nix-snapshotter")

Its root file system is an overlay on this machine's, so it has the same programs and users, and whatever it writes is
gone with it. Containers' directories are real ones, since overlays cannot lie upon overlays; the network is the
machine's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from lab.cache import LAB_DIRECTORY
from lab.cgroups import V1, V2, cgroups, hierarchies
from lab.mounts import mounts
from lab.processes import Process, run

SYSTEMD: Final = Path("/lib/systemd/systemd")
REPOSITORY: Final = Path(__file__).parents[3]

# What users' sessions take: message buses, and PAM's part.
_SESSIONS: Final = (
    Path("/lib/systemd/system/dbus.socket"),
    Path("/lib/systemd/user/dbus.socket"),
    Path("/usr/lib/pam.d/systemd-user"),
)

SEES_INTERPRETER: Final = "ProtectHome=no\n" if sys.base_prefix.startswith(("/root/", "/home/")) else ""
"""What a unit with ProtectHome=yes needs: the interpreter that tests run with may lie in somebody's home."""

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun")

# What would change this machine, whose kernel it is, or takes the network.
_MASKED: Final = (
    "systemd-sysctl.service", "systemd-modules-load.service", "systemd-remount-fs.service",
    "systemd-binfmt.service", "systemd-timesyncd.service", "systemd-udevd.service", "systemd-networkd.service",
    "systemd-hwdb-update.service", "systemd-random-seed.service", "systemd-firstboot.service",
    "proc-sys-fs-binfmt_misc.automount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount", "timers.target", "getty.target",
)  # fmt: skip

# In new namespaces, at $1: make the root file system, and become process 1 in it.
_BOOT: Final = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
root=$1/root
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
for place in run dev sys/fs/cgroup; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for device in {devices}; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${{number%:*}}" "$root/dev/${{number#*:}}"; done
{binds}
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
rm -rf "$root/etc/fstab" "$root"/etc/systemd/system/*.wants
mkdir -p "$root/run/systemd/system"
for unit in {masked}; do ln -s /dev/null "$root/run/systemd/system/$unit"; done
mkdir "$root/run/before"
cd "$root"
pivot_root . run/before
umount --lazy /run/before
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    {systemd} --system --unit=basic.target --log-target=journal
"""


def missing_for_systemd() -> list[str]:
    """What this machine lacks for it."""
    missing = [str(path) for path in (SYSTEMD, *_SESSIONS) if not path.exists()]
    return missing if hierarchies(V2) else [*missing, "a mounted cgroup2"]


@attrs.frozen(kw_only=True, eq=False)
class Systemd:
    """A running one."""

    pid: int
    """Its process 1, as this machine counts."""

    @classmethod
    @contextmanager
    def boot(cls, directory: Path, *, unified: bool = False) -> Iterator[Systemd]:
        """Start it, its files below `directory`; at the end its processes are killed, as by a power cut.

        Args:
            directory: A new one.
            unified: Whether it has cgroups v2 alone, without the controllers that this machine's v1 keeps to itself;
                else it has what this machine has.
        """
        for name in ("root", "containers", "home"):
            (directory / name).mkdir()
        with cgroups("systemd", *((V2,) if unified else (V1, V2))) as made:
            process = _start(directory, made, unified=unified)
            try:
                process.wait_until(lambda: bool(_children(process.pid)), what="fork")
                (pid,) = _children(process.pid)
                machine = cls(pid=pid)
                process.wait_until(machine._is_up, what="boot", timeout_seconds=60)
                yield machine
            finally:
                for pid in _children(process.pid):
                    os.kill(pid, signal.SIGKILL)  # and with process 1 all of its namespace
                process.stop()

    def path(self, path: str | Path) -> Path:
        """Where a path of its file system is to be found on this machine."""
        return Path(f"/proc/{self.pid}/root{path}")

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root, to its end."""
        return run("nsenter", f"--target={self.pid}", "--all", "--", *argv, check=check)

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl and return what it printed; a failure comes with the end of the journal."""
        result = self.run("systemctl", "--no-pager", *arguments, check=False)
        assert result.returncode == 0, result.stdout + result.stderr + self.journal()
        return result.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).strip()

    def journal(self, *arguments: str) -> str:
        """The end of the journal."""
        return self.run("journalctl", "--no-pager", "--lines=100", *arguments, check=False).stdout

    def install_program(self, program: Path, *, name: str | None = None) -> None:
        """Put a link to a program where an administrator would put the program."""
        link = self.path("/usr/local/bin") / (name or program.name)
        link.unlink(missing_ok=True)
        link.symlink_to(program)

    def install_units(self, *files: Path | str) -> None:
        """Copy units, ours by name, and have systemd read them."""
        for file in files:
            shutil.copy(REPOSITORY / "packaging/systemd" / file, self.path("/etc/systemd/system"))
        self.systemctl("daemon-reload")

    def drop_in(self, unit: str, settings: str) -> None:
        """Add to the `[Service]` section of a unit, as an administrator would."""
        file = self.path(f"/etc/systemd/system/{unit}.d/lab.conf")
        file.parent.mkdir()
        file.write_text(f"[Service]\n{settings}")
        self.systemctl("daemon-reload")

    def _is_up(self) -> bool:
        if not self.path("/run/systemd/private").exists():
            return False
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in {
            "running",
            "degraded",
        }


def _start(directory: Path, cgroups: list[Path], *, unified: bool) -> Process:
    top = Path("/sys/fs/cgroup")
    binds = [(cgroup, top if unified else cgroup.parent) for cgroup in cgroups]
    # Where upper layers of overlays will lie.
    binds += [(directory / "containers", Path("/var/lib/containerd")), (directory / "home", Path("/home"))]
    binds.append((Path("/nix"), Path("/nix")))
    lines = [_bind(here, there) for here, there in binds]
    # What lies on file systems of its own, which the overlay does not have; it is to be as it was afterwards.
    points = [mount.point for mount in mounts() if mount.point != Path("/")]
    lines += [
        f'{_bind(path, path)}; mount -o remount,bind,ro "$root"{shlex.quote(str(path))}'
        for path in (LAB_DIRECTORY, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
        if any(path.is_relative_to(point) for point in points)
    ]
    script = _BOOT.format(
        devices=" ".join(_DEVICES), masked=" ".join(_MASKED), binds="\n".join(lines), systemd=SYSTEMD
    )
    join = " ".join(f"echo $$ >{shlex.quote(str(cgroup / 'cgroup.procs'))};" for cgroup in cgroups)
    spaces = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
    return Process.start(
        "systemd",
        *("sh", "-euc", f'{join} exec "$@"', "sh", "unshare", *spaces),
        *("sh", "-c", script, "sh", directory / "root"),
        log=directory / "systemd.log",
    )


def _bind(here: Path, there: Path) -> str:
    source, target = shlex.quote(str(here)), shlex.quote(str(there))
    return f'mkdir -p "$root"{target}; mount --bind {source} "$root"{target}'


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
