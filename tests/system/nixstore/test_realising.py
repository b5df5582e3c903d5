"""Realising from a real cache into a real store, with each way to it and each release of Nix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab.nix import Closure, nix_closure
from lab.nixes import NixRelease
from storebed import Bed, paths_request, request_of

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.nix.progress import Progress
from nixsnap.nix.realise import ClosureRequest
from nixsnap.nix.storepath import StorePath


def test_closure_info(bed: Bed, small: Closure):
    """An image of today's form: all of its closure comes from the cache, and one root keeps it."""
    bed.publish(small)
    closure = bed.realiser().realise(request_of(small), gcroots=bed.roots())
    assert tuple(map(str, closure)) == small.paths
    assert all(bed.has(path) for path in small.paths)
    assert [root.name for root in bed.roots().iterdir()] == ["closure"]
    assert set(small.paths) < bed.live()


def test_named_paths_get_as_few_roots_as_will_do(bed: Bed, small: Closure):
    """An image that names each path: only the application is rooted, for it refers to all the others."""
    bed.publish(small)
    bed.realiser().realise(paths_request(small), gcroots=bed.roots())
    assert [str(root.readlink()) for root in bed.roots().iterdir()] == [small.top]
    assert set(small.paths) <= bed.live()


def test_roots_of_paths_that_nothing_refers_to(bed: Bed, small: Closure):
    """Paths that do not refer to each other get a root each; all are kept, and realising again changes nothing."""
    bed.publish(small)
    names = [path for path in small.paths if path != small.top]
    request = ClosureRequest(store_paths=tuple(map(StorePath.parse, names)))
    for _ in range(2):
        bed.realiser().realise(request, gcroots=bed.roots())
        assert sorted(str(root.readlink()) for root in bed.roots().iterdir()) == names
    assert set(names) <= bed.live()
    assert not bed.has(small.top)


def test_present_paths_ask_no_cache(bed: Bed, small: Closure):
    """What is there is not asked for, and needs no cache that answers."""
    bed.publish(small)
    realiser = bed.realiser()
    realiser.realise(request_of(small), gcroots=bed.roots())
    bed.cache.requests.clear()
    bed.cache.kill()
    realiser.realise(request_of(small), gcroots=bed.roots("again"))
    realiser.realise(paths_request(small), gcroots=bed.roots("legacy"))
    assert bed.cache.requests == []


def test_progress_ends_with_all_of_it(bed: Bed, small: Closure):
    """Paths and bytes are counted to their totals; each path that is copied is named once at least."""
    bed.publish(small)
    bed.cache.delay_seconds = 0.2
    moments: list[Progress] = []
    bed.realiser().realise(request_of(small), gcroots=bed.roots(), progress=moments.append)
    last = moments[-1]
    assert last.paths_done == last.paths_total == len({*small.paths, small.info})
    assert last.bytes_total > 1_000_000  # busybox
    assert {name for moment in moments for name in moment.current} & {*small.paths, small.info}


def test_progress_is_logged(
    bed: Bed, small: Closure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A fetch that takes long says now and then how far it is, and each says how it began and ended."""
    caplog.set_level("INFO", logger="nixsnap.nix.engine")
    monkeypatch.setattr("nixsnap.nix.engine._LOG_SECONDS", 0.0)
    bed.publish(small)
    bed.realiser().realise(request_of(small), gcroots=bed.roots())
    count = len({*small.paths, small.info})
    assert f"fetching 1 store paths first={small.info}" in caplog.messages
    assert any(
        re.match(rf"fetching paths={count}/{count} bytes=\d+/\d+ now=", line) for line in caplog.messages
    )
    assert any(re.match(r"fetched 1 store paths seconds=", line) for line in caplog.messages)


def test_ten_thousand_paths(bed: Bed):
    """A list that no command line holds at once is asked for in whole; what is nowhere is named."""
    absent = tuple(StorePath.parse(f"/nix/store/{index:032d}-{'x' * 200}") for index in range(10_000))
    with pytest.raises(NotFoundError, match=r"cannot realise /nix/store/0{32}-x+ and \d+ more: no cache has"):
        bed.realiser(substituters=[]).realise(ClosureRequest(store_paths=absent), gcroots=bed.roots())


def test_path_deleted_by_force_is_fetched_again(bed: Bed, small: Closure):
    """Nix has the path on record, but somebody removed its files: it comes back from the cache."""
    bed.publish(small)
    realiser = bed.realiser()
    realiser.realise(request_of(small), gcroots=bed.roots())
    gone = next(path for path in small.paths if path.endswith("-dep-1"))
    bed.remove_by_force(gone)
    realiser.realise(request_of(small), gcroots=bed.roots("again"))
    assert bed.has(gone)


def test_derivations_are_refused_before_anything(bed: Bed):
    """Whatever is configured, an image cannot name a build."""
    path = StorePath.parse(f"/nix/store/{'a' * 32}-evil.drv")
    with pytest.raises(InvalidArgumentError, match="is a derivation"):
        bed.realiser(allow_build=True).realise(ClosureRequest(store_paths=(path,)), gcroots=bed.roots())


def test_hundreds_of_paths_at_once(bed: Bed):
    """A closure of hundreds comes in one call, each path once."""
    closure = nix_closure(200, salt="nixstore")
    bed.publish(closure)
    assert len(bed.realiser().realise(request_of(closure), gcroots=bed.roots())) == len(closure.paths)
    assert len(set(bed.cache.nars)) == len(bed.cache.nars)


def test_nix_that_frees_space_by_itself(
    bed: Bed, small: Closure, release: NixRelease, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nix set up to collect garbage when space gets short: its collector, which waits for pulls, holds up none."""
    bed.publish(small)
    (directory / "nix.conf").write_text(f"min-free = {1 << 60}\nmax-free = {1 << 61}\n")
    monkeypatch.setenv("NIX_CONF_DIR", str(directory))
    if bed.daemon is not None:  # which reads its settings when it starts
        bed.restart_daemon(release)
    realiser = bed.realiser(extra_options={"min-free": 1 << 60})
    assert all(bed.has(str(path)) for path in realiser.realise(request_of(small), gcroots=bed.roots()))
