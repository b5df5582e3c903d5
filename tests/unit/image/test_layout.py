"""Tests of `nixsnap.image.layout`; what it writes from a whole build is tested there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from imagekit import sha256

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests
from nixsnap.image.assemble import Image
from nixsnap.image.layout import Source, write_archive
from nixsnap.image.oci import Descriptor, Manifest
from nixsnap.image.reference import Reference

BLOB = b"blob" * 1000
CONFIG = Descriptor(media_type="config", digest=sha256(BLOB), size=len(BLOB))
IMAGE = Image(manifest=Manifest(config=CONFIG, layers=()), descriptor=CONFIG, documents={})


def write(content: bytes, descriptor: Descriptor = CONFIG) -> bytes:
    """Write an archive of one blob, which has the content."""
    out = io.BytesIO()
    source = Source(what="base", descriptor=descriptor, open=lambda: io.BytesIO(content))
    write_archive(out, image=IMAGE, reference=Reference.parse("x"), sources={descriptor.digest: source})
    return out.getvalue()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_blobs_are_copied_in_pieces(algorithm: str, monkeypatch) -> None:
    """Under the name of their digest, whichever its algorithm."""
    monkeypatch.setattr(digests, "CHUNK", 999)
    digest = digests.of_bytes(BLOB, algorithm=algorithm)
    raw = write(BLOB, Descriptor(media_type="x", digest=digest, size=len(BLOB)))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert archive.extractfile(digests.blob_path(digest)).read() == BLOB
        assert f"blobs/{algorithm}" in archive.getnames()


@pytest.mark.parametrize("content", [BLOB[:-1], BLOB + b"!", b""])
def test_a_blob_of_another_size_is_refused(content: bytes) -> None:
    """Its header has been written by then, so that the archive would be broken."""
    with pytest.raises(InvalidArgumentError, match=rf"^base: {CONFIG.digest} is not of {len(BLOB)} bytes$"):
        write(content)


def test_a_blob_of_another_content_is_refused() -> None:
    """The message has the digest that it has."""
    changed = BLOB[:-1] + b"!"
    message = f"base: the content of {CONFIG.digest} has the digest {sha256(changed)}"
    with pytest.raises(InvalidArgumentError, match=message):
        write(changed)


def test_an_endless_blob_ends() -> None:
    """No more is copied than the descriptor says."""
    with Path("/dev/zero").open("rb") as zeros:
        source = Source(what="base", descriptor=CONFIG, open=lambda: zeros)
        with pytest.raises(InvalidArgumentError, match="is not of 4000 bytes"):
            write_archive(io.BytesIO(), image=IMAGE, reference=Reference.parse("x"), sources={"": source})
