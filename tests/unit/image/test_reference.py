"""Tests of `nixsnap.image.reference`; the cases are those of distribution's own documentation and tests."""

from __future__ import annotations

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.reference import Reference, layout_ref_name

SHA = "sha256:" + "0123456789abcdef" * 4
NIX = "nix:0/nix/store/b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z-nix-image-redis.tar"


@pytest.mark.parametrize(
    ("value", "normal", "familiar"),
    [
        ("redis", "docker.io/library/redis:latest", "redis:latest"),
        ("redis:7", "docker.io/library/redis:7", "redis:7"),
        ("docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("index.docker.io/redis:7", "docker.io/library/redis:7", "redis:7"),
        ("library/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("user/app:1", "docker.io/user/app:1", "user/app:1"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:x", "localhost:5000/app:x", "localhost:5000/app:x"),
        ("ghcr.io/a/b_c/d__e/f---g.h:V1.0-x_y", "ghcr.io/a/b_c/d__e/f---g.h:V1.0-x_y", None),
        ("[::1]:5000/app", "[::1]:5000/app:latest", None),
        ("Host/app", "Host/app:latest", None),
        (f"redis@{SHA}", f"docker.io/library/redis@{SHA}", f"redis@{SHA}"),
        (f"redis:7@{SHA}", f"docker.io/library/redis@{SHA}", f"redis:7@{SHA}"),
        (f"{NIX}:latest", f"{NIX}:latest", f"{NIX}:latest"),
        (NIX, f"{NIX}:latest", f"{NIX}:latest"),
    ],
)
def test_parse_normalises(value: str, normal: str, familiar: str | None) -> None:
    """Docker Hub's parts are added, and left out in the familiar form; a `nix:0` name is a host and a path."""
    reference = Reference.parse(value)

    assert str(reference) == normal
    assert reference.familiar == (familiar or normal)
    assert Reference.parse(str(reference)) == Reference.parse(normal)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is not a repository name"),
        ("Redis", "must be in lower case"),
        ("ghcr.io/A/b", "must be in lower case"),
        ("/nix/store/x", "is not a repository name"),
        ("a//b", "is not a repository name"),
        ("a/", "is not a repository name"),
        ("-a", "is not a repository name"),
        ("a..b/c", "is not a host"),
        ("a___b", "is not a repository name"),
        ("a b", "is not a repository name"),
        ("a\n", "is not a repository name"),
        ("redis:", "'' is not a tag"),
        ("redis:.x", "'.x' is not a tag"),
        ("redis:a b", "'a b' is not a tag"),
        ("redis:" + "x" * 129, "is not a tag"),
        ("redis@", "not a digest"),
        ("redis@sha256:0", "not a digest"),
        ("redis@" + SHA.upper(), "not a digest"),
        ("host:port/x", "'host:port' is not a host"),
        ("https://ghcr.io/x", "is not a host"),
        ("ghcr.io/" + "x" * 250, "longer than 255"),
        ("nix:0/nix/store/../../x", "is not a repository name"),
        (NIX.replace("redis", "Redis"), "must be in lower case"),
    ],
)
def test_parse_refuses(value: str, reason: str) -> None:
    """What is no reference is shown, with the reason."""
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        Reference.parse(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "ref_name"),
    [
        ("docker.io/library/redis:7", "7"),
        (f"{NIX}:latest", "latest"),
        (f"ghcr.io/x@{SHA}", f"ghcr.io/x@{SHA}"),
        ("localhost:5000/x", "localhost:5000/x"),
    ],
)
def test_layout_ref_name_is_the_tag(name: str, ref_name: str) -> None:
    """As containerd's exporter writes it: the tag, or all of a name that has none."""
    assert layout_ref_name(name) == ref_name
