"""Removing what no snapshot owns: the leavings of calls that failed and of daemons that were killed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nixsnap.metadata.store import Store
from nixsnap.metadata.writer import Writer
from nixsnap.mounts import filetrees, trial
from nixsnap.snapshots.layout import REMOVED_PREFIX, TEMPORARY_PREFIX, Layout
from nixsnap.snapshots.mounter import ViewMounter, take_down

log = logging.getLogger(__name__)


class Sweeper:
    """Finds and removes garbage below the root.

    Only what is named as we name things is touched: a number, or one of the prefixes.
    """

    def __init__(self, *, layout: Layout, store: Store, mounter: ViewMounter) -> None:
        self._layout = layout
        self._store = store
        self._mounter = mounter
        self._kept: set[int] = set()

    @contextmanager
    def keep(self, snapshot_id: int) -> Iterator[None]:
        """Spare the files of an id that has no row yet."""
        self._kept.add(snapshot_id)
        try:
            yield
        finally:
            self._kept.discard(snapshot_id)

    def sweep(self, *, at_start: bool = False) -> None:
        """Take down views and remove directories whose snapshot is gone, while other calls go on.

        What cannot be removed is logged and left.

        Args:
            at_start: No other call goes on, so what is still being made is garbage too.
        """
        # While a writer has its turn no snapshot is made, so a view or a directory of an id without a row is garbage;
        # ids are not used again, so it stays garbage. What is found later may belong to a snapshot made since.
        directories, views = self._store.write(lambda tx: self._find(tx, at_start=at_start), durable=False)
        for path in views:
            self._take_down(path)
        for path in directories:
            self._remove(path)
        if at_start:
            self._sweep_trials()

    def sweep_stubs(self) -> None:
        """Remove every stub layer, those in the making too. Only for start-up after a boot, when no view is mounted."""
        for directory in self._mounter.stubs.directories():
            self._remove(directory)

    def _find(self, tx: Writer, *, at_start: bool) -> tuple[list[Path], list[Path]]:
        live = tx.ids() | self._kept

        def is_garbage(path: Path) -> bool:
            if path.name.startswith(TEMPORARY_PREFIX):
                return at_start
            if path.name.startswith(REMOVED_PREFIX):
                return True
            owner = self._layout.owner_of(path)
            return owner is not None and owner not in live

        places = [
            self._layout.snapshots,
            self._layout.works,
            self._layout.gcroots,
            *self._mounter.stubs.directories(),
        ]
        directories = [path for place in places for path in place.iterdir() if is_garbage(path)]
        return directories, [path for path in self._layout.views.iterdir() if is_garbage(path)]

    def _sweep_trials(self) -> None:
        try:
            trial.sweep(self._layout.root)
        except OSError:
            log.warning("cannot remove what trial mounts left root=%s", self._layout.root, exc_info=True)

    def _take_down(self, view: Path) -> None:
        try:
            take_down(view)
        except OSError:
            log.warning("cannot take down a view that no snapshot owns path=%s", view, exc_info=True)
        else:
            log.info("took down a view that no snapshot owned path=%s", view)

    def _remove(self, path: Path) -> None:
        try:
            filetrees.remove_tree(path)
        except OSError:
            log.warning("cannot remove what no snapshot owns path=%s", path, exc_info=True)
        else:
            log.info("removed what no snapshot owned path=%s", path)
