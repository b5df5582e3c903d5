"""What caches answer, asked by ourselves where Nix does not tell: it takes 401 and 403 for "not there"."""

from __future__ import annotations

import base64
import http.client
import netrc
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nixsnap import netns
from nixsnap.nix.storepath import StorePath

_SECONDS: Final = 10.0
_NARINFO: Final = re.compile(r"(?P<cache>https?://.*)/(?:[0-9a-z]{32}\.narinfo|nix-cache-info|nar/[^/]*)")
_REFUSALS: Final = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}


def cache_of(url: str) -> str | None:
    """The HTTP cache that an address belongs to, by the layout of caches."""
    match = _NARINFO.fullmatch(url)
    return match["cache"] if match else None


def refusals(caches: Iterable[str], path: StorePath, *, netrc_file: Path | None) -> list[str]:
    """Ask caches for a path that Nix found nowhere, and say in words which of them refuse to answer us."""
    answers = netns.within(lambda: [_refusal(cache, path, netrc_file) for cache in caches])
    return [words for words in answers if words]


def _refusal(cache: str, path: StorePath, netrc_file: Path | None) -> str | None:
    url = f"{cache}/{path.digest}.narinfo"
    request = urllib.request.Request(url)  # noqa: S310 - http and https only
    for name, value in _credentials(url, netrc_file).items():
        request.add_unredirected_header(
            name, value
        )  # another host that the cache sends us to has no use for them
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code in _REFUSALS:
                return f"'{url}': HTTP error {exc.code}"
    except (OSError, http.client.HTTPException, ssl.SSLError, ValueError) as exc:
        return f"unable to download '{url}': {exc}"
    return None


def _credentials(url: str, netrc_file: Path | None) -> dict[str, str]:
    """What Nix would send: the password that its netrc file has for the host."""
    if netrc_file is None:
        return {}
    try:
        entry = netrc.netrc(str(netrc_file)).authenticators(urlsplit(url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return {}
    if entry is None:
        return {}
    login, _, password = entry
    return {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}
