"""The syntax of Go's regular expressions (the `regexp/syntax` package, Perl flags), read into an automaton's nodes."""

from __future__ import annotations

import re
import sys
from typing import Final, NoReturn

from nixsnap.metadata.regexp import characters
from nixsnap.metadata.regexp.automaton import (
    Assertion,
    Node,
    RegexpLimitError,
    assertion,
    character,
    choice,
    repetition,
    sequence,
)
from nixsnap.metadata.regexp.characters import CharacterTest

MAX_PATTERN_CHARACTERS: Final = 2_000
MAX_NESTING: Final = 100

# Go's bound for one counted repetition and for the product of nested ones.
_MAX_COPIES: Final = 1_000

_REPETITIONS: Final[dict[str, tuple[int, int | None]]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
# Leading zeros make braces literal, as does anything else that is not a repetition.
_COUNTED: Final = re.compile(r"\{(0|[1-9][0-9]*)(?:(,)(0|[1-9][0-9]*)?)?\}")
_GROUP_NAME: Final = re.compile(r"\?P?<([A-Za-z0-9_]+)>")
_GROUP_FLAGS: Final = re.compile(r"\?([imsU]*)(?:-([imsU]+))?([:)])")
_POSIX_CLASS: Final = re.compile(r"\[:(\^?)(.*?):\]", re.DOTALL)
_UNICODE_CLASS: Final = re.compile(r"([pP])(?:\{(\^?)([^}]*)\}|([^{]))", re.DOTALL)
_OCTAL: Final = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{1,2}")
_HEXADECIMAL: Final = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]+)\})")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_CONTROLS: Final = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
# Without and with the flag m.
_ANCHORS: Final = {
    "^": (Assertion.TEXT_BEGIN, Assertion.LINE_BEGIN),
    "$": (Assertion.TEXT_END, Assertion.LINE_END),
}
_ASSERTIONS: Final = {
    "A": Assertion.TEXT_BEGIN,
    "z": Assertion.TEXT_END,
    "b": Assertion.WORD_BOUNDARY,
    "B": Assertion.NO_WORD_BOUNDARY,
}


class RegexpSyntaxError(ValueError):
    """The pattern is no regular expression of Go's."""


def parse(pattern: str) -> Node:
    """Read a pattern.

    Raises:
        RegexpSyntaxError: It is malformed; the message says at which character (from 1).
        RegexpLimitError: It is too long, too deeply nested, or names a Unicode script.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise RegexpLimitError(f"the regular expression is longer than {MAX_PATTERN_CHARACTERS} characters")
    if _SURROGATE.search(pattern):
        raise RegexpSyntaxError("the regular expression is not UTF-8")
    return _Parser(pattern).parse()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._nesting = 0
        self._flags: frozenset[str] = frozenset()

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._pattern):
            self._fail("unexpected )")
        return node

    def _choice(self) -> Node:
        """Alternatives up to a closing parenthesis or the end."""
        branches = [self._sequence()]
        while self._skip("|"):
            branches.append(self._sequence())
        return choice(branches)

    def _sequence(self) -> Node:
        nodes: list[Node] = []
        repeated = False
        while (first := self._peek()) and first not in "|)":
            bounds = self._bounds()
            if bounds is None:
                nodes += self._atom()
                repeated = False
                continue
            if repeated:
                self._fail("a repetition of a repetition")
            if not nodes:
                self._fail("nothing to repeat")
            nodes[-1] = self._repetition(nodes[-1], *bounds)
            repeated = True
        return sequence(nodes)

    def _bounds(self) -> tuple[int, int | None] | None:
        """The repetition that stands here, read; None if there is none."""
        if self._peek() in _REPETITIONS:
            bounds = _REPETITIONS[self._next()]
        elif counted := _COUNTED.match(self._pattern, self._at):
            bounds = self._counted(*counted.groups())
            self._at = counted.end()
        else:
            return None
        self._skip("?")  # greed makes no difference to whether there is a match
        return bounds

    def _counted(self, least: str, comma: str | None, most: str | None) -> tuple[int, int | None]:
        lower = int(least)
        upper = int(most) if most else None if comma else lower
        if lower > _MAX_COPIES or (upper is not None and not lower <= upper <= _MAX_COPIES):
            self._fail("a repetition out of bounds")
        return lower, upper

    def _repetition(self, node: Node, least: int, most: int | None) -> Node:
        repeated = repetition(node, least, most)
        if repeated.copies > _MAX_COPIES:
            self._fail("nested repetitions out of bounds")
        return repeated

    def _atom(self) -> list[Node]:
        """What a repetition may follow: several nodes for a quoted text, none for flags."""
        first = self._next()
        if first in _ANCHORS:
            return [assertion(_ANCHORS[first]["m" in self._flags])]
        match first:
            case "(":
                return self._group()
            case "[":
                return [character(self._class())]
            case "\\":
                return self._escaped()
            case ".":
                return [character(characters.anything if "s" in self._flags else characters.not_newline)]
        return [self._literal(first)]

    def _group(self) -> list[Node]:
        flags = self._flags
        if name := _GROUP_NAME.match(self._pattern, self._at):
            self._at = name.end()
        elif self._peek() == "?":
            switches = _GROUP_FLAGS.match(self._pattern, self._at)
            if switches is None:
                self._fail("an unknown kind of group")
            self._at = switches.end()
            self._flags = (flags | set(switches[1])) - set(switches[2] or "")
            if switches[3] == ")":
                return []
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise RegexpLimitError(f"the regular expression nests groups deeper than {MAX_NESTING}")
        node = self._choice()
        self._nesting -= 1
        self._flags = flags  # those set within hold to the end of the group
        if not self._skip(")"):
            self._fail("missing )")
        return [node]

    def _escaped(self) -> list[Node]:
        """What an escape stands for outside of brackets, the backslash being read."""
        letter = self._peek()
        if letter in _ASSERTIONS:
            return [assertion(_ASSERTIONS[self._next()])]
        if letter == "Q":
            quoted, _, _ = self._pattern[self._at + 1 :].partition("\\E")
            self._at += 1 + len(quoted) + 2  # past the end if \E is missing, which is allowed
            return [self._literal(literal) for literal in quoted]
        return [character(self._shorthand() or self._cased(characters.one_of(self._escape())))]

    def _class(self) -> CharacterTest:
        """What stands in brackets, the first being read."""
        outside = self._skip("^")
        tests = [self._class_item()]  # a bracket that comes first is an ordinary character
        while not self._skip("]"):
            tests.append(self._class_item())
        return characters.negated(characters.any_of(tests)) if outside else characters.any_of(tests)

    def _class_item(self) -> CharacterTest:
        if posix := _POSIX_CLASS.match(self._pattern, self._at):
            if posix[2] not in characters.POSIX_CLASSES:
                self._fail("an unknown class")
            self._at = posix.end()
            return self._signed(characters.one_of(characters.POSIX_CLASSES[posix[2]]), outside=bool(posix[1]))
        if self._skip("\\"):
            if shorthand := self._shorthand():
                return shorthand
            self._at -= 1
        first = last = self._class_character()
        if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in {"", "]"}:
            self._at += 1
            last = self._class_character()
        if last < first:
            self._fail("a range that ends before it begins")
        return self._cased(characters.between(first, last))

    def _class_character(self) -> str:
        if not self._peek():
            self._fail("missing ]")
        found = self._next()
        return self._escape() if found == "\\" else found

    def _shorthand(self) -> CharacterTest | None:
        r"""The class that an escape (\d, \pL) stands for, the backslash being read; None if it stands for none."""
        letter = self._peek()
        if letter and letter in "pP":
            return self._unicode_class()
        if letter.lower() not in characters.PERL_CLASSES:
            return None
        self._at += 1
        return self._signed(
            characters.one_of(characters.PERL_CLASSES[letter.lower()]), outside=letter.isupper()
        )

    def _unicode_class(self) -> CharacterTest:
        found = _UNICODE_CLASS.match(self._pattern, self._at)
        if found is None:
            self._fail("an unfinished Unicode class")
        self._at = found.end()
        letter, caret, braced, single = found.groups()
        name = single or braced
        if not name.replace("_", "").isalpha():
            self._fail("no name of a Unicode class")
        if name != "Any" and name not in characters.CATEGORIES:
            raise RegexpLimitError(
                f"the Unicode class {name!r} is not known here, only general categories are"
            )
        test = characters.anything if name == "Any" else characters.in_category(name)
        return self._signed(test, outside=(letter == "P") != bool(caret))

    def _escape(self) -> str:
        """The character that an escape stands for, the backslash being read."""
        if octal := _OCTAL.match(self._pattern, self._at):
            self._at = octal.end()
            return chr(int(octal[0], 8))
        if hexadecimal := _HEXADECIMAL.match(self._pattern, self._at):
            code = int(hexadecimal[1] or hexadecimal[2], 16)
            if code > sys.maxunicode:
                self._fail("an escape beyond Unicode")
            self._at = hexadecimal.end()
            return chr(code)
        found = self._peek()
        if found in _CONTROLS:
            self._at += 1
            return _CONTROLS[found]
        if not found or not found.isascii() or found.isalnum():
            self._fail("an unknown escape")
        return self._next()

    def _literal(self, literal: str) -> Node:
        return character(self._cased(characters.one_of(literal)))

    def _signed(self, test: CharacterTest, *, outside: bool) -> CharacterTest:
        return characters.negated(self._cased(test)) if outside else self._cased(test)

    def _cased(self, test: CharacterTest) -> CharacterTest:
        return characters.folded(test) if "i" in self._flags else test

    def _peek(self) -> str:
        """The character that stands here; empty at the end."""
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1]

    def _skip(self, expected: str) -> bool:
        """Read a character if it stands here."""
        found = self._peek() == expected
        self._at += found
        return found

    def _fail(self, message: str) -> NoReturn:
        raise RegexpSyntaxError(f"regular expression {self._pattern!r}, character {self._at + 1}: {message}")
