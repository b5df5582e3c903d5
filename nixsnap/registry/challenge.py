"""What a registry wants to be shown: the `WWW-Authenticate` header of a 401 (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.request import parse_http_list

import attrs

_SCHEME: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]+(.*))?", re.DOTALL)


@attrs.frozen(kw_only=True)
class Challenge:
    """One way to show it.

    Args:
        scheme: `bearer`, `basic` or another, in lower case.
        parameters: By name in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read the challenges of one or several headers; what is malformed is passed over."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        for item in parse_http_list(header):
            name, equals, value = (part.strip() for part in item.partition("="))
            if not equals or " " in name or "\t" in name:
                # A new challenge: its scheme, with the first of its parameters behind it if it has any.
                matched = _SCHEME.fullmatch(item.strip())
                if matched is None:
                    continue
                found.append((matched[1].lower(), {}))
                name, equals, value = (part.strip() for part in (matched[2] or "").partition("="))
            if equals and found:
                found[-1][1][name.lower()] = _unquote(value)
    return [Challenge(scheme=scheme, parameters=parameters) for scheme, parameters in found]


def _unquote(value: str) -> str:
    """Take the quotes off; parse_http_list has dealt with what they kept together."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
