"""The derivation that makes a store path which is absent, found in the store directory.

`nix-store` tells of the derivation of a path only while that path is there (`--valid-derivers`, which does more, came
with 2.18). But Nix names an output after its derivation, `NAME` for the output `out` and `NAME-OUTPUT` for others
(`src/libstore/derivations.cc`, outputPathName), so few derivations have to be looked into.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from nixsnap.nix.storepath import StorePath, is_store_name

_SUFFIX: Final = ".drv"
_NAME_OFFSET: Final = 33  # after the digest and its hyphen
# A derivation begins with its outputs, of which few have more than one or two; each has 500 bytes at most.
_HEAD_BYTES: Final = 64 << 10
_OUTPUT: Final = re.compile(r'\("([^"]*)","([^"]*)","[^"]*","[^"]*"\)')


def find_derivations(
    store: Path, paths: Collection[StorePath]
) -> Mapping[StorePath, list[tuple[StorePath, str]]]:
    """Derivations that make store paths, with the name of the output that each path is.

    Whether Nix has them on record, or somebody left files of such names, is for the caller to ask.

    Args:
        store: Where the store lies on this host.
        paths: Store paths, present or not.
    """
    found: dict[StorePath, list[tuple[StorePath, str]]] = {}
    by_text = {str(path): path for path in paths}
    output_names = {path.name[_NAME_OFFSET:] for path in paths}
    if not paths:
        return found
    store_dir = next(iter(paths)).store_dir
    for name in _candidates(store, output_names):
        derivation = StorePath(store_dir=store_dir, name=name)
        for output, text in _outputs(store / name):
            if (path := by_text.get(text)) is not None:
                found.setdefault(path, []).append((derivation, output))
    return found


def _candidates(store: Path, output_names: Collection[str]) -> Iterator[str]:
    """The names of derivations that may have such outputs."""
    stems = {name[:end] for name in output_names for end in _ends(name)}
    try:
        with os.scandir(store) as entries:
            for entry in entries:
                name = entry.name
                if (
                    name.endswith(_SUFFIX)
                    and name[_NAME_OFFSET : -len(_SUFFIX)] in stems
                    and is_store_name(name)
                ):
                    yield name
    except OSError:
        return  # there is no store yet, or we may not list it: nothing is known


def _ends(name: str) -> list[int]:
    """Where the name of a derivation may end in that of its output."""
    return [len(name), *(index for index, character in enumerate(name) if character == "-" and index)]


def _outputs(derivation: Path) -> list[tuple[str, str]]:
    """The outputs of a derivation, names and paths; none if it cannot be read as one."""
    try:
        fd = os.open(derivation, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return []
            head = os.read(fd, _HEAD_BYTES).decode("ascii", errors="replace")
        finally:
            os.close(fd)
    except OSError:
        return []
    return _OUTPUT.findall(head.partition("],")[0])
