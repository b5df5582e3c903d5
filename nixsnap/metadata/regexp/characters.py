"""Sets of characters, as tests: the classes of Go's regular expressions, and letter case."""

from __future__ import annotations

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Final, TypeAlias

CharacterTest: TypeAlias = Callable[[str], bool]

_DIGIT: Final = frozenset("0123456789")
_LOWER: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_UPPER: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_GRAPH: Final = frozenset(map(chr, range(0x21, 0x7F)))

WORD: Final = _DIGIT | _LOWER | _UPPER | {"_"}

PERL_CLASSES: Final = {"d": _DIGIT, "s": frozenset("\t\n\f\r "), "w": WORD}
r"""What follows the backslash in \d, \s and \w: ASCII, and no vertical tab among the spaces."""

POSIX_CLASSES: Final = {
    "alnum": _DIGIT | _LOWER | _UPPER,
    "alpha": _LOWER | _UPPER,
    "ascii": frozenset(map(chr, range(0x80))),
    "blank": frozenset("\t "),
    "cntrl": frozenset(map(chr, (*range(0x20), 0x7F))),
    "digit": _DIGIT,
    "graph": _GRAPH,
    "lower": _LOWER,
    "print": _GRAPH | {" "},
    "punct": _GRAPH - _DIGIT - _LOWER - _UPPER,
    "space": frozenset("\t\n\v\f\r "),
    "upper": _UPPER,
    "word": WORD,
    "xdigit": frozenset("0123456789ABCDEFabcdef"),
}
"""What stands between the colons in [[:alpha:]]."""

_SUBCATEGORIES: Final = {
    "C": "cfos",
    "L": "lmotu",
    "M": "cen",
    "N": "dlo",
    "P": "cdefios",
    "S": "ckmo",
    "Z": "lps",
}

# Without C as a whole: whether it takes in unassigned characters depends on Go's release.
CATEGORIES: Final = frozenset(
    major + minor for major, minors in _SUBCATEGORIES.items() for minor in ("", *minors)
) - {"C"}
r"""The Unicode classes of \p{…} that are known here: general categories. Python knows no scripts (Greek, Han)."""

# The last character that has another letter case (Adlam small sha, U+1E943).
_LAST_CASED: Final = 0x1E943


def one_of(characters: Collection[str]) -> CharacterTest:
    """Passes these characters."""
    return characters.__contains__


def between(first: str, last: str) -> CharacterTest:
    """Passes the characters from `first` to `last`."""
    return lambda character: first <= character <= last


def in_category(category: str) -> CharacterTest:
    """Passes the characters of a general category, one of `CATEGORIES`."""
    return lambda character: unicodedata.category(character).startswith(category)


def anything(_: str) -> bool:
    """Passes every character."""
    return True


def not_newline(character: str) -> bool:
    """Passes every character but a newline."""
    return character != "\n"


def negated(test: CharacterTest) -> CharacterTest:
    """Passes what `test` does not."""
    return lambda character: not test(character)


def any_of(tests: Collection[CharacterTest]) -> CharacterTest:
    """Passes what one of the tests passes."""
    return lambda character: any(test(character) for test in tests)


def folded(test: CharacterTest) -> CharacterTest:
    """Passes what `test` passes in any letter case."""
    cases = _letter_cases()
    return lambda character: any(map(test, cases.get(character, character)))


@functools.cache
def _letter_cases() -> dict[str, str]:
    """Characters that differ only in letter case, by each of them: Unicode's simple case folding, as in Go.

    The table takes some 50 ms to make, so it waits for the first `(?i)`.
    """
    orbits: defaultdict[str, str] = defaultdict(str)
    for character in map(chr, range(_LAST_CASED + 1)):
        orbits[_fold(character)] += character
    return {character: orbit for orbit in orbits.values() if len(orbit) > 1 for character in orbit}


def _fold(character: str) -> str:
    """Simple case folding: full folding where that is one character, else the small letter, else itself."""
    for candidate in (character.casefold(), character.lower()):
        if len(candidate) == 1:
            return candidate
    return character
