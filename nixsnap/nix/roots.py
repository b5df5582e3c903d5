"""Roots against Nix's garbage collector: whether they still hold.

A root is a symlink in a directory of ours, to a store path, and Nix's own link to that symlink in
`<state>/gcroots/auto`. Either may be lost without Nix being asked: a directory that was moved or put back from a backup
has its symlinks, but Nix does not know them; a file system that came back from a power cut may lack the newest of them.
So what a directory of roots should hold is *sealed* in a file of its own once all of them are made, and looking whether
that is so takes no Nix.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import attrs

from nixsnap.nix.state import state_directory

_SEAL: Final = ".sealed"


def seal(directory: Path) -> None:
    """Note which roots a directory holds, now that all of them are there.

    Raises:
        OSError: The directory is gone, or the disk is full.
    """
    temporary = directory / f"{_SEAL}-new"
    temporary.write_text(json.dumps(_links(directory)), encoding="utf-8")
    temporary.rename(directory / _SEAL)


def prune(directory: Path, *, store: Path) -> None:
    """Remove the roots that lead to store paths which are not there: they keep nothing.

    Args:
        directory: A directory of roots.
        store: Where the store lies on this host.
    """
    for name, target in _links(directory).items():
        if _is_in(store, target) and not os.path.lexists(store / _name(target)):
            (directory / name).unlink()


@attrs.frozen
class StoreState:
    """One moment of a store: which store paths are there and which roots are known. Cheap even for 100,000 of them.

    Attributes:
        names: The names of what the store directory holds.
        registered: The symlinks that Nix takes as roots; None if that cannot be known.
    """

    names: frozenset[str]
    registered: frozenset[str] | None


@attrs.frozen(kw_only=True)
class RootInspector:
    """Looks at roots.

    Attributes:
        store: Where the store lies on this host.
        auto: Nix's directory of links to roots; None where roots are somebody else's business (an external builder need
            not be Nix).
    """

    store: Path
    auto: Path | None

    @classmethod
    def of(cls, store: Path, *, store_root: Path | None, external: bool) -> RootInspector:
        """The inspector of a store.

        Args:
            store: Where the store lies on this host.
            store_root: The root of a chroot store.
            external: Whether a program of the user's makes the roots.
        """
        if external:
            return cls(store=store, auto=None)
        return cls(store=store, auto=state_directory(store_root) / "gcroots/auto")

    def look(self) -> StoreState:
        """Read the store directory, which Nix makes when it first puts something there, and Nix's links.

        Raises:
            OSError: The store cannot be read.
        """
        names: frozenset[str] = frozenset()
        with contextlib.suppress(FileNotFoundError):
            names = frozenset(os.listdir(self.store))  # noqa: PTH208 - names, not paths
        registered = None
        if self.auto is not None:
            # Where Nix may not be looked at we cannot tell, and then its roots are taken to hold.
            with contextlib.suppress(OSError):
                registered = frozenset(_links(self.auto).values())
        return StoreState(names=names, registered=registered)

    def fault(self, directory: Path, state: StoreState) -> str | None:
        """What is wrong with a directory of roots, in words; None if all that was sealed is as it was.

        Args:
            directory: The directory.
            state: What `look` returned since the roots were made.
        """
        try:
            sealed: dict[str, str] = json.loads((directory / _SEAL).read_text(encoding="utf-8"))
            present = _links(directory)
        except (OSError, ValueError):
            return "its roots are not sealed"
        for name, target in sealed.items():
            if present.get(name) != target:
                return f"root {name} is gone"
            if state.registered is not None and os.path.normpath(directory / name) not in state.registered:
                return f"Nix does not know root {name}"
            if _is_in(self.store, target) and _name(target) not in state.names:
                return f"root {name} leads to {target}, which is gone"
        return None

    def missing(self, names: Collection[str], state: StoreState | None = None) -> list[str]:
        """Those of `names` that the store does not hold.

        Args:
            names: Names of store paths.
            state: What `look` returned; without it the store is asked for each.
        """
        if state is not None:
            return [name for name in names if name not in state.names]
        prefix = f"{self.store}/"  # joining Path objects takes longer than asking the kernel
        return [name for name in names if not os.path.lexists(prefix + name)]

    def changed_ns(self) -> int:
        """A value that is another one once a store path has come or gone: the time of the store directory."""
        try:
            return self.store.stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def _is_in(store: Path, target: str) -> bool:
    """Whether a root leads into the store. A chroot store's lead to where the store seems to lie from within."""
    return str(store).endswith(target.rpartition("/")[0] or "/")


def _name(target: str) -> str:
    return target.rpartition("/")[2]


def _links(directory: Path) -> dict[str, str]:
    """The symlinks of a directory, by name, and where they lead."""
    links = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # no symlink, or it has just gone
                links[entry.name] = os.readlink(entry)  # noqa: PTH115 - Path objects take longer than the kernel
    return links
