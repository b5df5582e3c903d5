"""Realising closures: making every store path of a nix layer present and safe from Nix's garbage collector.

The roots are *indirect*: a symlink in a directory of ours, which is registered in Nix's `gcroots/auto`. Removing the
symlink is all it takes to give the path up again; the collector sweeps the registration (Nix manual, `nix-store --gc`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs

from nixsnap.errors import NotFoundError
from nixsnap.nix.caller import Caller
from nixsnap.nix.failures import name_all
from nixsnap.nix.progress import ProgressSink, ignore
from nixsnap.nix.storepath import StorePath, refuse_derivations


@attrs.frozen(kw_only=True)
class ClosureRequest:
    """What a nix layer says of its closure.

    Attributes:
        closure_info: The output of nixpkgs' `closureInfo`, whose file `store-paths` lists the closure.
        store_paths: Store paths that are named one by one.

    Raises:
        InvalidArgumentError: One of them is a derivation.
    """

    closure_info: StorePath | None = None
    store_paths: tuple[StorePath, ...] = ()

    def __attrs_post_init__(self) -> None:
        refuse_derivations(self.store_paths)
        if self.closure_info is not None:
            refuse_derivations([self.closure_info])

    def __str__(self) -> str:
        named = f"{len(self.store_paths)} store paths" if self.store_paths else ""
        return " and ".join(filter(None, (str(self.closure_info or ""), named)))


class Realiser(Protocol):
    """Makes closures present."""

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,
        caller: Caller | None = None,
    ) -> tuple[StorePath, ...]:
        """Make every store path of `request` present, with roots in the directory `gcroots`, which is made.

        Args:
            request: What is wanted.
            gcroots: Directory of the roots, of which the caller has no other use.
            progress: Told how the fetch goes on; not at all where nothing has to be fetched.
            caller: Who waits for it; None waits to the end.

        Returns:
            The closure: the paths that were asked for and those the closureInfo lists, sorted, each once, all present.

        Raises:
            CancelledError: The caller went away; a fetch under way goes on for a while, for a retry to join.
            NixsnapError: Not all of it could be made present. Here and there `gcroots` may hold some roots, which
                the caller removes.
        """
        ...

    def close(self) -> None:
        """End all that is under way; those who wait for it get an error."""
        ...


def find_missing(store: Path, paths: Iterable[StorePath]) -> list[StorePath]:
    """Those of `paths` that the store does not hold; a dangling symlink is held."""
    prefix = f"{store}/"  # joining Path objects takes longer than asking the kernel
    return [path for path in paths if not os.path.lexists(prefix + path.name)]


def check_present(store: Path, paths: Iterable[StorePath]) -> None:
    """Make sure that a fetch that said it succeeded did.

    Raises:
        NotFoundError: Some of `paths` are not in the store.
    """
    if missing := find_missing(store, paths):
        raise NotFoundError(f"{name_all(missing)} not in {store}, though the fetch reported success")
