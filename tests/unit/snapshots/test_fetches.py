"""What is known of the fetches under way."""

from __future__ import annotations

from nixsnap.nix.progress import Progress
from nixsnap.services.progress import ProgressService
from nixsnap.snapshots.fetches import Fetches


class Context:
    """A client that goes away after some looks."""

    def __init__(self, looks):
        self.looks = looks

    def is_active(self):
        self.looks -= 1
        return self.looks >= 0


class Request:
    """A request."""

    def __init__(self, *key_suffixes):
        self.key_suffixes = key_suffixes


def test_fetches_are_added_up_by_the_ends_of_their_keys():
    """An unpacker knows the end of its key only; what belongs to others is not told."""
    fetches = Fetches()
    with (
        fetches.under_way("ns/1/extract a") as first,
        fetches.under_way("ns/2/extract b") as second,
        fetches.under_way("ns/3/extract c") as third,
    ):
        first(Progress(paths_done=1, paths_total=2, bytes_done=3, bytes_total=4, current=("x",)))
        second(Progress(paths_total=10, current=("y",)))
        third(Progress(paths_total=100))
        assert fetches.of(["a", "b"]) == Progress(
            paths_done=1, paths_total=12, bytes_done=3, bytes_total=4, current=("x", "y")
        )
        assert fetches.of([]) == Progress()
    assert fetches.of(["a", "b", "c"]) == Progress()


def test_what_is_told_too_late_is_not_kept():
    """A fetch that others still wait for may tell one who has just left; that would be shown for ever."""
    fetches = Fetches()
    with fetches.under_way("key") as sink:
        pass
    sink(Progress(paths_total=5))
    assert fetches.of(["key"]) == Progress()


def test_watching_tells_of_changes_only():
    """Not of each look; and it ends with the client."""
    fetches = Fetches()
    with fetches.under_way("key") as sink:
        sink(Progress(paths_total=5))
        (told,) = ProgressService(fetches).Watch(Request("key"), Context(looks=3))
    assert told.paths_total == 5


def test_watching_ends_with_the_daemon():
    """Nobody who watches holds up its end."""
    fetches = Fetches()
    fetches.close()
    assert list(ProgressService(fetches).Watch(Request("key"), Context(looks=10**9))) == []
