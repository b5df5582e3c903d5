"""Reading closureInfos: what nixpkgs' `closureInfo` builds, whose file `store-paths` lists a closure."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.storepath import StorePath, parse_closure, refuse_derivations

# A closureInfo of 100,000 paths of the longest names has 26 MB; whatever is larger is no list of store paths.
_STORE_PATHS_LIMIT_BYTES: Final = 32 << 20


def read_closure_info(store: Path, closure_info: StorePath) -> list[StorePath]:
    """The store paths that a closureInfo lists, in its order.

    Args:
        store: Where the store lies on this host.
        closure_info: A store path that is present.

    Raises:
        InvalidArgumentError: It is no closureInfo: it has no plain file `store-paths`, or that lists anything other
            than store paths, or nothing.
    """
    # What a store path holds is whatever its builder liked: no symlink is followed, no fifo waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        directory_fd = os.open(store / closure_info.name, flags | os.O_DIRECTORY)
        try:
            file_fd = os.open("store-paths", flags, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
        try:
            if not stat.S_ISREG(os.fstat(file_fd).st_mode):
                raise InvalidArgumentError(
                    f"{closure_info} is no closureInfo: its store-paths is not a plain file"
                )
            with open(file_fd, encoding="ascii", closefd=False) as stream:
                text = stream.read(_STORE_PATHS_LIMIT_BYTES + 1)
        finally:
            os.close(file_fd)
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidArgumentError(
            f"{closure_info} is no closureInfo: cannot read its file store-paths: {exc}"
        ) from exc
    if len(text) > _STORE_PATHS_LIMIT_BYTES:
        raise InvalidArgumentError(
            f"{closure_info}: its store-paths is larger than {_STORE_PATHS_LIMIT_BYTES} bytes"
        )
    paths = parse_closure(text, store_dir=closure_info.store_dir)
    if not paths:
        raise InvalidArgumentError(f"{closure_info}: its store-paths lists nothing")
    refuse_derivations(paths)
    return paths
