"""Tests of `nixsnap.image.document`."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image import document


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{} x", "Extra data"),
        (b'{"a": 1, "a": 2}', r"the key 'a' stands twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', r"the key 'a' stands twice"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'"\xff"', "invalid start byte"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "integer string conversion"),
    ],
)
def test_parse_refuses_what_is_not_json(raw: bytes, reason: str) -> None:
    """Each kind of broken text, and texts that different readers would read differently."""
    with pytest.raises(InvalidArgumentError, match=f"^index is not valid JSON: .*{reason}"):
        document.parse(raw, "index")


def test_parse_takes_escaped_pairs_of_surrogates() -> None:
    """Two halves of a character are a character."""
    assert document.parse(b'"\\ud83d\\ude00"', "it") == "\U0001f600"


def test_parse_refuses_a_long_document_unread() -> None:
    """The limit holds whatever the text; at the limit it is still read."""
    assert document.parse(b"1".rjust(document.MAX_DOCUMENT), "it") == 1
    with pytest.raises(
        InvalidArgumentError, match=r"it has 8388609 bytes; of a document at most 8388608 are read"
    ):
        document.parse(b" " * (document.MAX_DOCUMENT + 1), "it")


def test_parse_file_reads_no_more_than_the_limit(tmp_path: Path) -> None:
    """A huge file, or an endless device, is refused after a bounded read; a missing one is not found."""
    with pytest.raises(InvalidArgumentError, match="config has 8388609 bytes"):
        document.parse_file("/dev/zero", "config")
    with pytest.raises(NotFoundError, match="config does not exist"):
        document.parse_file(str(tmp_path / "absent"), "config")


def test_serialise_is_compact_and_keeps_order_and_text() -> None:
    """The bytes follow from the value alone."""
    assert document.serialise({"b": [1, "\u00e9"], "a": None}) == '{"b":[1,"\u00e9"],"a":null}'.encode()


@pytest.mark.parametrize(
    ("read", "good", "bad", "wanted"),
    [
        (document.text, "x", [1, None, [], {}, True], "a string"),
        (document.integer, 7, ["7", 7.0, True, []], "a whole number"),
        (document.boolean, False, [0, "false"], "true or false"),
        (document.mapping, {"a": 1}, [[], "x", 1], "an object"),
        (document.sequence, [1], [{}, "x", 1], "an array"),
    ],
)
def test_readers_take_one_type(read, good, bad, wanted) -> None:
    """A value of another type is shown, with the place and what was wanted."""
    assert read(good, "x.y") == good
    for value in bad:
        with pytest.raises(InvalidArgumentError, match=rf"^x\.y is .*, not {wanted}$"):
            read(value, "x.y")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_integer_has_64_bits(value: int) -> None:
    """What Go's int64 cannot hold is refused."""
    with pytest.raises(InvalidArgumentError, match="x does not fit into 64 bits"):
        document.integer(value, "x")


def test_errors_name_the_element() -> None:
    """The place of a wrong element is its index or key."""
    with pytest.raises(InvalidArgumentError, match=r"^x\[1\] is 1, not a string"):
        document.texts(["a", 1], "x")
    with pytest.raises(InvalidArgumentError, match=r"^x\['k'\] is \[\], not a string"):
        document.text_map({"k": []}, "x")


def test_field_treats_null_as_absent() -> None:
    """As Go's decoder does: a default serves for either, and without one either is an error."""
    for fields in ({}, {"a": None}):
        assert document.field(fields, "a", "x", document.text, default="d") == "d"
        assert document.optional(fields, "a", "x", document.text) is None
        with pytest.raises(InvalidArgumentError, match=r"^x has no 'a'$"):
            document.field(fields, "a", "x", document.text)
    assert document.field({"a": ""}, "a", "x", document.text, default="d") == ""


def test_a_wrong_value_of_any_depth_is_refused() -> None:
    """What could just be parsed may be too deep to be written out again."""
    for depth in range(500, 1100):
        try:
            value = document.parse(b"[" * depth + b"]" * depth, "x")
        except InvalidArgumentError:
            return
        with pytest.raises(InvalidArgumentError, match="not a string"):
            document.text(value, "x")


def test_a_long_wrong_value_is_cut() -> None:
    """A hostile value does not fill the message."""
    with pytest.raises(InvalidArgumentError) as caught:
        document.text(["x" * 100_000], "x")
    assert len(str(caught.value)) < 250
