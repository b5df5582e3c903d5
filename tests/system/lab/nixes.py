"""The releases of Nix that tests run: the machine's own and, unpacked beside it, one that fetches in parallel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs

from lab.cache import LAB_DIRECTORY
from lab.nix import nix_environment
from lab.processes import Process, run, wait_until

NEWER = LAB_DIRECTORY / "nix-2.26"
RELEASES = ("machine", "newer")
# It starts its build hook as /proc/self/exe, which is the loader here (2.8 cannot do without one), and would show a
# shell in its sandbox that is another package's. A chroot store builds in a sandbox whatever is set.
_NEWER_SETTINGS = "build-hook =\nsandbox-paths =\n"
_PROGRAMS = ("nix", "nix-build", "nix-collect-garbage", "nix-daemon", "nix-instantiate", "nix-store")


@attrs.frozen(kw_only=True)
class NixRelease:
    """One release of Nix.

    Attributes:
        version: As "2.8.0".
        bin: The directory of its programs.
        settings: Lines of nix.conf that it takes to run here.
    """

    version: str
    bin: Path
    settings: str = ""

    @property
    def fetches_in_parallel(self) -> bool:
        """Whether it fetches several paths at once (from 2.19 on)."""
        return tuple(map(int, self.version.split(".")[:2])) >= (2, 19)

    def environment(self, path: str) -> dict[str, str]:
        """What has programs find this release, upon a PATH that they would have otherwise."""
        return {"NIX_CONFIG": nix_environment()["NIX_CONFIG"] + self.settings, "PATH": f"{self.bin}:{path}"}


def nix_release(name: str, directory: Path) -> NixRelease | None:
    """A release; None if this machine lacks it.

    Args:
        name: One of `RELEASES`.
        directory: Where to put what starts it.
    """
    if name == "machine":
        found = shutil.which("nix-store")
        return None if found is None else _release(Path(found).parent)
    if not (NEWER / "usr/bin/nix").exists():
        return None
    programs = directory / "nix-newer"
    if not programs.exists():
        _write_wrappers(programs)
    return _release(programs, settings=_NEWER_SETTINGS)


def _release(programs: Path, *, settings: str = "") -> NixRelease:
    words = run(programs / "nix-store", "--version").stdout.split()
    return NixRelease(version=words[2], bin=programs, settings=settings)


def _write_wrappers(programs: Path) -> None:
    """It needs a newer C library than the machine has, so it is started through the loader of its own."""
    (loader,) = (NEWER / "usr/lib").glob("*-linux-gnu/ld-linux-*.so.*")
    programs.mkdir()
    for name in _PROGRAMS:
        wrapper = programs / name
        wrapper.write_text(
            f'#!/bin/sh\nexec {loader} --argv0 {name} --library-path {loader.parent} {NEWER}/usr/bin/nix "$@"\n'
        )
        wrapper.chmod(0o755)


def start_nix_daemon(release: NixRelease, store_root: Path, directory: Path) -> Process:
    """Serve a chroot store on the socket where a daemon of it is looked for, and return once it answers."""
    socket = store_root / "nix/var/nix/daemon-socket/socket"
    socket.parent.mkdir(parents=True, exist_ok=True)
    process = Process.start(
        "nix-daemon", release.bin / "nix-daemon", "--daemon", "--store", store_root,
        log=directory / "nix-daemon.log",
        environment=release.environment(os.environ["PATH"]) | {"NIX_DAEMON_SOCKET_PATH": str(socket)},
    )  # fmt: skip
    wait_until(socket.is_socket, what="the socket of nix-daemon")
    return process
