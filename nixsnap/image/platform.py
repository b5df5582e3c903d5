"""Platforms: `os/arch[/variant]`, named and matched as containerd does.

The rules are those of the Go module `github.com/containerd/platforms` (`database.go` for names; `Only` in
`compare.go` for which platform runs which): what containerd would pick on a host is what we pick.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.document import mapping, optional, text, texts
from nixsnap.nix.storepath import shorten

# Name of an architecture → (Go's name, variant); None keeps the variant that was given.
_ARCHITECTURES: Final[dict[str, tuple[str, str | None]]] = {
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    # What uname(2) says on 32-bit ARM, and on a 64-bit kernel that runs a 32-bit userland.
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
}
_VARIANTS: Final[dict[tuple[str, str], str]] = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}
_COMPONENT: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_ARM64_VERSION: Final = re.compile(r"v([89])(?:\.(\d))?", re.ASCII)


@attrs.frozen(kw_only=True)
class Platform:
    """What a binary needs to run on, in normalised names (`amd64`, not `x86_64`).

    Args:
        os: `linux`, …
        architecture: Go's name of it.
        variant: Such as `v7` of `arm`; empty for `arm64`'s `v8` and `amd64`'s `v1`.
        os_version: Of Windows images; carried, not compared.
        os_features: Likewise.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: str) -> Platform:
        """Take `os/arch` or `os/arch/variant`.

        Raises:
            InvalidArgumentError: It is neither.
        """
        parts = value.split("/")
        if len(parts) not in {2, 3} or not all(_COMPONENT.fullmatch(part) for part in parts):
            raise InvalidArgumentError(
                f"{shorten(value)} is not a platform", hint="os/arch or os/arch/variant"
            )
        return cls.normalised(*parts)

    @classmethod
    def normalised(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        """Make a platform of names as they come."""
        architecture, variant = architecture.lower(), variant.lower()
        architecture, forced = _ARCHITECTURES.get(architecture, (architecture, None))
        variant = variant if forced is None else forced
        return cls(
            os={"macos": "darwin"}.get(os_name.lower(), os_name.lower()),
            architecture=architecture,
            variant=_VARIANTS.get((architecture, variant), variant),
        )

    @classmethod
    def host(cls) -> Platform:
        """This machine's, by uname(2)."""
        return cls.normalised("linux", os.uname().machine)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Platform | None:
        """Read the fields that a descriptor's `platform` and an image config share.

        Returns:
            None where they name no platform. BuildKit's `unknown/unknown`, of attestations, is one: it runs
            nowhere.
        """
        document = mapping(value, where)
        os_name = optional(document, "os", where, text)
        architecture = optional(document, "architecture", where, text)
        if not os_name or not architecture:
            return None
        plain = cls.normalised(os_name, architecture, optional(document, "variant", where, text) or "")
        return attrs.evolve(
            plain,
            os_version=optional(document, "os.version", where, text) or "",
            os_features=optional(document, "os.features", where, texts) or (),
        )

    def to_json(self) -> dict[str, Any]:
        """Write the fields in the order of OCI's structure, empty ones left out."""
        fields = {
            "architecture": self.architecture,
            "os": self.os,
            "os.version": self.os_version,
            "os.features": list(self.os_features),
            "variant": self.variant,
        }
        return {key: value for key, value in fields.items() if value}

    def rank(self, other: Platform) -> int | None:
        """How well an image for `other` runs here: 0 is best, None is not at all."""
        for rank, runnable in enumerate(self._runs()):
            if (other.os, other.architecture, other.variant) == (self.os, *runnable):
                return rank
        return None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def _runs(self) -> Iterator[tuple[str, str]]:
        """Yield every (architecture, variant) that runs here, best first."""
        if self.architecture == "arm64":
            yield from _arm64_runs(self.variant)
            return
        yield self.architecture, self.variant
        if self.architecture == "amd64":
            yield from (("amd64", variant) for variant in _lower(self.variant, lowest=2))
            if self.variant:
                yield "amd64", ""
            yield "386", ""
        elif self.architecture == "arm":
            yield from (("arm", variant) for variant in _lower(self.variant, lowest=5))


def _lower(variant: str, *, lowest: int) -> Iterator[str]:
    """Yield the versions below `vN`, downwards; none if it is of another form."""
    number = variant.removeprefix("v")
    if number.isascii() and number.isdigit() and len(number) == 1:
        yield from (f"v{version}" for version in range(int(number) - 1, lowest - 1, -1))


def _arm64_runs(variant: str) -> Iterator[tuple[str, str]]:
    """Yield what a 64-bit ARM runs: v9.x has all of v8.(x+5), and 32-bit code up to v8 runs too."""
    matched = _ARM64_VERSION.fullmatch(variant or "v8")
    if matched is None:
        yield "arm64", variant
        return
    major, minor = int(matched[1]), int(matched[2] or 0)
    if major == 9:  # noqa: PLR2004 - the architecture's own number
        yield from (("arm64", f"v9.{below}" if below else "v9") for below in range(minor, -1, -1))
        minor = min(minor + 5, 9)
    yield from (("arm64", f"v8.{below}" if below else "") for below in range(minor, -1, -1))
    yield from (("arm", f"v{version}") for version in range(8, 4, -1))
