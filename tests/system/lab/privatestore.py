"""A Nix store of a test's own, below its directory, and a binary cache to fill it from.

What the machine's store must never see (a garbage collector, store paths deleted by force) happens here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from lab.nix import Closure, nix_environment
from lab.processes import run

SEEING_NO_PROCESS: Final = ("unshare", "--pid", "--fork", "--mount-proc")
"""What comes before a command that is, or asks, Nix's collector.

It spares what any process of the machine has open, and fails over links of processes of which it has never heard
(ENAMETOOLONG, where somebody stands in a very deep directory). So here it sees no process but itself.
"""


@attrs.frozen(kw_only=True)
class PrivateStore:
    """A chroot store: its store paths say /nix/store, and lie in `root`/nix/store."""

    root: Path
    cache: Path

    @classmethod
    def below(cls, directory: Path) -> PrivateStore:
        """An empty store, and an empty cache, below the directory."""
        return cls(root=directory / "store", cache=directory / "cache")

    @property
    def environment(self) -> dict[str, str]:
        """What has Nix take the cache for the only one, signed or not."""
        base = nix_environment()["NIX_CONFIG"].replace(
            "substituters =", f"substituters = file://{self.cache}"
        )
        return {"NIX_CONFIG": f"{base}require-sigs = false\nexperimental-features = nix-command\n"}

    @property
    def config(self) -> str:
        """What has a daemon use the store."""
        return f'store_root = "{self.root}"\n[image_service]\nenable = false\n'

    def publish(self, *closures: Closure) -> None:
        """Put closures of the machine's store, with their closureInfos, into the cache."""
        tops = [closure.info for closure in closures]
        run("nix", "copy", "--to", f"file://{self.cache}", *tops, environment=self.environment)

    @contextmanager
    def without_cache(self) -> Iterator[None]:
        """Have the cache hold nothing for a while; Nix makes its directory then."""
        away = self.cache.with_name("cache-away")
        self.cache.rename(away)
        try:
            yield
        finally:
            shutil.rmtree(self.cache, ignore_errors=True)
            away.rename(self.cache)

    def path(self, store_path: str) -> Path:
        """Where a store path lies."""
        return self.root / store_path.lstrip("/")

    def has(self, store_path: str) -> bool:
        """Whether the store holds a store path."""
        return self.path(store_path).exists()

    def delete_by_force(self, store_paths: Iterable[str]) -> None:
        """Delete store paths behind Nix's back."""
        for store_path in store_paths:
            path = self.path(store_path)
            run("chmod", "-R", "u+w", path)
            shutil.rmtree(path)

    def destroy(self) -> None:
        """Delete everything, as if the disk had been replaced."""
        run("chmod", "-R", "u+w", self.root)
        shutil.rmtree(self.root)

    def nix_store(self, *arguments: str) -> str:
        """Run nix-store on it, and return what it prints."""
        return self._run(*arguments)

    def collect_garbage(self) -> int:
        """Run Nix's collector, and return how many store paths it deleted."""
        said = self._run("--gc", before=SEEING_NO_PROCESS)
        found = re.search(r"(\d+) store paths deleted", said)
        assert found, said
        return int(found[1])

    def _run(self, *arguments: str, before: Sequence[str] = ()) -> str:
        command: tuple[str | Path, ...] = (*before, "nix-store", "--store", self.root, *arguments)
        return run(*command, environment=self.environment).stdout

    def live(self) -> set[str]:
        """The store paths that the collector would spare."""
        return set(self._run("--gc", "--print-live", before=SEEING_NO_PROCESS).split())
