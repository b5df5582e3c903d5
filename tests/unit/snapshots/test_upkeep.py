"""Upkeep of nix layers, where it needs neither Nix nor mounts."""

from __future__ import annotations

from contextlib import contextmanager

from nixsnap.errors import UnavailableError
from nixsnap.nix.roots import RootInspector
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.upkeep import Upkeep


class BrokenStore:
    """Metadata on a disk that cannot be read for now."""

    @contextmanager
    def read(self):
        raise UnavailableError("disk I/O error")
        yield


def test_a_database_that_cannot_be_read_is_no_end(tmp_path, caplog):
    """The thread that looks after the layers would end with an exception, and nobody would look again."""
    upkeep = Upkeep(
        layout=Layout(tmp_path),
        store=BrokenStore(),
        realiser=None,
        inspector=RootInspector(store=tmp_path, auto=None),
        mounter=None,
    )
    assert not upkeep.check()
    assert "disk I/O error" in caplog.text
