"""Tests of `nixsnap.nix.storepath`."""

from __future__ import annotations

import os

import attrs
import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.storepath import StorePath, is_store_name, parse_closure, shorten

DIGEST = "b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z"  # Nix's manual, "Store Path"
FIREFOX = f"/nix/store/{DIGEST}-firefox-33.1"


def test_parse_splits_store_directory_and_name() -> None:
    """The manual's own example parses, and prints as it was written."""
    path = StorePath.parse(FIREFOX)

    assert path == StorePath(store_dir="/nix/store", name=f"{DIGEST}-firefox-33.1")
    assert (path.digest, str(path), os.fspath(path)) == (DIGEST, FIREFOX, FIREFOX)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "0",
        "A",
        "-",
        "_",
        "?",
        "=",
        "+",
        "a" * 211,
        "x.drv",
        "a..b",
        "a.",
        ".hidden",
        "...",
        "..a",
        "x-.",
        "a-..",
    ],
)
def test_every_name_that_current_nix_takes_is_a_name(name: str) -> None:
    """Each character class, the longest name, and dots wherever Nix 2.21 and later take them."""
    assert is_store_name(f"{DIGEST}-{name}")


@pytest.mark.parametrize(
    "name",
    # Characters that Nix leaves out, a Unicode digit among them, each between two that it takes.
    [f"a{character}b" for character in "/ %,:\\~@*'\"$#\n\t\0\u00e9\u0661\udcff"]
    + ["", " .", "..", ".-", "..-", ".-x", "..-x", "a/", "a\n", "\n"]
    + ["a" * 212],
)
def test_other_names_are_refused(name: str) -> None:
    """Too short, too long, a foreign character (a Unicode digit too), or one of Nix's four dot forms."""
    assert not is_store_name(f"{DIGEST}-{name}")


@pytest.mark.parametrize("character", "eotuEOTUABZ!/.\u0660")
@pytest.mark.parametrize("position", [0, 16, 31])
def test_digest_is_nix_base_32(character: str, position: int) -> None:
    """The four letters that Nix leaves out, capitals and anything else make it no digest."""
    digest = DIGEST[:position] + character + DIGEST[position + 1 :]

    assert not is_store_name(f"{digest}-x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/nix/store",
        "/nix/store/",
        "/etc",
        "/etc/passwd",
        f"{DIGEST}-x",
        f"nix/store/{DIGEST}-x",
        f" {FIREFOX}",
        f"{FIREFOX} ",
        f"{FIREFOX}\n",
        f"{FIREFOX}\0",
        f"{FIREFOX}/",
        f"{FIREFOX}/bin",
        f"{FIREFOX}/../x",
        f"//nix/store/{DIGEST}-x",
        f"/nix//store/{DIGEST}-x",
        f"/nix/store//{DIGEST}-x",
        f"/nix/store/./{DIGEST}-x",
        f"/nix/store/../store/{DIGEST}-x",
        f"/nix/store/../../{DIGEST}-x",
        f"/gnu/store/{DIGEST}-x",
        f"/NIX/store/{DIGEST}-x",
        f"/nix/store/{DIGEST[:31]}-x",
        f"/nix/store/{DIGEST}0-x",
        f"/nix/store/{DIGEST}",
        f"/nix/store/{DIGEST}x",
        f"/nix/store\n/{DIGEST}-x",
        f"{FIREFOX}\n{FIREFOX}",
    ],
)
def test_parse_refuses_all_else_and_shows_it(text: str) -> None:
    """Nothing is stripped or normalised, and the message shows the offending text, escaped."""
    with pytest.raises(InvalidArgumentError) as caught:
        StorePath.parse(text)

    assert ascii(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parse_with_another_store_directory() -> None:
    """The store directory is compared whole: neither a prefix nor the usual one will do."""
    assert str(StorePath.parse(f"/srv/nix/{DIGEST}-x", store_dir="/srv/nix")) == f"/srv/nix/{DIGEST}-x"
    for text in (FIREFOX, f"/srv/nix2/{DIGEST}-x", f"/srv/{DIGEST}-x"):
        with pytest.raises(InvalidArgumentError, match=r"is not a store path in /srv/nix$"):
            StorePath.parse(text, store_dir="/srv/nix")


def test_a_long_text_is_shown_cut() -> None:
    """A hostile value of a megabyte does not become a log line of a megabyte."""
    with pytest.raises(InvalidArgumentError) as caught:
        StorePath.parse("/nix/store/" + "x" * 2**20)

    assert len(str(caught.value)) < 400
    assert "(1048587 characters)" in str(caught.value)


def test_constructing_checks_the_name() -> None:
    """A malformed StorePath cannot exist, whichever way it is made; and it cannot be changed."""
    with pytest.raises(InvalidArgumentError, match=r"'\.\./x' is not the name of a store path"):
        StorePath(name="../x")
    with pytest.raises(InvalidArgumentError, match=r"'\.\.' is not the name"):
        attrs.evolve(StorePath.parse(FIREFOX), name="..")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        StorePath.parse(FIREFOX).name = "x"  # type: ignore[misc]


def test_store_paths_sort_and_hash_by_value() -> None:
    """They serve in sets and in ordered output."""
    first, second = (StorePath(name=f"{DIGEST}-{letter}") for letter in "ab")

    assert sorted({second, first, StorePath.parse(str(first))}) == [first, second]


def test_parse_closure_keeps_order_and_drops_repeats() -> None:
    """The order is that of the text; blank lines, such as the last one, and repeats are passed over."""
    lines = [f"/nix/store/{DIGEST}-{letter}" for letter in "ba"]

    assert [str(path) for path in parse_closure("\n".join([*lines, "", lines[0], ""]))] == lines
    assert parse_closure("") == []


@pytest.mark.parametrize("line", ["/etc/passwd", f"{FIREFOX}\r", f"{FIREFOX} 1234"])
def test_parse_closure_names_the_line(line: str) -> None:
    """One bad line refuses the closure, and the message says which and shows it."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_closure(f"{FIREFOX}\n{line}\n")

    assert str(caught.value) == f"line 2: {line!a} is not a store path in /nix/store"


def test_shorten_escapes() -> None:
    """What it returns can stand in a one-line message, undecodable bytes included."""
    assert shorten("a\n\x1b[0m\udcff") == r"'a\n\x1b[0m\udcff'"
