"""JSON documents that others wrote: bounded, parsed strictly, and read field by field.

Every reader takes the value and where it stands (`index.json.manifests[3].size`), so that an error names
the document and the field. A field that is `null` counts as absent, as it does in Go, which wrote most of
these documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.nix.storepath import shorten

# Registries take manifests of 4 MiB (distribution's limit, and containerd's). Twice that leaves room for an
# image that is only ever loaded, and keeps small what a hostile archive can make us hold in memory.
MAX_DOCUMENT: Final = 8 << 20

_T = TypeVar("_T")
_INT64: Final = 2**63
_SHOWN: Final = 100
# The escape of half a character; two make one, and one alone is no Unicode text.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(raw: bytes, what: str) -> Any:
    """Parse one JSON text.

    Args:
        raw: UTF-8, at most `MAX_DOCUMENT` bytes.
        what: What it is, for the message.

    Raises:
        InvalidArgumentError: Too long, not UTF-8, not JSON, nested beyond reason, or an object repeats a
            key.
    """
    check_length(len(raw), what)
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_object, parse_constant=_refuse_constant
        )
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise InvalidArgumentError(f"{what} is not valid JSON: {reason}") from exc
    return value


def parse_file(path: str, what: str) -> Any:
    """Parse a file of the user's.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: As for `parse`.
    """
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(MAX_DOCUMENT + 1), what)
    except FileNotFoundError as exc:
        raise NotFoundError(f"{what} does not exist") from exc


def check_length(length: int, what: str) -> None:
    """Refuse a document of more than `MAX_DOCUMENT` bytes, before it is read.

    Raises:
        InvalidArgumentError: It is one.
    """
    if length > MAX_DOCUMENT:
        raise InvalidArgumentError(
            f"{what} has {length} bytes; of a document at most {MAX_DOCUMENT} are read"
        )


def serialise(value: Any) -> bytes:
    """Write a JSON text: compact, in the order given, the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def field(
    document: dict[str, Any],
    key: str,
    where: str,
    read: Callable[[Any, str], _T],
    *,
    default: _T | None = None,
) -> _T:
    """Read one field with a reader such as `text`.

    Raises:
        InvalidArgumentError: It is of another type, or absent and there is no default.
    """
    value = document.get(key)
    if value is not None:
        return read(value, f"{where}.{key}")
    if default is None:
        raise InvalidArgumentError(f"{where} has no {key!r}")
    return default


def optional(document: dict[str, Any], key: str, where: str, read: Callable[[Any, str], _T]) -> _T | None:
    """Read one field that may be absent."""
    value = document.get(key)
    return None if value is None else read(value, f"{where}.{key}")


def text(value: Any, where: str) -> str:
    """Take a string."""
    return value if isinstance(value, str) else _wrong_type(value, where, "a string")


def integer(value: Any, where: str) -> int:
    """Take a whole number that fits into 64 bits with a sign."""
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong_type(value, where, "a whole number")
    if not -_INT64 <= value < _INT64:
        raise InvalidArgumentError(f"{where} does not fit into 64 bits")
    return value


def boolean(value: Any, where: str) -> bool:
    """Take `true` or `false`."""
    return value if isinstance(value, bool) else _wrong_type(value, where, "true or false")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Take an object."""
    return value if isinstance(value, dict) else _wrong_type(value, where, "an object")


def sequence(value: Any, where: str) -> list[Any]:
    """Take an array."""
    return value if isinstance(value, list) else _wrong_type(value, where, "an array")


def sequence_of(read: Callable[[Any, str], _T]) -> Callable[[Any, str], tuple[_T, ...]]:
    """Make the reader of an array whose every element `read` takes."""

    def read_all(value: Any, where: str) -> tuple[_T, ...]:
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(sequence(value, where)))

    return read_all


def mapping_of(read: Callable[[Any, str], _T]) -> Callable[[Any, str], dict[str, _T]]:
    """Make the reader of an object whose every value `read` takes."""

    def read_all(value: Any, where: str) -> dict[str, _T]:
        return {key: read(item, f"{where}[{key!r}]") for key, item in mapping(value, where).items()}

    return read_all


texts: Final = sequence_of(text)
text_map: Final = mapping_of(text)


def _unique_object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; two readers may differ on which of two equal keys counts, so there may not be two."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shorten(key)} stands twice in one object")
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _wrong_type(value: Any, where: str, wanted: str) -> NoReturn:
    try:
        shown = json.dumps(value)  # which escapes all but ASCII
    except RecursionError:  # parsing had just enough of the stack
        shown = "nested deeply"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    raise InvalidArgumentError(f"{where} is {shown}, not {wanted}")
