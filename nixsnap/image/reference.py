"""Image references: the grammar of `github.com/distribution/reference`, which Docker and containerd share.

A reference is `[domain/]path[:tag][@digest]`. In the *familiar* form, Docker Hub's domain and its
`library/` are left out; the *normalised* form has both, and a tag or a digest. CRI and nerdctl know images
by the latter.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.digests import read_digest
from nixsnap.nix.storepath import shorten

NIX_PREFIX: Final = "nix:0"

_HUB: Final = "docker.io"
_LEGACY_HUB: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_MAX_NAME: Final = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


@attrs.frozen(kw_only=True)
class Reference:
    """A normalised image reference.

    Args:
        domain: The registry's host and port, or `nix:0`.
        path: The repository there.
        tag: Empty where only a digest was given.
        digest: Empty where none was given.
    """

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, value: str) -> Reference:
        """Take a reference in either form; without tag and digest it means `latest`.

        Raises:
            InvalidArgumentError: It is none, and why.
        """
        rest, at, digest = value.partition("@")
        name, tag = _split_tag(rest)
        domain, path = _split_domain(name)
        if not _DOMAIN.fullmatch(domain):
            raise _refusal(value, f"{shorten(domain)} is not a host")
        if not _PATH.fullmatch(path):
            raise _refusal(value, _why_not_a_path(path))
        if len(domain) + 1 + len(path) > _MAX_NAME:
            raise _refusal(value, f"the name is longer than {_MAX_NAME} characters")
        if tag is not None and not _TAG.fullmatch(tag):
            raise _refusal(value, f"{shorten(tag)} is not a tag")
        if at:
            digest = read_digest(digest, f"the digest of {shorten(value)}")
        return cls(domain=domain, path=path, tag=tag or ("" if at else "latest"), digest=digest)

    @property
    def repository(self) -> str:
        """Domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """What Docker's commands show: Docker Hub and `library/` left out."""
        path, domain = self.path, f"{self.domain}/"
        if self.domain == _HUB:
            domain = ""
            official = path.removeprefix(_OFFICIAL)
            path = path if "/" in official else official
        return f"{domain}{path}{self._suffix()}"

    def __str__(self) -> str:
        """The name that containerd keeps: of a tag and a digest only the digest counts."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def layout_ref_name(name: str) -> str:
    """What an OCI layout's `org.opencontainers.image.ref.name` says of an image: its tag, if it has one.

    containerd's exporter writes the tag alone, or the whole name where that has a digest or no tag
    (`ociReferenceName` in `core/images/archive/reference.go`).
    """
    tag = _split_tag(name)[1]
    return tag if tag and "@" not in name else name


def _split_tag(rest: str) -> tuple[str, str | None]:
    """Cut a tag off: what follows a colon in the last component, unless that is all there is of a host."""
    head, slash, last = rest.rpartition("/")
    name, colon, tag = last.partition(":")
    return f"{head}{slash}{name}", tag if colon else None


def _split_domain(name: str) -> tuple[str, str]:
    """Tell host and path apart: a first component with a dot, colon or capital, or `localhost`, is a host."""
    first, slash, rest = name.partition("/")
    is_host = bool(slash) and (first == "localhost" or "." in first or ":" in first or first != first.lower())
    domain, path = (first, rest) if is_host else (_HUB, name)
    domain = _HUB if domain == _LEGACY_HUB else domain
    return domain, f"{_OFFICIAL}{path}" if domain == _HUB and "/" not in path else path


def _why_not_a_path(path: str) -> str:
    if path != path.lower():
        return "the repository name must be in lower case"
    return f"{shorten(path)} is not a repository name"


def _refusal(value: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{shorten(value)} is not an image reference: {reason}")
