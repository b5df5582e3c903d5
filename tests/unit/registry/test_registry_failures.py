"""Tests of `nixsnap.registry.failures`: how a registry's refusals read.

Which errors they are is in `test_registry_upload`.
"""

from __future__ import annotations

import json

import pytest
import urllib3

from nixsnap.registry.failures import codes, refusal, says_full
from nixsnap.registry.transport import Answer


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = urllib3.HTTPHeaderDict({name.replace("_", "-"): value for name, value in headers.items()})
    return Answer(method="PUT", url="https://r.invalid/v2/a", status=status, headers=named, body=raw)


def read(refused: Answer) -> str:
    return refusal(refused, registry="r.invalid", doing="push it").message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", ""),
        (b"<html>", ""),
        (b"{", ""),
        (b"[" * 100_000, ""),
        ([], ""),
        ({"errors": "no"}, ""),
        ({"errors": [1, None]}, ""),
        ({"errors": [{"code": "DENIED", "message": "go away"}]}, " (DENIED: go away)"),
        ({"errors": [{"code": "A"}, {"message": "b"}]}, " (A; b)"),
        ({"errors": [{"code": "A", "detail": "d"}]}, " (A: d)"),
        ({"errors": [{"code": "A", "detail": {"x": 1}}]}, " (A)"),
        ({"errors": [{"message": "a\nb\x1b[2J\u202e"}]}, " (a b [2J)"),
        ({"errors": [{"message": "x" * 500}]}, f" ({'x' * 200}…)"),
    ],
)
def test_message(body, said):
    """One line with status and the registry's own words, of which nothing moves the cursor."""
    assert read(answer(403, body)) == f"cannot push it: r.invalid answers 403 Forbidden{said}"


def test_failure_comes_with_its_details():
    """They may be all that says what failed."""
    body = {"errors": [{"code": "UNKNOWN", "detail": {"Op": "mkdir"}}]}
    assert read(answer(500, body)).endswith('(UNKNOWN: {"Op": "mkdir"})')


@pytest.mark.parametrize("field", ["code", "message", "detail"])
def test_details_of_any_depth(field):
    """What could just be parsed may be too deep to be written out again; it is then left out."""
    for depth in range(500, 1100):
        body = b'{"errors": [{"%s": %s}]}' % (field.encode(), b"[" * depth + b"]" * depth)
        assert "500 Internal Server Error" in read(answer(500, body))
        assert codes(answer(500, body)) in {(), ("",)}


def test_plain_text():
    """Is shown where the body says that it is meant to be read."""
    assert read(answer(400, b"wrong\nmore", Content_Type="text/plain; charset=utf-8")).endswith("(wrong)")
    assert read(answer(400, b"wrong", Content_Type="text/html")).endswith("400 Bad Request")


def test_unknown_status():
    """Is a number."""
    assert read(answer(599)) == "cannot push it: r.invalid answers 599"


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (answer(507), True),
        (answer(500, b"write /x: no space left on device"), True),
        (answer(500, {"errors": [{"detail": {"Enclosed": {"Op": "mkdir", "Err": 28}}}]}), True),
        (answer(403, {"errors": [{"code": "DENIED", "message": "Quota exceeded"}]}), True),
        (answer(403, b"exceeded the storage quota"), True),
        (answer(429, b"quota exceeded"), False),
        (answer(500, {"errors": [{"detail": {"Err": 280}}]}), False),
        (answer(500), False),
        (answer(202, b"no space left on device"), False),
    ],
)
def test_says_full(refused, expected):
    """In one of the ways in which registries say so."""
    assert says_full(refused) is expected


def test_codes():
    """Of all errors."""
    assert codes(answer(400, {"errors": [{"code": "A"}, {"code": "B"}, {}]})) == ("A", "B", "")
