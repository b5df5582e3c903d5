"""Keeping the closures of live snapshots whole: present in the store, and rooted against Nix's garbage collector.

A root is made before its path is used and goes with its snapshot. In between, somebody may delete a store path by force
or take a root away, and neither Nix nor the kernel says so. So all of them are looked at when the daemon starts, in the
background and cheaply, and what is off is made good; and before a view is handed out its store paths are looked for,
since a container must never start without one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import attrs

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError, NixsnapError, NotFoundError
from nixsnap.metadata.records import Closure
from nixsnap.metadata.store import Store
from nixsnap.mounts import filetrees
from nixsnap.nix import roots
from nixsnap.nix.closureinfo import read_closure_info
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.roots import RootInspector, StoreState
from nixsnap.nix.storepath import StorePath
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.locks import NamedLocks
from nixsnap.snapshots.mounter import ViewMounter

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
_NAMES_SHOWN: Final = 3
# File systems note times by the kernel's tick, 10 ms at most. A store that changed only just now may change once more
# and look the same.
_SETTLED_NS: Final = 100_000_000


@attrs.frozen(kw_only=True)
class Upkeep:
    """Looks after the closures of all nix layers.

    Attributes:
        layout: Where the roots lie.
        store: The metadata.
        realiser: Makes closures present.
        inspector: Looks at roots and store paths.
        mounter: Knows the views that show them.
    """

    layout: Layout
    store: Store
    realiser: Realiser
    inspector: RootInspector
    mounter: ViewMounter
    _locks: NamedLocks = attrs.field(factory=NamedLocks, init=False)
    _seen_ns: dict[int, int] = attrs.field(
        factory=dict, init=False
    )  # when the store changed last, by nix layer
    _complaints: dict[int, str] = attrs.field(factory=dict, init=False)  # what was logged, to log it once

    def ensure(self, snapshot_ids: Collection[int]) -> None:
        """Make sure that every store path of these nix layers is there; fetch again what somebody deleted.

        Raises:
            FailedPreconditionError: A store path is gone and no cache has it.
            NixsnapError: It could not be fetched; the message has the store path and Nix's words.
        """
        for snapshot_id in snapshot_ids:
            changed_ns = self.inspector.changed_ns()
            if self._seen_ns.get(snapshot_id) == changed_ns:
                continue
            closure = self._closure(snapshot_id)
            if closure is not None and self.inspector.missing(closure.names):
                self._mend(snapshot_id)
            elif time.time_ns() - changed_ns > _SETTLED_NS:
                self._seen_ns[snapshot_id] = changed_ns

    def check(self) -> bool:
        """Look at every nix layer, and make good what is off, several at once.

        Returns:
            Whether all are whole now. What is not was logged.
        """
        try:
            faulty = self._find_faulty()
        except (NixsnapError, OSError) as exc:  # the database, or the store, may be readable again later
            log.warning("cannot look at the roots of nix layers error=%s", exc)
            return False
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upkeep") as pool:
            return all(list(pool.map(self._try_to_mend, faulty)))

    def _find_faulty(self) -> list[int]:
        """The nix layers that something is off with."""
        with self.store.read() as tx:
            layers = tx.nix_layers(tx.ids())
        for known in (self._seen_ns, self._complaints):
            for snapshot_id in known.keys() - layers:
                known.pop(snapshot_id, None)  # its snapshot is gone
        if not layers:
            return []
        state = self.inspector.look()
        faulty = [snapshot_id for snapshot_id in sorted(layers) if self._fault(snapshot_id, state)]
        log.info("looked at the roots of all nix layers layers=%d not_whole=%d", len(layers), len(faulty))
        return faulty

    def _closure(self, snapshot_id: int) -> Closure | None:
        with self.store.read() as tx:
            return tx.closures_of([snapshot_id]).get(snapshot_id)

    def _fault(self, snapshot_id: int, state: StoreState) -> str | None:
        """What is off with a nix layer, in words."""
        closure = self._closure(snapshot_id)
        if closure is None:
            return None
        if missing := self.inspector.missing(closure.names, state):
            return f"{_shown(missing)} gone from {self.inspector.store}"
        return self.inspector.fault(self.layout.gcroot(snapshot_id), state)

    def _try_to_mend(self, snapshot_id: int) -> bool:
        try:
            self._mend(snapshot_id)
        except (NixsnapError, OSError) as exc:
            if self._complaints.get(snapshot_id) != str(exc):
                log.warning("a nix layer is not whole; trying again later id=%d error=%s", snapshot_id, exc)
                self._complaints[snapshot_id] = str(exc)
            return False
        self._complaints.pop(snapshot_id, None)
        return True

    def _mend(self, snapshot_id: int) -> None:
        with self._locks.hold(str(snapshot_id)):
            state = self.inspector.look()  # somebody else may have been faster
            closure, fault = self._closure(snapshot_id), self._fault(snapshot_id, state)
            if closure is None or fault is None:
                return
            log.warning(
                "a nix layer is not whole: %s; fetching and rooting it again id=%d", fault, snapshot_id
            )
            missing = self.inspector.missing(closure.names, state)
            try:
                self._realise(closure, state)
            except NixsnapError as exc:
                raise _explained(exc, missing) from exc
            finally:
                if (
                    self._closure(snapshot_id) is None
                ):  # its snapshot went meanwhile, and what it held with it
                    filetrees.remove_tree(self.layout.gcroot(snapshot_id))
            if missing:
                self._show_again()
            log.warning("a nix layer is whole again id=%d fetched=%d", snapshot_id, len(missing))

    def _realise(self, closure: Closure, state: StoreState) -> None:
        directory = self.layout.gcroot(closure.snapshot_id)
        self.realiser.realise(self._request(closure, state), gcroots=directory)
        roots.prune(directory, store=self.inspector.store)
        roots.seal(directory)

    def _request(self, closure: Closure, state: StoreState) -> ClosureRequest:
        """What to ask for, so that every store path is there and rooted.

        Where the closureInfo is gone it is not fetched again: nobody reads it any more, and a root for each path does.
        """
        store_dir = str(self.mounter.store_dir)
        paths = {StorePath.parse(path, store_dir=store_dir) for path in closure.store_paths}
        if closure.closure_info is not None:
            info = StorePath.parse(closure.closure_info, store_dir=store_dir)
            if info.name in state.names:
                listed = read_closure_info(self.inspector.store, info)
                return ClosureRequest(closure_info=info, store_paths=tuple(sorted(paths.difference(listed))))
        return ClosureRequest(store_paths=tuple(sorted(paths)))

    def _show_again(self) -> None:
        """Have views that are mounted show store paths that were put back."""
        for view_id in self.mounter.mounted():
            try:
                self.mounter.renew(view_id)
            except OSError as exc:
                log.warning("a view may not show what was put back id=%d error=%s", view_id, exc)


def _explained(error: NixsnapError, missing: Collection[str]) -> NixsnapError:
    """An error that says which store paths are gone; never NotFound, which containerd takes for the snapshot's end."""
    what = (
        f"{_shown(missing)} gone from the store, and cannot be had again"
        if missing
        else "cannot make roots again"
    )
    kind = type(error)
    if isinstance(error, NotFoundError | InvalidArgumentError):
        kind = FailedPreconditionError
    hint = "put it back with nix copy or nix-store --import, or pull the image from where its store paths are"
    return kind(f"{what}: {error.message}", hint=error.hint or hint)


def _shown(names: Collection[str]) -> str:
    some = ", ".join(sorted(names)[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{some}{more} {'are' if len(names) > 1 else 'is'}"
