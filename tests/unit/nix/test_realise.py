"""Realising closures, with a small nix-store of our own: the real one is used in tests/system."""

from __future__ import annotations

import os

import pytest

from nixsnap.errors import InvalidArgumentError, NotFoundError, UnavailableError
from nixsnap.nix.realise import ClosureRequest, ExternalBuilder, NixStoreRealiser, read_closure_info
from nixsnap.nix.storepath import StorePath

# Notes its arguments; "--query --requisites" answers with the file `requisites`.
FAKE_NIX_STORE = """#!/bin/sh
[ "$1 $2" = "--option connect-timeout" ] && shift 3
echo "$*" >> {log}
if [ "$1" = --query ]; then cat {requisites}; fi
if [ -e {fail} ]; then echo "error: it rains" >&2; exit 1; fi
"""


def path(letter):
    return StorePath.parse(f"/nix/store/{letter * 32}-{letter}")


@pytest.fixture
def nix(tmp_path, monkeypatch):
    """A directory with `bin/nix-store`, its `log`, and a `store`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "requisites").touch()
    (tmp_path / "log").touch()
    program = tmp_path / "bin" / "nix-store"
    program.write_text(
        FAKE_NIX_STORE.format(
            log=tmp_path / "log", requisites=tmp_path / "requisites", fail=tmp_path / "fail"
        )
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def add(nix, *letters):
    for letter in letters:
        (nix / "store" / path(letter).name).mkdir()


def add_closure_info(nix, letter, listed):
    directory = nix / "store" / path(letter).name
    directory.mkdir()
    (directory / "store-paths").write_text("".join(f"{path(other)}\n" for other in listed))


def realise(nix, **request):
    realiser = NixStoreRealiser(store=nix / "store")
    return realiser.realise(ClosureRequest(**request), gcroots=nix / "roots")


def calls(nix):
    return (nix / "log").read_text().splitlines()


def test_named_paths_are_one_call(nix):
    """However many store paths an image names, Nix is called once for all of them, with roots."""
    add(nix, "a", "b", "c")
    closure = realise(nix, store_paths=(path("c"), path("a"), path("b")))
    assert closure == (path("a"), path("b"), path("c"))
    assert calls(nix) == [
        f"--add-root {nix}/roots/path-0 --indirect --realise {path('a')} {path('b')} {path('c')}"
    ]


def test_closure_info_is_rooted_by_itself(nix):
    """A root on the closureInfo keeps all it refers to; the closure is what it lists."""
    add_closure_info(nix, "i", ["a", "b"])
    add(nix, "a", "b")
    (nix / "requisites").write_text(f"{path('a')}\n{path('b')}\n{path('i')}\n")
    assert realise(nix, closure_info=path("i")) == (path("a"), path("b"))
    assert calls(nix)[0] == f"--add-root {nix}/roots/closure --indirect --realise {path('i')}"
    assert len(calls(nix)) == 2


def test_listed_but_not_referred_to_gets_a_root_of_its_own(nix):
    """A closureInfo that lists what it does not refer to would leave that to the garbage collector."""
    add_closure_info(nix, "i", ["a", "b"])
    add(nix, "a", "b")
    (nix / "requisites").write_text(f"{path('a')}\n{path('i')}\n")
    realise(nix, closure_info=path("i"))
    assert calls(nix)[2] == f"--add-root {nix}/roots/path-0 --indirect --realise {path('b')}"


def test_success_with_something_missing_is_a_failure(nix):
    """Nix said yes, but the path is not there: the pull fails, not the container."""
    add(nix, "a")
    with pytest.raises(NotFoundError, match=str(path("b"))):
        realise(nix, store_paths=(path("a"), path("b")))


def test_failure_has_the_paths_and_nix_words(nix):
    """The error names a path, the number of the others, and what Nix said."""
    (nix / "fail").touch()
    with pytest.raises(UnavailableError, match=f"(?s){path('a')} and 1 more.*error: it rains"):
        realise(nix, store_paths=(path("a"), path("b")))


def test_ten_thousand_paths_fit_on_command_lines(nix):
    """execve takes 2 MiB in all; names of the greatest length are cut into several calls, and none is lost."""
    names = [f"{i:032d}".translate(str.maketrans("", "", "")) for i in range(10_000)]
    paths = tuple(StorePath.parse(f"/nix/store/{name}-{'x' * 200}") for name in names)
    for each in paths:
        (nix / "store" / each.name).touch()
    assert len(realise(nix, store_paths=paths)) == 10_000
    assert len(calls(nix)) == 3
    assert sum(call.count("/nix/store/") for call in calls(nix)) == 10_000


@pytest.mark.parametrize("content", [b"", b"/etc/passwd\n", b"\xff\xfe", b"/nix/store/../etc\n"])
def test_what_is_no_closure_info_is_refused(nix, content):
    """store-paths is a list of store paths or nothing."""
    directory = nix / "store" / path("i").name
    directory.mkdir()
    (directory / "store-paths").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"store-paths|line 1"):
        read_closure_info(nix / "store", path("i"))


def test_closure_info_behind_symlinks_is_refused(nix):
    """Neither the store path nor its file may be a symlink: what is read stays in the store."""
    outside = nix / "outside"
    outside.mkdir()
    (outside / "store-paths").write_text(f"{path('a')}\n")
    (nix / "store" / path("i").name).symlink_to(outside)
    with pytest.raises(InvalidArgumentError):
        read_closure_info(nix / "store", path("i"))
    directory = nix / "store" / path("j").name
    directory.mkdir()
    (directory / "store-paths").symlink_to(outside / "store-paths")
    with pytest.raises(InvalidArgumentError):
        read_closure_info(nix / "store", path("j"))
    (directory / "store-paths").unlink()
    os.mkfifo(directory / "store-paths")
    with pytest.raises(InvalidArgumentError):
        read_closure_info(nix / "store", path("j"))


def test_external_builder_gets_out_link_and_store_path(nix):
    """The Go original's contract: PROGRAM OUT-LINK STORE-PATH, for each path."""
    add(nix, "a", "b")
    realiser = ExternalBuilder(program=nix / "bin" / "nix-store", store=nix / "store")
    request = ClosureRequest(store_paths=(path("a"), path("b")))
    assert realiser.realise(request, gcroots=nix / "roots") == (path("a"), path("b"))
    assert sorted(calls(nix)) == [f"{nix}/roots/{path(x).name} {path(x)}" for x in "ab"]


def test_external_builder_that_does_nothing_is_found_out(nix):
    """Exit status 0 is not enough; the path must be there."""
    realiser = ExternalBuilder(program=nix / "bin" / "nix-store", store=nix / "store")
    with pytest.raises(NotFoundError, match=str(path("a"))):
        realiser.realise(ClosureRequest(store_paths=(path("a"),)), gcroots=nix / "roots")


def test_external_builder_that_fails(nix):
    """Its words are in the error, which is one of ours and no group of them."""
    (nix / "fail").touch()
    realiser = ExternalBuilder(program=nix / "bin" / "nix-store", store=nix / "store")
    with pytest.raises(UnavailableError, match="it rains"):
        realiser.realise(ClosureRequest(store_paths=(path("a"), path("b"))), gcroots=nix / "roots")
