r"""The grammar of containerd's filters: selectors joined by commas, all of which must hold.

    selectors := selector ("," selector)*
    selector  := fieldpath [operator value]
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="
    value     := quoted | visible characters but ","; not beginning with a quote, ",", ".", "=", "!" or "~"
    quoted    := "…" with Go's escapes; after "~=" also /…/ and |…|, where \/ and \| stand for the quote

White space may stand before a field, an operator and a value, and nowhere else.
"""

from __future__ import annotations

import enum
import string
import sys
import unicodedata
from typing import Final, NoReturn

import attrs

from nixsnap.errors import InvalidArgumentError

_QUOTES: Final = '"/|'
_NOT_IN_VALUE_START: Final = frozenset(",.=!~")
_FIELD: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
# Unicode's White_Space, which str.isspace exceeds by U+001C to U+001F.
_SPACE: Final = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(code) for code in range(0x2000, 0x200B)
}
# Go's unicode.IsGraphic without spaces: letters, marks, numbers, punctuation, symbols.
_GRAPHIC: Final = frozenset("LMNPS")

_SIMPLE_ESCAPES: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}
_HEX_DIGITS: Final = {"x": 2, "u": 4, "U": 8}
_OCTAL_DIGITS: Final = "01234567"
_MAX_BYTE: Final = 0xFF
_SURROGATES: Final = range(0xD800, 0xE000)


class Operator(enum.Enum):
    """How a selector looks at its field."""

    PRESENT = "is present"
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@attrs.frozen(kw_only=True)
class Selector:
    """One condition on one field."""

    fieldpath: tuple[str, ...]
    """The field's name, then the parts of a label's name."""

    operator: Operator
    """How to compare."""

    value: str = ""
    """What to compare with. Bytes that are no UTF-8, from escapes, are lone surrogates: equal to nothing stored."""


def parse_selectors(text: str) -> tuple[Selector, ...]:
    """Parse one filter; an empty one has no selectors, and so matches everything.

    Raises:
        InvalidArgumentError: It is malformed; the message tells the character (from 1) and what was expected.
    """
    return _Parser(text).parse() if text else ()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> tuple[Selector, ...]:
        for forbidden in ("\0", "\ufffd"):  # Go's scanner takes a replacement character for broken UTF-8
            if forbidden in self._text:
                self._fail(f"{forbidden!r} is not allowed", self._text.index(forbidden))
        selectors = [self._selector()]
        while self._peek() == ",":
            self._at += 1
            selectors.append(self._selector())
        if self._peek():
            self._fail('expected "," or the end')
        return tuple(selectors)

    def _selector(self) -> Selector:
        fieldpath = [self._field()]
        while self._peek() == ".":
            self._at += 1
            fieldpath.append(self._field())
        if self._peek() in {"", ","}:
            return Selector(fieldpath=tuple(fieldpath), operator=Operator.PRESENT)
        operator = self._operator()
        value = self._value(quotes=_QUOTES if operator is Operator.MATCHES else '"')
        return Selector(fieldpath=tuple(fieldpath), operator=operator, value=value)

    def _field(self) -> str:
        self._skip_spaces()
        if self._peek() == '"':
            return self._quoted()
        start = self._at
        while self._peek() in _FIELD:
            self._at += 1
        if self._at == start:
            self._fail('expected a field name or "…"')
        return self._text[start : self._at]

    def _operator(self) -> Operator:
        self._skip_spaces()
        start = self._at
        while self._peek() and self._peek() in "=!~":
            self._at += 1
        try:
            return Operator(self._text[start : self._at])
        except ValueError:
            self._fail("expected an operator: ==, != or ~=", start)

    def _value(self, *, quotes: str) -> str:
        self._skip_spaces()
        first = self._peek()
        if first and first in quotes:
            return self._quoted()
        if not first or first in _QUOTES or first in _NOT_IN_VALUE_START:
            self._fail("expected a value or a quoted value")
        start = self._at
        self._at += 1
        while _is_value_character(self._peek()):
            self._at += 1
        return self._text[start : self._at]

    def _quoted(self) -> str:
        start, quote = self._at, self._peek()
        self._at += 1
        content = bytearray()
        while (character := self._peek()) != quote:
            if character in {"", "\n"}:
                self._fail(f"expected a closing {quote}, opened here", start)
            self._at += 1
            content += (
                self._escape(quote) if character == "\\" else character.encode("utf-8", "surrogatepass")
            )
        self._at += 1
        return content.decode("utf-8", "surrogateescape")

    def _escape(self, quote: str) -> bytes:
        """What an escape sequence stands for, the backslash being read."""
        start = self._at - 1
        letter = self._peek()
        self._at += 1
        if letter == quote:
            return quote.encode()
        if letter in _SIMPLE_ESCAPES:
            return bytes([_SIMPLE_ESCAPES[letter]])
        if letter in _HEX_DIGITS:
            code = self._digits(_HEX_DIGITS[letter], 16, start)
            return bytes([code]) if letter == "x" else self._encoded(code, start)
        if letter and letter in _OCTAL_DIGITS:
            self._at -= 1
            code = self._digits(3, 8, start)
            if code <= _MAX_BYTE:
                return bytes([code])
        return self._fail("this escape is not one of Go's", start)

    def _digits(self, count: int, base: int, start: int) -> int:
        digits = self._text[self._at : self._at + count]
        self._at += count
        allowed = _OCTAL_DIGITS if base == len(_OCTAL_DIGITS) else string.hexdigits
        if len(digits) < count or not set(digits) <= set(allowed):
            self._fail(f"expected {count} digits of base {base} in this escape", start)
        return int(digits, base)

    def _encoded(self, code: int, start: int) -> bytes:
        if code > sys.maxunicode:
            self._fail("this escape is beyond Unicode", start)
        if code in _SURROGATES:  # half a pair, for which Go writes a replacement character
            return "\ufffd".encode()
        return chr(code).encode()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_spaces(self) -> None:
        while self._peek() in _SPACE:
            self._at += 1

    def _fail(self, message: str, at: int | None = None) -> NoReturn:
        position = self._at if at is None else at
        raise InvalidArgumentError(f"filter {self._text!r}, character {position + 1}: {message}")


def _is_value_character(character: str) -> bool:
    return (
        character not in {"", ","}
        and character not in _SPACE
        and unicodedata.category(character)[0] in _GRAPHIC
    )
