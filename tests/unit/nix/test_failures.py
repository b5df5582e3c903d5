"""Nix's words and what they mean. Each was printed by Nix 2.8 or 2.26 when tests/system had it fail so."""

from __future__ import annotations

import pytest

from nixsnap.errors import (
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from nixsnap.nix.activities import Activities, Kind, Result
from nixsnap.nix.caches import cache_of
from nixsnap.nix.failures import Failure, plain
from nixsnap.nix.storepath import StorePath

A, B = (StorePath.parse(f"/nix/store/{letter * 32}-{letter}") for letter in "ab")


@pytest.mark.parametrize(
    ("words", "kind", "hint"),
    [
        ("error: writing to file: No space left on device", ResourceExhaustedError, "make room"),
        (
            f"warning: the substitute for '{A}' from 'http://c' is not signed by any of the keys in …",
            PermissionDeniedError,
            "trusted_public_keys",
        ),
        (
            f"warning: ignoring substitute for '{A}' from 'http://c', as it's not signed by any of the keys in …",
            PermissionDeniedError,
            "trusted_public_keys",
        ),
        ("unable to download 'http://c/nix-cache-info': HTTP error 401", PermissionDeniedError, "netrc_file"),
        (
            "unable to download 'http://c/x.narinfo': HTTP error 500 ('Internal Server Error')",
            UnavailableError,
            "is the cache up",
        ),
        (
            "unable to download 'http://c/nix-cache-info': Couldn't connect to server (7)",
            UnavailableError,
            "is the cache up",
        ),
        (
            "file 'nar/x.nar.xz' does not exist in binary cache 'http://c'",
            NotFoundError,
            "copy it there again",
        ),
        ("Failed to open archive (Lzma library error: Corrupted input data)", UnavailableError, "damaged"),
        ("error: NAR contains invalid file name ''", UnavailableError, "damaged"),
        (f"builder for '{A}.drv' failed with exit code 1", UnavailableError, "nix log"),
        (
            f"error: path '{A}' is required, but there is no substituter that can build it",
            NotFoundError,
            None,
        ),
        ("something that Nix never said before", UnavailableError, None),
        ("", UnavailableError, None),
    ],
)
def test_words_decide(words, kind, hint):
    """Class and hint follow from what Nix said, which is in the message with the paths."""
    error = Failure(paths=[A, B], words=words).error()
    assert type(error) is kind
    assert error.message.startswith(f"cannot realise {A} and 1 more: ")
    assert words in error.message
    assert (hint or "") in (error.hint or "")


def test_what_no_cache_has_is_named_with_the_caches():
    """Nix says merely that it failed; which path it was missing we ask, and tell."""
    failure = Failure(paths=[A], words="build of it failed", unknown=[B], caches=["https://c"])
    error = failure.error()
    assert type(error) is NotFoundError
    assert f"no cache has {B} (asked: https://c): build of it failed" in error.message
    refused = failure.after(["'https://c/x.narinfo': HTTP error 403"]).error()
    assert type(refused) is PermissionDeniedError


def test_colours_are_left_out():
    """Nix colours what it says to a daemon's client, whatever the environment."""
    assert plain("\x1b[31;1merror:\x1b[0m no") == "error: no"


def test_caches_of_addresses():
    """A cache is what an address is below, by the layout of caches."""
    assert cache_of("https://c/x/nix-cache-info") == "https://c/x"
    assert cache_of(f"http://c:80/{'a' * 32}.narinfo") == "http://c:80"
    assert cache_of("https://c/nar/abc.nar.xz") == "https://c"
    assert cache_of("https://c/whatever") is None
    assert cache_of("s3://bucket/nix-cache-info") is None


def test_json_events():
    """What programs print with internal-json becomes log lines and progress; anything else is a line to keep."""
    activities = Activities()
    lines = [
        b'@nix {"action":"start","id":1,"level":0,"parent":0,"text":"","type":103}',
        b'@nix {"action":"start","id":2,"fields":["/nix/store/x"],"text":"copying","type":100}',
        b'@nix {"action":"result","fields":[5,9,1,0],"id":2,"type":105}',
        b'@nix {"action":"result","fields":[3,7,1,0],"id":1,"type":105}',
        b'@nix {"action":"result","fields":[100,40],"id":1,"type":106}',
        b'@nix {"action":"msg","level":0,"msg":"\\u001b[31;1merror:\\u001b[0m no"}',
        b'@nix {"action":"msg","level":3,"msg":"chatter"}',
    ]
    assert [activities.take_json(line) for line in lines] == [False] * 7
    moment = activities.moment()
    assert (moment.paths_done, moment.paths_total, moment.bytes_done, moment.bytes_total) == (3, 7, 5, 40)
    assert moment.current == ("/nix/store/x",)
    assert activities.lines == ["error: no"]
    activities.take_json(b'@nix {"action":"stop","id":2}')
    assert activities.moment().bytes_done == 5
    assert activities.moment().current == ()
    for strange in (b"error: plain", b"@nix {", b'@nix {"action":"start"}', b"@nix []"):
        assert activities.take_json(strange)


def test_a_transfer_that_stands_still_is_silence():
    """Nix repeats how far it is, about once a second; only what is new shows that a cache is alive."""
    activities = Activities()
    activities.started(1, Kind.FILE_TRANSFER, "", ["http://127.0.0.1/nar/x"])
    activities.resulted(1, Result.PROGRESS, [0, 0])
    heard = activities.heard_seconds
    activities.resulted(1, Result.PROGRESS, [0, 0])
    assert activities.heard_seconds == heard
    activities.resulted(1, Result.PROGRESS, [1, 0])
    assert activities.heard_seconds > heard
