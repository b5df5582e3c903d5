"""Writing an image archive: an OCI layout that is a `docker load`able archive as well, in one tar file.

Entries, their order and their modes are those of containerd's exporter (core/images/archive/exporter.go),
so that every reader of its archives reads ours; and they depend on nothing but the image.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests, document
from nixsnap.image.assemble import Image
from nixsnap.image.oci import IMAGE_NAME, LAYOUT_VERSION, REF_NAME, Descriptor, Index, Manifest
from nixsnap.image.reference import Reference, layout_ref_name

_END_OF_ARCHIVE: Final = bytes(2 * tarfile.BLOCKSIZE)


@attrs.frozen(kw_only=True)
class Source:
    """Where a blob comes from.

    Args:
        what: Who has it, for messages.
        descriptor: What it must turn out to be.
        open: Opens it for reading.
    """

    what: str
    descriptor: Descriptor
    open: Callable[[], BinaryIO]


def write_archive(
    out: BinaryIO, *, image: Image, reference: Reference, sources: Mapping[str, Source]
) -> None:
    """Write the archive of one image.

    Args:
        out: Written from its position on; need not be seekable.
        image: Its documents.
        reference: Its name.
        sources: Every blob of it by digest, the manifest included.

    Raises:
        InvalidArgumentError: A blob is not what its descriptor says; what has been written is of no use
            then.
    """
    digest_order = sorted(sources)
    algorithms = sorted({digests.algorithm_of(digest) for digest in digest_order})
    directories = ["blobs", *(f"blobs/{algorithm}" for algorithm in algorithms)]
    out.writelines(_header(name, kind=tarfile.DIRTYPE, mode=0o755) for name in directories)
    for digest in digest_order:
        _write_blob(out, sources[digest])
    documents = {
        "index.json": (0o644, _index(image.descriptor, reference)),
        "manifest.json": (0o644, _docker_listing(image.manifest, reference)),
        "oci-layout": (0o444, {"imageLayoutVersion": LAYOUT_VERSION}),
    }
    for name, (mode, value) in documents.items():
        raw = document.serialise(value)
        out.write(_header(name, mode=mode, size=len(raw)) + raw + _padding(len(raw)))
    out.write(_END_OF_ARCHIVE)


def _write_blob(out: BinaryIO, source: Source) -> None:
    """Copy a blob in pieces, and check on the way that it is what it should be."""
    wanted = source.descriptor
    hasher = digests.hasher_of(wanted.digest)
    left = wanted.size
    out.write(_header(digests.blob_path(wanted.digest), mode=0o444, size=wanted.size))
    with source.open() as stream:
        while chunk := stream.read(min(left, digests.CHUNK)):
            left -= len(chunk)
            hasher.update(chunk)
            out.write(chunk)
        if left or stream.read(1):
            raise InvalidArgumentError(f"{source.what}: {wanted.digest} is not of {wanted.size} bytes")
    actual = f"{digests.algorithm_of(wanted.digest)}:{hasher.hexdigest()}"
    if actual != wanted.digest:
        raise InvalidArgumentError(f"{source.what}: the content of {wanted.digest} has the digest {actual}")
    out.write(_padding(wanted.size))


def _index(descriptor: Descriptor, reference: Reference) -> dict[str, Any]:
    """The layout's index: the image under its name, in containerd's way and in OCI's."""
    names = {IMAGE_NAME: str(reference), REF_NAME: layout_ref_name(str(reference))}
    return Index(manifests=(attrs.evolve(descriptor, annotations=names),)).to_json()


def _docker_listing(manifest: Manifest, reference: Reference) -> list[dict[str, Any]]:
    """manifest.json, which is what `docker load` goes by."""
    return [
        {
            "Config": digests.blob_path(manifest.config.digest),
            "RepoTags": [reference.familiar],
            "Layers": [digests.blob_path(layer.digest) for layer in manifest.layers],
        }
    ]


def _header(name: str, *, mode: int, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
