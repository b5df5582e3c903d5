"""Content digests: `algorithm:hex`, checked before one becomes a file name or a comparison."""

from __future__ import annotations

import hashlib
import re
from typing import Any, BinaryIO, Final

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.storepath import shorten

CHUNK: Final = 1 << 20

# The algorithms that OCI registers and go-digest, hence containerd, knows.
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}", re.ASCII)


def read_digest(value: Any, where: str) -> str:
    """Take a well-formed digest; a reader for `document.field`."""
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise InvalidArgumentError(f"{where} is {shorten(str(value))}, not a digest")
    return value


def of_bytes(raw: bytes, *, algorithm: str = "sha256") -> str:
    """The digest of `raw`."""
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def of_stream(stream: BinaryIO, *, algorithm: str = "sha256") -> str:
    """The digest of what is left in `stream`, read in pieces of a mebibyte."""
    hasher = hashlib.new(algorithm)
    while chunk := stream.read(CHUNK):
        hasher.update(chunk)
    return f"{algorithm}:{hasher.hexdigest()}"


def hasher_of(digest: str) -> hashlib._Hash:
    """A fresh hash object of a digest's algorithm."""
    return hashlib.new(algorithm_of(digest))


def algorithm_of(digest: str) -> str:
    """The part before the colon."""
    return digest.partition(":")[0]


def blob_path(digest: str) -> str:
    """Where an OCI layout keeps the blob."""
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def digest_of_path(path: str) -> str | None:
    """The digest of the blob that an OCI layout keeps there; None where it keeps no blob."""
    prefix, _, digest = path.partition("/")
    digest = digest.replace("/", ":", 1)
    return digest if prefix == "blobs" and _DIGEST.fullmatch(digest) else None
