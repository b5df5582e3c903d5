"""A chroot store of a test's own, reached in each way with each release of Nix, and a cache to fill it from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.binarycache import BinaryCache
from lab.nix import Closure, nix_closure
from lab.nixes import RELEASES, NixRelease, nix_release, start_nix_daemon
from lab.processes import run
from lab.requirements import need_nix
from storebed import Bed

from nixsnap.config import NixAccess

sys.path += [
    str(Path(__file__).parents[1] / name) for name in ("node", "push")
]  # `import rpc`, `import registries`

WAYS = ("socket", "own-process", "programs")


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch) -> NixRelease:
    """Each release of Nix in turn, for this process and what it starts."""
    need_nix()
    found = nix_release(request.param, directory)
    if found is None:
        pytest.skip("this machine lacks a newer Nix (packaging/test unpacks it)")
    for name, value in found.environment(os.environ["PATH"]).items():
        monkeypatch.setenv(name, value)
    # Where Nix remembers what caches said, from one test to the next.
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "xdg"))
    return found


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Each way to a store in turn."""
    name: str = request.param
    return name


@pytest.fixture
def bed(release: NixRelease, way: str, directory: Path) -> Iterator[Bed]:
    """An empty store, its cache being served."""
    store_root = directory / "store"
    daemon = start_nix_daemon(release, store_root, directory) if way == "socket" else None
    secret, public = directory / "secret-key", directory / "public-key"
    run("nix-store", "--generate-binary-cache-key", "lab-1", secret, public)
    (directory / "cache").mkdir()
    with BinaryCache(directory=directory / "cache") as cache:
        bed = Bed(
            directory=directory,
            store_root=store_root,
            access=NixAccess.PROGRAM if way == "programs" else NixAccess.AUTO,
            cache=cache,
            key=public.read_text().strip(),
            secret_key=secret,
            release=release,
            daemon=daemon,
        )
        yield bed
        cache.held.set()
        for realiser in bed.realisers:
            realiser.close()
    if bed.daemon is not None:
        bed.daemon.stop()


@pytest.fixture
def small() -> Closure:
    """A closure of three dependencies."""
    need_nix()
    return nix_closure(3, salt="nixstore")
