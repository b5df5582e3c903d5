"""Many store paths in one pull, and many pulls at once: with each way to a real store and each release of Nix."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Closure, nix_closure
from lab.processes import run, wait_until
from storebed import Bed, request_of

from nixsnap.nix.realise import ClosureRequest
from nixsnap.nix.storepath import StorePath

PATHS = 10_000
UNREFERRED = 20
STORE_BYTES = 64 << 20
CALLS = 4
MAX_JOBS = 2


def register(bed: Bed, references: dict[str, list[str]]) -> None:
    """Make empty store paths that refer to others, without a build each: what `nix-store --dump-db` prints, loaded."""
    store = bed.store_root / "nix/store"
    store.mkdir(parents=True, exist_ok=True)
    for path in references:
        (bed.store_root / path.lstrip("/")).mkdir()
    (bed.directory / "empty").mkdir()
    digest = run("nix-hash", "--type", "sha256", bed.directory / "empty").stdout.strip()
    records = [
        line
        for path, others in references.items()
        # Its hash, the size of an archive of it, no derivation, and how many references follow.
        for line in (path, digest, "96", "", str(len(others)), *others)
    ]
    run("nix-store", "--store", bed.store_root, "--load-db", stdin="\n".join([*records, ""]))


def test_ten_thousand_present_paths(bed: Bed):
    """An image names more store paths than a command line holds: all are found, and those get roots that need one."""
    names = [f"/nix/store/{index:032d}-{'x' * 150}" for index in range(PATHS)]
    top, unreferred = names[-1], names[:UNREFERRED]
    request = ClosureRequest(store_paths=tuple(map(StorePath.parse, names)))
    with bed.limited(STORE_BYTES):  # in memory, where they are gone at once
        register(bed, {name: [] for name in names[:-1]} | {top: names[UNREFERRED:-1]})
        closure = bed.realiser(substituters=[]).realise(request, gcroots=bed.roots())
        assert list(map(str, closure)) == names
        assert sorted(str(root.readlink()) for root in bed.roots().iterdir()) == [*unreferred, top]
        assert set(names) <= bed.live()
    assert bed.cache.requests == []


def fetches_begun(caplog: pytest.LogCaptureFixture) -> int:
    """How many calls of Nix have begun to fetch."""
    return sum(bool(re.match(r"fetching \d+ store paths first=", message)) for message in caplog.messages)


def in_the_midst(bed: Bed, closures: list[Closure]) -> int:
    """Of how many closures the cache has been asked for content."""
    asked = set(bed.cache.nars)
    return sum(any(bed.nar(path) in asked for path in closure.paths) for closure in closures)


def test_no_more_calls_of_nix_at_once_than_configured(bed: Bed, caplog: pytest.LogCaptureFixture):
    """Others wait their turn, each takes the place of one that has ended, and all are served."""
    caplog.set_level("INFO", logger="nixsnap.nix.engine")
    closures: list[Closure] = [nix_closure(2, salt=f"turn {number}") for number in range(CALLS)]
    bed.publish(*closures)
    bed.bring_busybox(closures[0])
    caplog.clear()
    bed.cache.held.clear()
    realiser = bed.realiser(max_jobs=MAX_JOBS)
    with ThreadPoolExecutor(CALLS) as pool:
        pulls = [
            pool.submit(realiser.realise, request_of(closure), gcroots=bed.roots(f"roots-{number}"))
            for number, closure in enumerate(closures)
        ]
        try:
            # All have asked what is missing, and wait for it: in the air or on the ground.
            wait_until(lambda: len(wanted(realiser)) == CALLS, what="all pulls to want something")
            wait_until(lambda: in_the_midst(bed, closures) >= MAX_JOBS, what="as many fetches as may be")
            assert fetches_begun(caplog) == MAX_JOBS
            infos = {request for request in bed.cache.requests if request.endswith(".narinfo")}
            asked = [c for c in closures if f"/{c.info.rpartition('/')[2][:32]}.narinfo" in infos]
            assert len(asked) == MAX_JOBS
        finally:
            bed.cache.held.set()
        for pull, closure in zip(pulls, closures, strict=True):
            assert set(closure.paths) <= set(map(str, pull.result()))
    assert fetches_begun(caplog) == CALLS
    assert all(bed.has(path) for closure in closures for path in closure.paths)


def wanted(realiser: object) -> set[object]:
    """What flights are for, those that wait for their turn among them."""
    with realiser._flights.grounded() as keys:
        return keys
