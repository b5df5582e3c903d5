"""Why a fetch failed: Nix's own words, sorted by what to do about it, with the path and the cache they speak of.

The words are those of Nix 2.4 to 2.30 (`src/libstore/build/substitution-goal.cc`, `filetransfer.cc`, `local-store.cc`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import attrs

from nixsnap.errors import (
    FailedPreconditionError,
    NixsnapError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from nixsnap.nix.storepath import StorePath

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN_PATHS: Final = 3


@attrs.frozen
class Meaning:
    """What some words mean: the class of the error, and the way out."""

    words: re.Pattern[str]
    kind: Callable[..., NixsnapError]
    hint: str


def _meaning(words: str, kind: Callable[..., NixsnapError], hint: str) -> Meaning:
    return Meaning(re.compile(words, re.IGNORECASE), kind, hint)


_NO_ACCESS_HINT: Final = (
    "put the cache's password into the file that [nix] netrc_file names; "
    "some caches answer 403 to what they do not have"
)
_NOWHERE_HINT: Final = "copy it, with what it refers to, to a cache of this node: nix copy --to CACHE PATH"
_BUILD_HINT: Final = "the store has a derivation that makes it; [nix] allow_build = true would have it built"
_NO_CACHE_HINT: Final = "is the cache up, and can this node reach it?"


class LostRaceError(UnavailableError):
    """Processes of Nix got into each other's way; another one is not likely to."""


# The first that is found decides; so what a full disk leads to comes after it.
_MEANINGS: Final[Sequence[Meaning]] = (
    _meaning(
        r"No space left on device|Disk quota exceeded|database or disk is full",
        ResourceExhaustedError,
        "make room on the disk of the Nix store, as with nix-collect-garbage",
    ),
    # Each process that meets a cache for the first time, or the first time in a week, replaces its row in a database of
    # Nix's, and so takes away what other processes' rows refer to (libstore/nar-info-disk-cache.cc; seen with Nix 2.8).
    _meaning(
        r"constraint failed.*binary-cache-v\d+\.sqlite",
        LostRaceError,
        "several programs of Nix asked a cache for the first time at once; try again",
    ),
    _meaning(
        r"not signed by any of the keys|lacks a (valid )?signature",
        PermissionDeniedError,
        "if the cache is to be trusted, put its public key into [nix] trusted_public_keys",
    ),
    _meaning(r"HTTP error '?(401|403|407)", PermissionDeniedError, _NO_ACCESS_HINT),
    _meaning(
        r"\.drv'? failed|builder for .* failed|Cannot build '|no matching build|(un)?able to start any build",
        UnavailableError,
        "nix log, with the name of the derivation, shows all that the builder printed",
    ),
    # A cache that could not be asked may well have the path, whatever is said of other caches.
    _meaning(
        r"unable to download|cannot (open|connect to) .*store|Couldn't connect",
        UnavailableError,
        _NO_CACHE_HINT,
    ),
    _meaning(
        r"does not exist in binary cache",
        NotFoundError,
        "the cache names a path whose content it does not have; copy it there again with nix copy",
    ),
    _meaning(
        r"hash mismatch|Failed to open archive|Corrupted input data|unexpected end-of-file|bad archive|NAR contains",
        UnavailableError,
        "what the cache served is damaged or was cut short; copy it there again with nix copy",
    ),
    _meaning(
        r"Permission denied|(opening|creating|cannot open) .*Read-only file system",
        FailedPreconditionError,
        "may nixsnap's user write to the Nix store?",
    ),
)

# What Nix says, in some of its releases, of what no cache has and what it was not asked to build.
_NOWHERE: Final = re.compile(r"don't know how to build|no substituter that can build", re.IGNORECASE)


def plain(text: str) -> str:
    """Nix's words without colours."""
    return _COLOUR.sub("", text)


def name_all(paths: Collection[StorePath]) -> str:
    """Some paths in an error: the first, and how many more."""
    first = next(iter(paths))
    return f"{first} and {len(paths) - 1} more" if len(paths) > 1 else str(first)


@attrs.frozen(kw_only=True)
class Failure:
    """A fetch that failed, as Nix told of it.

    Attributes:
        paths: What was wanted.
        words: Nix's last words, without colours.
        unknown: Paths of which Nix found out that no cache has them.
        derivations: `DERIVATION!OUTPUT` of those unknown paths that the store knows how to make.
        caches: The caches that were asked.
    """

    paths: Collection[StorePath]
    words: str
    unknown: Sequence[StorePath] = ()
    derivations: Mapping[StorePath, str] = attrs.field(factory=dict)
    caches: Sequence[str] = ()

    def meaning(self) -> Meaning | None:
        """What Nix's words mean; None if they do not tell."""
        return next((meaning for meaning in _MEANINGS if meaning.words.search(self.words)), None)

    @property
    def can_be_built(self) -> bool:
        """Whether there are derivations for all that no cache has."""
        return bool(self.unknown) and all(path in self.derivations for path in self.unknown)

    def after(self, refusals: Collection[str]) -> Failure:
        """The same failure, with what caches said when we asked them ourselves."""
        return attrs.evolve(self, words="\n".join([*refusals, self.words]))

    def error(self) -> NixsnapError:
        """The error to raise."""
        message = (
            f"cannot realise {name_all(self.paths)}: {self._missing()}{self.words or 'Nix did not say why'}"
        )
        meaning = self.meaning()
        if meaning is not None:
            return meaning.kind(message, hint=meaning.hint or None)
        if self.can_be_built:
            return NotFoundError(message, hint=f"{_NOWHERE_HINT}; or {_BUILD_HINT}")
        if self.unknown or _NOWHERE.search(self.words):
            return NotFoundError(message, hint=_NOWHERE_HINT)
        return UnavailableError(message)

    def _missing(self) -> str:
        if not self.unknown:
            return ""
        more = len(self.unknown) - _SHOWN_PATHS
        named = ", ".join(map(str, self.unknown[:_SHOWN_PATHS])) + (f" and {more} more" if more > 0 else "")
        asked = f" (asked: {', '.join(self.caches)})" if self.caches else ""
        return f"no cache has {named}{asked}: "
