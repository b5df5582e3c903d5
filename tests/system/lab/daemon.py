"""A private nixsnap daemon, started as systemd would start it."""

from __future__ import annotations

import os
import select
import shutil
import socket
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from lab.mounts import Mount
from lab.nix import nix_environment
from lab.place import HOST, Place
from lab.processes import CommandError, Process

READY_SECONDS = 30.0


def installed_program(name: str) -> Path:
    """The console script `name` of the nixsnap that is under test: the one beside the running interpreter."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"{name} is neither beside {sys.executable} nor on PATH; install nixsnap first"
        )
    return Path(found)


@attrs.define(kw_only=True, eq=False)
class NixsnapDaemon:
    """One running `nixsnap serve`, private to its directory."""

    directory: Path
    root: Path
    address: Path
    process: Process
    ready_seconds: float
    """From exec to READY=1."""
    place: Place = HOST

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        root: Path | None = None,
        config: str = "[image_service]\nenable = false\n",
        log_level: str = "debug",
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        place: Place = HOST,
    ) -> NixsnapDaemon:
        """Start it in `directory` and return once it has said READY=1 and its socket is there.

        `config` is the TOML of its configuration file, `root` (default: `directory`/root) its state, and `place`
        says whose namespaces it runs in.
        A second daemon may be started in the same directory once the first has stopped; their logs add up.
        """
        place.give(directory)
        root = root or directory / "root"
        address = directory / "nixsnap.sock"
        (directory / "nixsnap.toml").write_text(config)
        with _NotifySocket(directory / "notify") as notifications:
            started = time.monotonic()
            place.give(directory / "notify")
            process = Process.start(
                "nixsnap",
                *place.argv(
                    installed_program("nixsnap"), "serve", "--config", directory / "nixsnap.toml",
                    "--address", address, "--root", root, "--log-level", log_level, *arguments,
                ),
                log=directory / "nixsnap.log",
                environment={
                    **nix_environment(), **place.environment, **notifications.environment, **(environment or {})
                },
            )  # fmt: skip
            try:
                notifications.wait_ready(process)
                ready_seconds = time.monotonic() - started
                _require_socket(address)
            except BaseException:
                process.stop()
                raise
        return cls(
            directory=directory,
            root=root,
            address=address,
            process=process,
            ready_seconds=ready_seconds,
            place=place,
        )

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    def log_text(self) -> str:
        """The end of its log."""
        return self.process.log_text()

    def view_mounts(self) -> list[Mount]:
        """The rootfs views mounted now."""
        return self.place.mounts_below(self.root / "views")

    def resident_bytes(self) -> int:
        """Its resident memory now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        """End the daemon by SIGTERM and return its status; live snapshots' views rightly stay mounted."""
        return self.process.stop()

    def kill(self) -> None:
        """End the daemon as a crash would."""
        self.process.kill()

    def destroy(self) -> None:
        """Stop the daemon and take down the views it left for its snapshots."""
        self.stop()
        self.place.unmount_below(self.root)


def _require_socket(address: Path) -> None:
    if not stat.S_ISSOCK(address.stat().st_mode):
        raise CommandError(f"nixsnap said READY=1, but {address} is no socket")


class _NotifySocket:
    """The service manager's end of sd_notify(3): a datagram socket on which READY=1 arrives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What tells a program to report here."""
        return {"NOTIFY_SOCKET": str(self._path)}

    def wait_ready(self, process: Process) -> None:
        """Return when READY=1 has come; fail with the log when the program ends before that."""
        process.wait_until(self._is_ready, what="READY=1", timeout_seconds=READY_SECONDS)

    def _is_ready(self) -> bool:
        readable, _, _ = select.select([self._socket], [], [], 0.01)
        return bool(readable) and b"READY=1" in self._socket.recv(4096).split(b"\n")
