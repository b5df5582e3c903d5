"""Fetches that fail: each error has its class, the path, the cache and the way out; a retry uses what is left."""

from __future__ import annotations

import threading
from http import HTTPStatus

import pytest
from lab.binarycache import BinaryCache
from lab.nix import Closure, nix_closure
from storebed import Bed, paths_request, request_of

from nixsnap.errors import (
    NixsnapError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from nixsnap.nix.realise import ClosureRequest
from nixsnap.nix.storepath import StorePath


def fails(bed: Bed, kind: type[NixsnapError], closure: Closure, *words: str, **nix: object) -> NixsnapError:
    """Realising the closure fails so, and says all of `words`."""
    with pytest.raises(kind) as raised:
        bed.realiser(**nix).realise(request_of(closure), gcroots=bed.roots())
    assert type(raised.value) is kind
    for word in (closure.info, *words):
        assert word in raised.value.message
    return raised.value


def succeeds(bed: Bed, closure: Closure, **nix: object) -> None:
    """A retry does it."""
    bed.realiser(**nix).realise(request_of(closure), gcroots=bed.roots())
    assert all(bed.has(path) for path in closure.paths)


def dependency(closure: Closure) -> StorePath:
    """One of the closure's dependencies."""
    return StorePath.parse(next(path for path in closure.paths if path.endswith("-dep-1")))


def test_cache_that_nobody_serves(bed: Bed, small: Closure):
    """The cache is down: Unavailable, with its address; back again, the retry succeeds."""
    bed.publish(small)
    bed.cache.kill()
    error = fails(bed, UnavailableError, small, bed.cache.url)
    assert "is the cache up" in (error.hint or "")
    bed.cache.start()
    succeeds(bed, small)


def test_cache_that_has_nothing(bed: Bed, small: Closure):
    """No cache has it: NotFound, with the cache that was asked; once it has, the retry knows nothing of that."""
    error = fails(bed, NotFoundError, small, "no cache has", bed.cache.url)
    assert "nix copy" in (error.hint or "")
    bed.publish(small)
    succeeds(bed, small)


def test_cache_that_lacks_a_dependency(bed: Bed, small: Closure):
    """Which path of the closure is missing is told, where Nix says merely that it failed."""
    bed.publish(small)
    bed.cache.broken = dependency(small).digest
    fails(bed, NotFoundError, small, f"no cache has {dependency(small)}")
    bed.cache.broken = ""
    succeeds(bed, small)


def test_cache_that_lacks_content(bed: Bed, small: Closure):
    """It names paths whose content it does not have: 404 in the midst of things is NotFound too."""
    bed.publish(small)
    bed.cache.broken = "/nar/"
    fails(bed, NotFoundError, small, "does not exist in binary cache", bed.cache.url)
    bed.cache.broken = ""
    succeeds(bed, small)


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN])
def test_cache_that_refuses(bed: Bed, small: Closure, status: HTTPStatus):
    """Nix takes 401 and 403 for "not there"; we do not."""
    bed.publish(small)
    bed.cache.status = status
    error = fails(bed, PermissionDeniedError, small, bed.cache.url, f"HTTP error {status.value}")
    assert "netrc_file" in (error.hint or "")


def test_cache_with_a_password(bed: Bed, small: Closure):
    """Without the password PermissionDenied; with it in [nix] netrc_file all is well."""
    bed.publish(small)
    bed.cache.password = "sesame"
    fails(bed, PermissionDeniedError, small, bed.cache.url)
    netrc = bed.directory / "netrc"
    netrc.write_text("machine 127.0.0.1 login reader password wrong\n")
    fails(bed, PermissionDeniedError, small, bed.cache.url, netrc_file=netrc)
    netrc.write_text("machine 127.0.0.1 login reader password sesame\n")
    succeeds(bed, small, netrc_file=netrc)


def test_cache_with_a_token(bed: Bed, small: Closure):
    """An access token of a cache is a password without a login (Cachix, Attic), in whichever setting names its file."""
    bed.publish(small)
    bed.cache.reader, bed.cache.password = "", "token"
    netrc = bed.directory / "netrc"
    netrc.write_text("machine 127.0.0.1 password token\n")
    fails(bed, PermissionDeniedError, small, bed.cache.url, "HTTP error 401")
    settings = {"download-attempts": 1, "netrc-file": str(netrc)}
    absent = StorePath.parse(f"/nix/store/{'a' * 32}-absent")
    with pytest.raises(NotFoundError, match=f"no cache has {absent}"):  # and not that the cache refused us
        bed.realiser(extra_options=settings).realise(
            ClosureRequest(store_paths=(absent,)), gcroots=bed.roots()
        )
    succeeds(bed, small, extra_options=settings)


def test_cache_that_wants_a_header(bed: Bed, small: Closure):
    """Settings in `extra_options` reach the cache, here by the one header that Nix lets be set.

    Not those of transfers (`FileTransferSettings`) through a daemon of somebody else's: it takes them from its own
    nix.conf alone (`src/libstore/daemon.cc`, ClientSettings::apply), and the error is the cache's.
    """
    bed.publish(small)
    bed.cache.agent = "node-7"
    fails(bed, PermissionDeniedError, small, bed.cache.url, "HTTP error 401")
    settings = {"download-attempts": 1, "user-agent-suffix": "node-7"}
    if bed.daemon is None:
        succeeds(bed, small, extra_options=settings)
    else:
        fails(bed, PermissionDeniedError, small, bed.cache.url, "HTTP error 401", extra_options=settings)


def test_cache_that_fails(bed: Bed, small: Closure):
    """5xx is Unavailable."""
    bed.publish(small)
    bed.cache.status = HTTPStatus.INTERNAL_SERVER_ERROR
    fails(bed, UnavailableError, small, bed.cache.url, "500")


def test_signature_of_nobody_we_trust(bed: Bed, small: Closure):
    """Without its key a cache is not believed; with the key in [nix] trusted_public_keys it is."""
    bed.publish(small)
    error = fails(bed, PermissionDeniedError, small, "not signed", bed.cache.url, trusted_public_keys=[])
    assert "trusted_public_keys" in (error.hint or "")
    succeeds(bed, small)


def test_cache_without_signatures(bed: Bed, small: Closure):
    """Nor is one that signs nothing."""
    bed.cache.publish([small.info])
    fails(bed, PermissionDeniedError, small, "not signed")


def test_damaged_content(bed: Bed, small: Closure):
    """What does not have the hash that was signed is not taken."""
    bed.publish(small)
    for nar in (bed.cache.directory / "nar").iterdir():
        content = bytearray(nar.read_bytes())
        content[-200:] = bytes(200)
        nar.write_bytes(content)
    error = fails(bed, UnavailableError, small)
    assert "damaged" in (error.hint or "")
    # Nix leaves files of such behind, which it does not take for valid.
    paths = (*small.paths, small.info)
    invalid = bed.nix_store("--check-validity", "--print-invalid", *paths).split()
    assert sorted(invalid) == sorted(paths)


def test_full_disk(bed: Bed, small: Closure):
    """No room in the store: ResourceExhausted. Once there is, the retry succeeds."""
    bed.publish(small)
    with bed.limited(64 << 10) as grow:
        error = fails(bed, ResourceExhaustedError, small, "No space left on device")
        assert "nix-collect-garbage" in (error.hint or "")
        grow(64 << 20)
        succeeds(bed, small)


def test_cache_killed_half_way(bed: Bed, small: Closure):
    """It dies while content is on its way: Unavailable. Back again, the retry fetches the rest."""
    bed.publish(small)
    bed.cache.held.clear()

    def kill() -> None:
        while not bed.cache.nars:
            threading.Event().wait(0.01)
        bed.cache.kill()
        bed.cache.held.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    fails(bed, UnavailableError, small)
    thread.join()
    bed.cache.start()
    succeeds(bed, small)


def test_cache_that_hangs(bed: Bed, small: Closure):
    """One that takes requests and never answers costs `stall_seconds`."""
    bed.publish(small)
    bed.cache.held.clear()
    error = fails(bed, UnavailableError, small, "nothing was heard of Nix for 2 seconds", stall_seconds=2)
    assert "stall_seconds" in (error.hint or "")
    bed.cache.held.set()
    succeeds(bed, small)


def test_second_cache(bed: Bed, small: Closure):
    """One cache is down and another has it: no error at all."""
    bed.publish(small)
    succeeds(bed, small, substituters=["http://127.0.0.1:9", bed.cache.url])


def test_a_cache_in_front_that_has_nothing(bed: Bed, small: Closure):
    """It is asked for each path once: Nix remembers what it lacks while a call lasts, and no retry relies on that."""
    bed.publish(small)
    (bed.directory / "front").mkdir()
    (bed.directory / "front/nix-cache-info").write_text("StoreDir: /nix/store\n")
    with BinaryCache(directory=bed.directory / "front") as front:
        caches = [f"{front.url}?priority=1", f"{bed.cache.url}?priority=2"]
        succeeds(bed, small, substituters=caches)
        asked = [path for path in front.requests if path.endswith(".narinfo")]
        assert len(asked) == len(set(asked)) == len(small.paths) + 1
        other = nix_closure(2, salt="behind")
        fails(bed, NotFoundError, other, "no cache has", substituters=caches)
        front.publish([other.info], secret_key=bed.secret_key)
        succeeds(bed, other, substituters=caches)


def test_part_of_what_is_named_is_nowhere(bed: Bed, small: Closure):
    """Never a success with something missing: one path of many is named, and what could be had is there for a retry."""
    bed.publish(small)
    absent = StorePath.parse(f"/nix/store/{'a' * 32}-absent")
    request = ClosureRequest(store_paths=(absent, *paths_request(small).store_paths))
    with pytest.raises(NotFoundError, match=f"no cache has {absent}"):
        bed.realiser().realise(request, gcroots=bed.roots())
