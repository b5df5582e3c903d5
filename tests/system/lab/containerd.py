"""Private containerds of every series this machine has, 1.6 to 2.x."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import attrs

from lab.cache import LAB_DIRECTORY
from lab.containerd_config import CriSettings, render_config
from lab.place import HOST, Place
from lab.processes import Process, kill_naming, run

_VERSION = re.compile(r"containerd(?:/v2)? v?(\d+)\.(\d+)\.(\S+)")
_container_numbers = itertools.count(1)


@attrs.frozen(kw_only=True)
class Installation:
    """A directory with one release's containerd, ctr and shim."""

    directory: Path
    version: str

    @property
    def series(self) -> str:
        """The release line that tests are written against: "1.6", "1.7", or "2" for every 2.x."""
        major, minor, *_ = self.version.split(".")
        return major if int(major) > 1 else f"{major}.{minor}"

    @property
    def sort_key(self) -> tuple[int, ...]:
        """Orders installations from old to new."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:3])

    @property
    def environment(self) -> dict[str, str]:
        """A PATH on which this release's shim comes first."""
        return {"PATH": f"{self.directory}:{os.environ['PATH']}"}


def _installation(directory: Path) -> Installation | None:
    program = directory / "containerd"
    if not os.access(program, os.X_OK):
        return None
    try:
        said = run(program, "--version", check=False).stdout
    except OSError:
        return None
    found = _VERSION.search(said)
    return Installation(directory=directory, version=".".join(found.groups())) if found else None


@functools.cache
def containerd_installations() -> tuple[Installation, ...]:
    """The newest containerd of each series on this machine, in the lab's directory or on PATH, old to new."""
    on_path = shutil.which("containerd")
    directories = [
        *sorted(LAB_DIRECTORY.glob("containerd*/usr/bin")),
        *([Path(on_path).parent] if on_path else []),
    ]
    found = sorted(filter(None, map(_installation, directories)), key=lambda item: item.sort_key)
    return tuple({installation.series: installation for installation in found}.values())


def containerd_series(series: str) -> Installation | None:
    """The installation of a series such as "1.7" or "2", or None when this machine lacks it."""
    return next((item for item in containerd_installations() if item.series == series), None)


def newest_containerd() -> Installation:
    """The newest containerd on this machine; FileNotFoundError when there is none."""
    if not containerd_installations():
        raise FileNotFoundError(
            f"no containerd on PATH or below {LAB_DIRECTORY}; packaging/test brings three"
        )
    return containerd_installations()[-1]


@attrs.define(kw_only=True, eq=False)
class Containerd:
    """One running containerd, private to its directory."""

    installation: Installation
    directory: Path
    process: Process
    place: Place = HOST

    @property
    def namespace(self) -> str:
        """The containerd namespace that commands work in unless told otherwise."""
        return self.place.containerd_namespace

    @classmethod
    def start(
        cls,
        installation: Installation,
        directory: Path,
        *,
        snapshotter: Path | None = None,
        cri: CriSettings | None = None,
        extra_config: str = "",
        place: Place = HOST,
    ) -> Containerd:
        """Start it in `directory` and return once it serves.

        `snapshotter` is the socket of a proxy snapshotter, `nix` to this containerd; `extra_config` is TOML
        appended to the configuration. CRI is off unless `cri` says how it is to be set up. `place` says whose
        namespaces it and its clients run in.
        """
        place.give(directory)
        config = directory / "containerd.toml"
        config.write_text(
            render_config(directory, major=installation.sort_key[0], snapshotter=snapshotter, cri=cri)
            + extra_config
        )
        containerd = cls(
            installation=installation,
            directory=directory,
            process=_start_process(installation, directory, place),
            place=place,
        )
        containerd.process.wait_until(containerd._answers, what="answer on its socket")
        return containerd

    @property
    def address(self) -> Path:
        """Its gRPC socket."""
        return self.directory / "containerd.sock"

    def _answers(self) -> bool:
        return self.address.exists() and self.ctr("version", check=False, timeout_seconds=10).returncode == 0

    def _ctr_argv(self, *arguments: str | Path, namespace: str | None = None) -> list[str | Path]:
        program = self.installation.directory / "ctr"
        return [program, "--address", self.address, "--namespace", namespace or self.namespace, *arguments]

    def ctr(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout_seconds: float = 120.0,
        namespace: str | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run this release's `ctr` against it; raises CommandError when that fails and `check` is set."""
        return run(
            *self.place.argv(*self._ctr_argv(*arguments, namespace=namespace)),
            check=check,
            timeout_seconds=timeout_seconds,
            environment={**self.place.environment, **self.installation.environment},
            stdin=stdin,
        )

    def run(
        self,
        reference: str,
        *command: str,
        snapshotter: str = "nix",
        options: Sequence[str] = (),
        check: bool = True,
        timeout_seconds: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a container of the image to its exit and remove it; without `command`, the image's own."""
        return self.ctr(
            "run", "--rm", "--snapshotter", snapshotter, *options, reference, unused_container_id(), *command,
            check=check, timeout_seconds=timeout_seconds,
        )  # fmt: skip

    def start_container(
        self, reference: str, *command: str, snapshotter: str = "nix", options: Sequence[str] = ()
    ) -> str:
        """Start a container in the background and return its id; `remove_container` ends it."""
        container_id = unused_container_id()
        self.ctr("run", "--detach", "--snapshotter", snapshotter, *options, reference, container_id, *command)
        return container_id

    def exec(
        self, container_id: str, *command: str, shell: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a running container; `shell` as for `lingering`."""
        exec_id = unused_container_id()
        words = lingering(*command, shell=shell)
        return self.ctr("task", "exec", "--exec-id", exec_id, container_id, *words, check=check)

    def remove_container(self, container_id: str, *, check: bool = True) -> None:
        """Kill a container's task if it has one, and remove the container with its snapshot."""
        self.ctr("task", "rm", "--force", container_id, check=False)
        self.ctr("container", "rm", container_id, check=check)

    def collect_garbage(self, *, namespace: str | None = None) -> None:
        """Have containerd's collector run to its end: only then are removed containers' snapshots gone."""
        lease = self.ctr("leases", "create", namespace=namespace).stdout.strip()
        self.ctr("leases", "delete", "--sync", lease, namespace=namespace)

    def diff(self, container_id: str, *, snapshotter: str = "nix") -> bytes:
        """The layer that it makes of a container's snapshot: a tar archive."""
        words = ("--media-type", "application/vnd.oci.image.layer.v1.tar", container_id)
        argv = self._ctr_argv("snapshots", "--snapshotter", snapshotter, "diff", *words)
        environment = {**os.environ, **self.place.environment, **self.installation.environment}
        result = subprocess.run(self.place.argv(*argv), capture_output=True, check=False, env=environment)
        assert result.returncode == 0, result.stderr.decode(errors="replace")
        return result.stdout

    def restart(self) -> None:
        """Stop containerd alone, as an upgrade does, and start it again; containers keep running."""
        self.process.stop()
        self.process = _start_process(self.installation, self.directory, self.place)
        self.process.wait_until(self._answers, what="answer on its socket")

    def stop(self) -> None:
        """End every container, containerd, its shims and its mounts."""
        if self.process.is_running():
            self._remove_containers()
        self.process.stop()
        kill_naming(self.directory)
        self.place.unmount_below(self.directory)

    def _remove_containers(self) -> None:
        for namespace in self.ctr("namespace", "ls", "--quiet", check=False).stdout.split():
            for container_id in self.ctr(
                "container", "ls", "--quiet", check=False, namespace=namespace
            ).stdout.split():
                self.ctr("task", "rm", "--force", container_id, check=False, namespace=namespace)
                self.ctr("container", "rm", container_id, check=False, namespace=namespace)


def lingering(*command: str, shell: str | None = None) -> tuple[str, ...]:
    """A command that ends as another does, a moment later, for `ctr task exec`.

    That one loses the output of a process that has ended before the pipe is open from which it is to be read, for it
    deletes the process at once, and so gives up opening the pipe (containerd's client, `process.Delete`, `Cancel`).
    On a busy machine it does so to one process of a hundred, whatever the snapshotter.

    Args:
        command: The other command.
        shell: Busybox's shell in the container, with `sleep` beside it; by default it is beside the program.
    """
    shell = shell or str(Path(command[0]).with_name("sh"))
    sleep = Path(shell).with_name("sleep")
    return (shell, "-c", f'"$@"; code=$?; {sleep} 0.2; exit $code', shell, *command)


def unused_container_id() -> str:
    """An id no other container here has: runc's state directory is the machine's, not this containerd's."""
    return f"lab-{os.getpid()}-{next(_container_numbers)}"


def _start_process(installation: Installation, directory: Path, place: Place) -> Process:
    return Process.start(
        f"containerd {installation.version}",
        *place.argv(installation.directory / "containerd", "--config", directory / "containerd.toml"),
        log=directory / "containerd.log",
        environment={**place.environment, **installation.environment},
    )
