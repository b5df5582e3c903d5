"""What every call of the C core shares. The only module that imports the compiled one.

`kernel`, `overlayfs`, `filetrees` and `stubfill` make the calls. A function of theirs takes and returns ints, paths
and the values of `values`; it makes one call and checks it. What fails raises `StepError`; a path or option that no
kernel call could carry raises `InvalidArgumentError`. All of them may be called from any thread, and release the GIL
while they wait for the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from nixsnap.errors import InvalidArgumentError
from nixsnap.mounts._core import ffi as _ffi
from nixsnap.mounts._core import lib as _lib
from nixsnap.mounts._library import ForeignInterface, Library
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import OwnedFd

ffi = cast("ForeignInterface", _ffi)
lib = cast("Library", _lib)

_AT_FDCWD = -100  # linux/fcntl.h; the os module does not have it


def check(result: int, failure: Any, filename: str | None = None, *, row: Sequence[str] = ()) -> int:
    """Return the result of a C function, or raise what its failure says.

    Args:
        result: What the function returned.
        failure: The struct nsnap_failure that it was given.
        filename: The path that the call was about.
        row: The paths or names that failure->index counts; one of them is then the file name.

    Raises:
        StepError: The result is a negative errno.
    """
    if result >= 0:
        return result
    detail = ffi.string(failure.message).decode("utf-8", "replace")
    if 0 <= failure.index < len(row):
        filename = row[failure.index]
    elif subject := os.fsdecode(ffi.string(failure.subject)):
        detail = f"{subject!r}: {detail}" if detail else repr(subject)
    raise StepError(-result, ffi.string(failure.step).decode(), filename, detail)


def encode(text: str | Path) -> bytes:
    """Return a path or option as C takes it. cffi would cut it at the first NUL without a word."""
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise InvalidArgumentError(f"a NUL byte in {str(text)!r}")
    return encoded


def new_failure() -> Any:
    """Return an empty struct nsnap_failure, to call with and to `check`."""
    return ffi.new("struct nsnap_failure *")


def place(where: Path | OwnedFd) -> tuple[int, bytes, str]:
    """Return a place as a directory's descriptor and a path from there, and what to call it."""
    if isinstance(where, OwnedFd):
        return where.fileno(), b"", f"/proc/self/fd/{where.fileno()}"
    return _AT_FDCWD, encode(where), str(where)


def strings(texts: Sequence[bytes]) -> tuple[Any, list[Any]]:
    """Return texts as a C array, and what must stay alive as long as that."""
    items = [ffi.new("char[]", text) for text in texts]
    return ffi.new("char *[]", items), items
