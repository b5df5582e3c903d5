"""The directory of roots that `nixsnap realise --root` makes."""

from __future__ import annotations

import contextlib
import threading

import pytest

from nixsnap.cli.keptroots import kept_roots

WAIT_SECONDS = 20


class Run:
    """One run with a directory: it makes a root, and ends well or not when it is told."""

    def __init__(self, root, *, well):
        self.inside, self.end = threading.Event(), threading.Event()
        self.made = None
        self._root, self._well = root, well
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with contextlib.suppress(KeyError), kept_roots(self._root) as first:
            self.made = self._root / str(first)
            self.made.mkdir()
            self.inside.set()
            assert self.end.wait(WAIT_SECONDS)
            if not self._well:
                raise KeyError

    def finish(self):
        self.end.set()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("well", [True, False], ids=["ends well", "fails"])
def test_two_runs_at_once(tmp_path, well, caplog):
    """They take turns: the second keeps what it was told in place of what the first kept, if that does not fail."""
    root = tmp_path / "kept"
    first = Run(root, well=well)
    assert first.inside.wait(WAIT_SECONDS)
    second = Run(root, well=True)
    assert not second.inside.wait(0.2)
    assert "waiting for another run" in caplog.text
    first.finish()
    assert second.inside.wait(WAIT_SECONDS)
    assert second.made.is_dir()
    second.finish()
    assert list(root.iterdir()) == [second.made]


def test_a_run_that_fails_after_another(tmp_path):
    """It takes back its own roots alone."""
    root = tmp_path / "kept"
    first = Run(root, well=True)
    assert first.inside.wait(WAIT_SECONDS)
    second = Run(root, well=False)
    for run in (first, second):
        run.finish()
    assert list(root.iterdir()) == [first.made]
