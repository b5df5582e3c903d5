"""Tests of `nixsnap.registry.challenge`."""

from __future__ import annotations

import pytest

from nixsnap.registry.challenge import parse_challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        (['Basic realm="a registry"'], [("basic", {"realm": "a registry"})]),
        (
            ['Bearer realm="https://auth.invalid/token",service="s",scope="repository:a/b:pull,push"'],
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.invalid/token",
                        "service": "s",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            ['Bearer realm="r", error="insufficient_scope" , scope = "x"'],
            [("bearer", {"realm": "r", "error": "insufficient_scope", "scope": "x"})],
        ),
        (['BASIC realm="a", Bearer REALM=b'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (['Basic realm="a"', 'Bearer realm="b"'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (["Negotiate"], [("negotiate", {})]),
        (['Negotiate, Basic realm="a"'], [("negotiate", {}), ("basic", {"realm": "a"})]),
        (["Negotiate abc=="], [("negotiate", {"abc": "="})]),
        ([r'Basic realm="say \"hi\", \\ and go"'], [("basic", {"realm": r'say "hi", \ and go'})]),
        (["", ",", "=", '"', "Bearer", 'realm="x"'], [("bearer", {"realm": "x"})]),
        (["Basic realm="], [("basic", {"realm": ""})]),
    ],
)
def test_parse(headers, expected):
    """One or several challenges in one or several headers; what is none is passed over."""
    found = [(each.scheme, dict(each.parameters)) for each in parse_challenges(headers)]
    assert found == expected
