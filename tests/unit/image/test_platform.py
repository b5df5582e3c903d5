"""Tests of `nixsnap.image.platform`; expected values are those of containerd's `platforms` module, tried by hand."""

from __future__ import annotations

import os

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.platform import Platform


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("LINUX/X86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/i686", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/armv7l", "linux/arm/v7"),
        ("linux/riscv64", "linux/riscv64"),
        ("macos/arm64", "darwin/arm64"),
    ],
)
def test_parse_normalises(value: str, normal: str) -> None:
    """The many names of an architecture become Go's."""
    assert str(Platform.parse(value)) == normal


@pytest.mark.parametrize(
    "value", ["", "linux", "amd64", "linux/", "/amd64", "linux/arm/v7/x", "a b/c", "linux/am\nd"]
)
def test_parse_refuses(value: str) -> None:
    """Anything but two or three plain parts, and the message has the form."""
    with pytest.raises(InvalidArgumentError, match="is not a platform") as caught:
        Platform.parse(value)
    assert caught.value.hint == "os/arch or os/arch/variant"


def test_host_is_this_machine() -> None:
    """By uname(2), in Go's name."""
    assert Platform.host() == Platform.parse(f"linux/{os.uname().machine}")


@pytest.mark.parametrize(
    ("host", "image", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/386", 1),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64/v3", "linux/amd64/v3", 0),
        ("linux/amd64/v3", "linux/amd64/v2", 1),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64/v3", "linux/386", 3),
        ("linux/amd64", "linux/arm64", None),
        ("linux/amd64", "windows/amd64", None),
        ("linux/386", "linux/amd64", None),
        ("linux/arm/v7", "linux/arm/v7", 0),
        ("linux/arm/v7", "linux/arm/v5", 2),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm64", 0),
        ("linux/arm64", "linux/arm/v8", 1),
        ("linux/arm64", "linux/arm/v7", 2),
        ("linux/arm64", "linux/arm64/v8.1", None),
        ("linux/arm64/v8.2", "linux/arm64/v8.1", 1),
        ("linux/arm64/v8.2", "linux/arm64", 2),
        ("linux/arm64/v9.1", "linux/arm64/v9", 1),
        ("linux/arm64/v9.1", "linux/arm64/v8.6", 2),
        ("linux/arm64/v9.1", "linux/arm64/v8.7", None),
        ("linux/riscv64", "linux/riscv64", 0),
    ],
)
def test_rank_is_containerds_order(host: str, image: str, rank: int | None) -> None:
    """What runs where, and what is preferred, as `platforms.Only` has it."""
    assert Platform.parse(host).rank(Platform.parse(image)) == rank


def test_json_round_trip() -> None:
    """Fields are written in OCI's order, empty ones not at all."""
    fields = {"architecture": "arm", "os": "linux", "os.version": "1", "os.features": ["f"], "variant": "v7"}
    platform = Platform.from_json(fields, "x")

    assert platform is not None
    assert list(platform.to_json().items()) == list(fields.items())
    assert Platform.parse("linux/amd64").to_json() == {"architecture": "amd64", "os": "linux"}


@pytest.mark.parametrize("fields", [{}, {"os": "linux"}, {"os": None, "architecture": None}])
def test_no_platform(fields: dict[str, str]) -> None:
    """Half of one is none."""
    assert Platform.from_json(fields, "x") is None


def test_an_unknown_platform_runs_nowhere() -> None:
    """BuildKit's mark of what is no image."""
    unknown = Platform.from_json({"os": "unknown", "architecture": "unknown"}, "x")

    assert unknown is not None
    assert Platform.host().rank(unknown) is None


def test_a_platform_of_another_type_is_refused() -> None:
    """The message names the field."""
    with pytest.raises(InvalidArgumentError, match=r"^x\.os is 1, not a string"):
        Platform.from_json({"os": 1}, "x")
