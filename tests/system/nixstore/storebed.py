"""A chroot store of a test's own and a binary cache to fill it from."""

from __future__ import annotations

import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from lab import NixsnapDaemon
from lab.binarycache import BinaryCache
from lab.nix import Closure
from lab.nixes import NixRelease, start_nix_daemon
from lab.privatestore import SEEING_NO_PROCESS
from lab.processes import Process, processes_naming, run

from nixsnap.config import Config, NixAccess, NixConfig
from nixsnap.nix.choice import make_realiser
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.storepath import StorePath


@attrs.define(kw_only=True)
class Bed:
    """A store with nothing in it, and what a realiser of it is made of."""

    directory: Path
    store_root: Path
    access: NixAccess
    cache: BinaryCache
    key: str
    """The public key that the cache's signatures are checked with."""
    secret_key: Path
    release: NixRelease
    daemon: Process | None = None
    realisers: list[Realiser] = attrs.field(factory=list)

    @property
    def asks_programs(self) -> bool:
        """Whether `nix-store` is run for each question; it cannot say some of what a daemon can."""
        return self.access is NixAccess.PROGRAM

    def _settings(self, nix: Mapping[str, object]) -> dict[str, Any]:
        return {
            "substituters": [self.cache.url],
            "trusted_public_keys": [self.key],
            "access": self.access,
            "extra_options": {"download-attempts": 1, "connect-timeout": 3},
            **nix,
        }

    def config(self, **nix: object) -> Config:
        """A configuration that trusts the cache; `nix` are other settings of the [nix] table."""
        return Config(store_root=self.store_root, nix=NixConfig(**self._settings(nix)))

    def file(self, **nix: object) -> str:
        """Such a configuration as a file holds it, but for the image service's table."""
        config = [f"store_root = {json.dumps(str(self.store_root))}"]
        settings = self._settings(nix)
        options = settings.pop("extra_options")
        config += ["[nix]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
        config += [
            "[nix.extra_options]",
            *(f"{name} = {json.dumps(value)}" for name, value in options.items()),
        ]
        return "".join(f"{line}\n" for line in config)

    def start_nixsnap(self, **nix: object) -> NixsnapDaemon:
        """A daemon with such a configuration; a second time it has the root of the first."""
        config = f"{self.file(**nix)}[image_service]\nenable = false\n"
        directory = self.directory / "n"
        directory.mkdir(exist_ok=True)
        return NixsnapDaemon.start(directory, config=config)

    @contextmanager
    def nixsnap(self, **nix: object) -> Iterator[NixsnapDaemon]:
        """Such a daemon, for the block."""
        daemon = self.start_nixsnap(**nix)
        try:
            yield daemon
        finally:
            self.cache.held.set()  # or its end would wait for the cache
            daemon.destroy()

    def fetchers(self) -> set[int]:
        """The processes that work on the store, but for a daemon that waits for work."""
        idle = set() if self.daemon is None else {self.daemon.pid}
        return set(processes_naming(self.store_root)) - idle

    def realiser(self, **nix: object) -> Realiser:
        """A realiser with such a configuration."""
        realiser = make_realiser(self.config(**nix))
        self.realisers.append(realiser)
        return realiser

    def publish(self, *closures: Closure) -> None:
        """Put closures with their closureInfos into the cache, signed."""
        self.cache.publish([closure.info for closure in closures], secret_key=self.secret_key)

    def bring_busybox(self, closure: Closure) -> None:
        """Have the store hold what all closures of the lab share, so that those of different salts share nothing."""
        (busybox,) = (path for path in closure.paths if path.endswith("-busybox-static"))
        request = ClosureRequest(store_paths=(StorePath.parse(busybox),))
        self.realiser().realise(request, gcroots=self.roots("busybox"))
        self.cache.requests.clear()

    def nar(self, store_path: str) -> str:
        """The path that the cache is asked for a store path's content."""
        info = (self.cache.directory / f"{Path(store_path).name[:32]}.narinfo").read_text()
        (url,) = (line.removeprefix("URL: ") for line in info.splitlines() if line.startswith("URL: "))
        return f"/{url}"

    def has(self, store_path: str) -> bool:
        """Whether the store holds a store path."""
        return os.path.lexists(self.store_root / store_path.lstrip("/"))

    @contextmanager
    def limited(self, size_bytes: int) -> Iterator[Callable[[int], None]]:
        """Have the store lie on a disk of its own of such a size, within the block; yields what makes it larger."""
        store = self.store_root / "nix/store"
        store.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", store)
        self._restart_daemon()  # it has a mount namespace of its own, made when it started
        try:
            yield functools.partial(_resize, store)
        finally:
            run("umount", "--lazy", store)

    def _restart_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = start_nix_daemon(self.release, self.store_root, self.directory)

    def remove_by_force(self, store_path: str) -> None:
        """Remove a store path's files behind Nix's back."""
        run("rm", "-rf", self.store_root / store_path.lstrip("/"))

    def restart_daemon(self, release: NixRelease) -> None:
        """Have a daemon that serves the store read its settings anew."""
        assert self.daemon is not None
        self.daemon.stop()
        (self.store_root / "nix/var/nix/daemon-socket/socket").unlink(missing_ok=True)
        self.daemon = start_nix_daemon(release, self.store_root, self.directory)

    def roots(self, name: str = "roots") -> Path:
        """A directory of roots."""
        return self.directory / name

    def live(self) -> set[str]:
        """What the collector would spare."""
        command = (*SEEING_NO_PROCESS, "nix-store", "--store", self.store_root, "--gc", "--print-live")
        return set(run(*command).stdout.split())

    def can_collect(self) -> bool:
        """Whether a collector could begin now."""
        with (self.store_root / "nix/var/nix/gc.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def nix_store(self, *arguments: str) -> str:
        """Run nix-store on it, past any daemon."""
        return run("nix-store", "--store", self.store_root, *arguments).stdout


def _resize(mount: Path, size_bytes: int) -> None:
    run("mount", "-o", f"remount,size={size_bytes}", mount)


def request_of(closure: Closure) -> ClosureRequest:
    """The request of an image of today's form."""
    return ClosureRequest(closure_info=StorePath.parse(closure.info))


def paths_request(closure: Closure) -> ClosureRequest:
    """The request of an image that names each store path."""
    return ClosureRequest(store_paths=tuple(map(StorePath.parse, closure.paths)))
