"""Stub layers: stand-ins for entries of a store, all made in one call."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from nixsnap.mounts._calls import check, encode, ffi, lib, new_failure
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.filetrees import open_directory
from nixsnap.mounts.values import OwnedFd, StubCounts


def fill_stub(
    directory: Path,
    *,
    store: Path,
    names: Sequence[str],
    redirect_xattr: str | None,
    redirect_prefix: str = "/",
    keep_ids: bool = True,
) -> StubCounts:
    """Fill a directory with stand-ins for entries of a store.

    A directory is stood in for by an empty directory, with an overlay redirect to it if one is wanted; a symlink by
    the same symlink, which is never followed; a regular file by a hard link, else a reflink, else a copy. Mode and
    modification time are those of the entry.

    Args:
        directory: Where to put them.
        store: The directory that holds the entries.
        names: The entries, plain file names.
        redirect_xattr: The extended attribute for redirects ("trusted.overlay.redirect"), or None.
        redirect_prefix: What comes before the name in it: the path of the store, from the root of its own layer.
        keep_ids: Whether owner, group and set-id bits are those of the entry too. Where the store's owner is nobody, as
            in a user namespace, they are better our own, and without such bits.

    Raises:
        StepError: EEXIST, or ENOENT in the store; EINVAL: not a plain name, or a device, pipe or socket. Those made
            before it stay, for the caller to remove.
    """
    encoded = b"".join(encode(name) + b"\0" for name in names)
    counts = ffi.new("struct nsnap_stub_counts *")
    failure = new_failure()
    with open_directory(directory) as to, open_directory(store) as source:
        result = lib.nsnap_stub_fill(
            to.fileno(),
            source.fileno(),
            encoded,
            len(encoded),
            keep_ids,
            ffi.NULL if redirect_xattr is None else encode(redirect_xattr),
            encode(redirect_prefix),
            counts,
            failure,
        )
    check(result, failure, str(directory), row=names)
    return _stub_counts(counts)


def fill_stub_trees(
    directory: Path,
    *,
    store: Path,
    names: Sequence[str],
    xattr_prefix: str,
    donors: Sequence[Path] = (),
    keep_ids: bool = True,
) -> StubCounts:
    """Fill a directory with stand-ins for entries of a store and all below them, for an overlay with a data-only layer.

    Directories and symlinks are made as they are. A regular file is stood in for by an empty one of its length, mode
    and modification time, whose attributes lead to it: a hard link to what one of `donors` has for it, else a new one.

    Args:
        directory: Where to put them.
        store: The directory that holds the entries, which is the data-only layer.
        names: The entries, plain file names.
        xattr_prefix: What overlayfs keeps its marks under, "user.overlay." or "trusted.overlay.".
        donors: Directories filled in this way before; what is wrong in them, or missing, is made anew.
        keep_ids: As `fill_stub`.

    Raises:
        StepError: As `fill_stub`; the detail says where below the entry it was.
    """
    encoded = b"".join(encode(name) + b"\0" for name in names)
    metacopy, redirect = (encode(xattr_prefix + name) for name in ("metacopy", "redirect"))
    counts = ffi.new("struct nsnap_stub_counts *")
    failure = new_failure()
    with ExitStack() as stack:
        donor_fds = [fd.fileno() for fd in _open_present(donors, stack)]
        keep = [ffi.new("char[]", text) for text in (encoded, metacopy, redirect)]
        fds = ffi.new("int[]", donor_fds)
        trees = ffi.new(
            "struct nsnap_stub_trees *",
            {
                "dir_fd": stack.enter_context(open_directory(directory)).fileno(),
                "store_fd": stack.enter_context(open_directory(store)).fileno(),
                "names": keep[0],
                "names_size": len(encoded),
                "metacopy_xattr": keep[1],
                "redirect_xattr": keep[2],
                "donor_fds": fds,
                "donor_count": len(donor_fds),
                "keep_ids": keep_ids,
            },
        )
        result = lib.nsnap_stub_fill_trees(trees, counts, failure)
    check(result, failure, str(directory), row=names)
    return _stub_counts(counts)


def _open_present(directories: Sequence[Path], stack: ExitStack) -> list[OwnedFd]:
    """Open those that are there; they may be removed at any time."""
    opened = []
    for directory in directories:
        try:
            opened.append(stack.enter_context(open_directory(directory)))
        except StepError as error:
            if error.errno != errno.ENOENT:
                raise
    return opened


def _stub_counts(counts: Any) -> StubCounts:
    return StubCounts(**{field.name: getattr(counts, field.name) for field in attrs.fields(StubCounts)})
