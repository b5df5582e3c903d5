"""Which kind of rootfs view is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixsnap.config import StoreView
from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts.trial import Feature
from nixsnap.snapshots import kinds

PLACE = kinds.Place(root=Path("/r"), store=Path("/nix/store"), userxattr=False)
ORDER = [StoreView.OVERLAY, StoreView.DATA_ONLY, StoreView.BIND, StoreView.FUSE]


@pytest.fixture
def working(monkeypatch):
    """Says which kinds work, and records which are tried."""
    tried: list[StoreView] = []

    def set_working(*working: StoreView) -> list[StoreView]:
        def trial(kind: StoreView):
            def attempt(_place: kinds.Place) -> Feature:
                tried.append(kind)
                return Feature(None if kind in working else f"no {kind.value} here")

            return attempt

        monkeypatch.setattr(kinds, "_TRIALS", {kind: trial(kind) for kind in kinds._TRIALS})
        return tried

    return set_working


@pytest.mark.parametrize("best", ORDER)
def test_the_best_that_works(working, caplog, best):
    """The kinds are tried from the best down, none after one that works; the log says why none before."""
    tried = working(*ORDER[ORDER.index(best) :])
    caplog.set_level("INFO")
    assert kinds.choose(PLACE, StoreView.AUTO) is best
    assert tried == ORDER[: ORDER.index(best) + 1]
    assert f"store view kind={best.value}" in caplog.text
    for worse in tried[:-1]:
        assert f"{worse.value}: no {worse.value} here" in caplog.text


def test_none_works(working):
    """Every reason is told."""
    working()
    with pytest.raises(FailedPreconditionError) as caught:
        kinds.choose(PLACE, StoreView.AUTO)
    for kind in ORDER:
        assert f"{kind.value}: no {kind.value} here" in caught.value.message


@pytest.mark.parametrize("wanted", ORDER)
def test_the_one_that_is_configured(working, wanted):
    """It alone is tried, and no other taken in its place."""
    tried = working(wanted)
    assert kinds.choose(PLACE, wanted) is wanted
    assert tried == [wanted]
    working(*(kind for kind in ORDER if kind is not wanted))
    with pytest.raises(FailedPreconditionError, match=f"store_view = {wanted.value} does not work in /r: no"):
        kinds.choose(PLACE, wanted)


def test_overlays_in_a_user_namespace():
    """Their redirects need trusted.* attributes, so nothing is mounted to see it fail."""
    place = kinds.Place(root=Path("/r"), store=Path("/nix/store"), userxattr=True)
    with pytest.raises(FailedPreconditionError, match=r"no trusted\.\* attributes in /r"):
        kinds.choose(place, StoreView.OVERLAY)
