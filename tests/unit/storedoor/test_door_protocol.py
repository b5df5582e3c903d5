"""Records on the door's socket, hostile ones among them."""

from __future__ import annotations

import random

import pytest

from nixsnap.errors import PermissionDeniedError, UnavailableError
from nixsnap.storedoor import protocol


def test_one_request_and_no_other():
    """Not a byte less, not one more."""
    assert protocol.is_request(b"nixsnap-store-door 1")
    for record in (
        b"",
        b"\0",
        protocol.REQUEST[:-1],
        protocol.REQUEST + b"\0",
        protocol.REQUEST + b" /etc",
        protocol.REQUEST.upper(),
        b"nixsnap-store-door 2",
        b"/nix/store",
    ):
        assert not protocol.is_request(record)


def test_a_grant_and_a_refusal():
    """The reason arrives as it was said, in one line."""
    protocol.check_answer(protocol.GRANTED)
    with pytest.raises(PermissionDeniedError, match="the store door refused: who are you — a new line"):
        protocol.check_answer(protocol.refusal("who are you — a\nnew line"))


def test_a_long_reason_is_cut():
    """So that it fits into what a client reads; a character that was cut in two does no harm."""
    answer = protocol.refusal("é" * 5000)
    assert len(answer) == protocol.ANSWER_BYTES
    with pytest.raises(PermissionDeniedError, match="refused: éé"):
        protocol.check_answer(answer)


def test_a_name_that_is_no_text():
    """File names are bytes; what is none of UTF-8 is replaced."""
    with pytest.raises(PermissionDeniedError, match=r"refused: /a\?"):
        protocol.check_answer(protocol.refusal("/a\udcff"))


def test_no_answer():
    """The door was killed."""
    with pytest.raises(UnavailableError, match="hung up without an answer"):
        protocol.check_answer(b"")


def test_no_bytes_are_taken_for_a_grant():
    """Whatever is served at that path: an answer is either of the two, or makes no sense."""
    chance = random.Random(5)
    records = [chance.randbytes(chance.randrange(1, 200)) for _ in range(500)]
    records += [protocol.GRANTED + b"\0", protocol.GRANTED[:-1], b" granted", b"refused"]
    for record in records:
        with pytest.raises(UnavailableError, match="makes no sense"):
            protocol.check_answer(record)
