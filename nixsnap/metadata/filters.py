"""containerd's filter language: which snapshots a List names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.metadata.filter_parser import Operator, Selector, parse_selectors
from nixsnap.metadata.records import Info, Kind
from nixsnap.metadata.regexp import RegexpLimitError, RegexpSyntaxError, compile_regexp

_log: Final = logging.getLogger(__name__)

Predicate: TypeAlias = Callable[[Info], bool]

_KIND_NAMES: Final = {Kind.VIEW: "view", Kind.ACTIVE: "active", Kind.COMMITTED: "committed"}


@attrs.frozen
class Filter:
    """Alternatives, each of them conditions that must all hold; without an alternative everything passes."""

    alternatives: tuple[tuple[Predicate, ...], ...] = ()

    def matches(self, info: Info) -> bool:
        """Whether a snapshot passes."""
        if not self.alternatives:
            return True
        return any(all(holds(info) for holds in conditions) for conditions in self.alternatives)


def parse_filters(texts: Iterable[str]) -> Filter:
    """Parse the filters of a List request: a snapshot passes if one of them holds, or if there are none.

    As in containerd a regular expression that does not compile is no error: it matches nothing.

    Raises:
        InvalidArgumentError: A filter is malformed, or its regular expression too much for `compile_regexp`.
    """
    return Filter(tuple(tuple(map(_predicate, parse_selectors(text))) for text in texts))


def _predicate(selector: Selector) -> Predicate:
    """The condition of one selector. A field that is absent has the empty value for != and ~=."""
    field, value = selector.fieldpath, selector.value
    match selector.operator:
        case Operator.PRESENT:
            return lambda info: _field(info, field) is not None
        case Operator.EQUAL:
            return lambda info: _field(info, field) == value
        case Operator.NOT_EQUAL:
            return lambda info: (_field(info, field) or "") != value
        case Operator.MATCHES:
            search = _search(value)
            return lambda info: search(_field(info, field) or "")


def _search(pattern: str) -> Callable[[str], bool]:
    try:
        return compile_regexp(pattern).search
    except RegexpSyntaxError as exc:
        _log.warning("a filter matches nothing: %s", exc)
        return lambda _: False
    except RegexpLimitError as exc:
        raise InvalidArgumentError(f"filter: {exc}") from exc


def _field(info: Info, fieldpath: tuple[str, ...]) -> str | None:
    """The value of a field; None if the snapshot does not have it.

    As in containerd, `parent` is present, though empty, at the bottom of a chain, and what follows `name`, `kind`
    or `parent` in a path is passed over.
    """
    match fieldpath[0]:
        case "name":
            return info.name
        case "parent":
            return info.parent
        case "kind":
            return _KIND_NAMES.get(info.kind)
        case "labels":
            return info.labels.get(".".join(fieldpath[1:]))
    return None
