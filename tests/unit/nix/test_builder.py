"""Realising with a program of the user's."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixsnap.config import NixConfig
from nixsnap.errors import CancelledError, NotFoundError, UnavailableError
from nixsnap.nix.builder import ExternalBuilder
from nixsnap.nix.caller import Caller
from nixsnap.nix.realise import ClosureRequest
from nixsnap.nix.storepath import StorePath


def path(letter):
    return StorePath.parse(f"/nix/store/{letter * 32}-{letter}")


PATHS = ClosureRequest(store_paths=(path("a"), path("b")))


@pytest.fixture
def bed(tmp_path):
    """A directory with a `store` that has two paths, and a `log` of calls."""
    for letter in "ab":
        (tmp_path / "store" / path(letter).name).mkdir(parents=True)
    (tmp_path / "log").touch()
    return tmp_path


def make(bed, script, **nix):
    program = bed / "program"
    program.write_text(f'#!/bin/sh\necho "$*" >> {bed}/log\n{script}\n')
    program.chmod(0o755)
    return ExternalBuilder(program=program, store=bed / "store", config=NixConfig(**nix))


def calls(bed):
    return sorted((bed / "log").read_text().splitlines())


def test_program_gets_out_link_and_store_path(bed):
    """The Go original's contract: PROGRAM OUT-LINK STORE-PATH, once for each path."""
    moments = []
    builder = make(bed, "")
    assert builder.realise(PATHS, gcroots=bed / "roots", progress=moments.append) == PATHS.store_paths
    assert calls(bed) == [f"{bed}/roots/{path(x).name} {path(x)}" for x in "ab"]
    assert [(moment.paths_done, moment.paths_total) for moment in moments] == [(1, 2), (2, 2)]


def test_program_that_does_nothing_is_found_out(bed):
    """Exit status 0 is not enough; the path must be there."""
    (bed / "store" / path("a").name).rmdir()
    with pytest.raises(NotFoundError, match=str(path("a"))):
        make(bed, "").realise(PATHS, gcroots=bed / "roots")


@pytest.mark.parametrize("where", ["1", "2"], ids=["standard output", "standard error"])
def test_program_that_fails_after_megabytes(bed, where):
    """A full pipe wedges nothing, and the last of its words is in the error."""
    script = f"exec >&{where}; head -c 8000000 /dev/zero | tr '\\0' x; echo; echo it rains; exit 3"
    with pytest.raises(UnavailableError, match=f"cannot realise {path('a')}: (?s:.*)it rains"):
        make(bed, script).realise(PATHS, gcroots=bed / "roots")


def test_silent_program_is_ended(bed):
    """One that hangs costs its callers `stall_seconds`, and blocks no other for ever."""
    with pytest.raises(UnavailableError, match=r"has said nothing for 0\.2 seconds") as raised:
        make(bed, "exec sleep 100", stall_seconds=0.2).realise(PATHS, gcroots=bed / "roots")
    assert "stall_seconds" in raised.value.hint


@pytest.mark.parametrize("where", ["1", "2"], ids=["standard output", "standard error"])
def test_program_that_talks_may_take_its_time(bed, where):
    """Lines show that it lives, wherever it writes them."""
    script = f"for i in 1 2 3 4 5 6; do echo $i >&{where}; sleep 0.1; done"
    make(bed, script, stall_seconds=0.4).realise(PATHS, gcroots=bed / "roots")


def test_ten_callers_wait_for_one_call(bed):
    """While one call fetches a path nobody begins another; then each gets an out-link of its own."""
    builder = make(
        bed, f"[ -e {bed}/done ] || {{ sleep 0.3; echo long >> {bed}/long; touch {bed}/done; }}; ln -s $2 $1"
    )
    request = ClosureRequest(store_paths=(path("a"),))
    with ThreadPoolExecutor(10) as pool:
        for future in [
            pool.submit(builder.realise, request, gcroots=bed / f"roots-{number}") for number in range(10)
        ]:
            assert future.result() == (path("a"),)
    assert (bed / "long").read_text() == "long\n"
    assert all((bed / f"roots-{number}" / path("a").name).is_symlink() for number in range(10))


def test_caller_that_goes_away_returns_and_the_work_goes_on_for_a_retry(bed):
    """Its program is not ended at once: a retry waits for the same call."""
    builder = make(bed, f"sleep 0.5; echo long >> {bed}/long; ln -s $2 $1", grace_seconds=30)
    request = ClosureRequest(store_paths=(path("a"),))
    caller = Caller()
    threading.Timer(0.1, caller.leave).start()
    with pytest.raises(CancelledError):
        builder.realise(request, gcroots=bed / "roots", caller=caller)
    assert not (bed / "long").exists()
    builder.realise(request, gcroots=bed / "roots")
    assert calls(bed) == [f"{bed}/roots/{path('a').name} {path('a')}"]


def test_the_one_who_began_has_gone_with_its_roots(bed):
    """Its call cannot make the out-link any more, which is no failure of those who want the path too."""
    builder = make(bed, "sleep 0.5; ln -s $2 $1", grace_seconds=30)
    request = ClosureRequest(store_paths=(path("a"),))
    caller = Caller()
    threading.Timer(0.1, caller.leave).start()
    with pytest.raises(CancelledError):
        builder.realise(request, gcroots=bed / "roots", caller=caller)
    shutil.rmtree(bed / "roots")
    assert builder.realise(request, gcroots=bed / "others") == (path("a"),)
    assert (bed / "others" / path("a").name).is_symlink()
    assert not (bed / "roots").exists()


def test_nobody_waits_any_more(bed):
    """When the last caller has gone, and the time of grace is over, the program is ended."""
    builder = make(bed, f"trap 'touch {bed}/ended; exit 1' TERM; sleep 100 & wait", grace_seconds=0)
    caller = Caller()
    threading.Timer(0.2, caller.leave).start()
    with pytest.raises(CancelledError):
        builder.realise(PATHS, gcroots=bed / "roots", caller=caller)
    deadline = time.monotonic() + 20
    while not (bed / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
