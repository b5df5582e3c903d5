"""Stub layers, as far as they need no rights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nixsnap.config import StoreView
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.stubs import StubMaker

NAME = "0" * 32 + "-one"


def test_what_cannot_be_begun_ahead_is_made_when_it_is_needed(tmp_path):
    """A snapshot that is there already does not fail over it, as when the daemon stops just then."""
    store = tmp_path / "store"
    (store / NAME).mkdir(parents=True)
    layout = Layout(tmp_path / "root")
    layout.make()
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    stubs = StubMaker(
        layout=layout,
        kind=StoreView.BIND,
        store=store,
        store_dir=Path("/nix/store"),
        userxattr=True,
        keep_ids=False,
        executor=executor,
    )
    stubs.begin(7, names=[NAME])
    stubs.ensure(7, names=[NAME], chain=[7])
    assert (layout.stub(StoreView.BIND, 7) / "fs/nix/store" / NAME).is_dir()
