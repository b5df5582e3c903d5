"""Image archives: an OCI layout or a `docker save` in a tar file, read as one thing.

Both are presented as OCI sees them: an index of manifests, and blobs by digest. For a Docker archive the
index and the manifests are made on opening, which reads every layer once for its digest. Where an archive
is both, the OCI layout counts, as it does for containerd.

Nothing is extracted and no layer is held in memory. What the archive says of itself is true only after
`verify`.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import attrs

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image import dockerarchive, document, mediatypes, spool
from nixsnap.image.blobs import Blobs
from nixsnap.image.digests import digest_of_path
from nixsnap.image.oci import LAYOUT_VERSION, Descriptor, ImageConfig, Index, Manifest
from nixsnap.image.platform import Platform
from nixsnap.image.tarindex import Extent, TarIndex
from nixsnap.nix.storepath import shorten

MAX_INDEX_DEPTH: Final = 4

# BuildKit hangs provenance on an image as a manifest with this annotation beside it in the index.
_ATTESTATION: Final = "vnd.docker.reference.type"
_WORST_RANK: Final = 1000


@attrs.frozen(kw_only=True)
class Candidate:
    """One manifest that an index leads to, and what it runs on (None: it does not say)."""

    descriptor: Descriptor
    platform: Platform | None

    def rank(self, host: Platform) -> int | None:
        """How well it runs on `host`, as `Platform.rank`; what does not say comes last."""
        return _WORST_RANK if self.platform is None else host.rank(self.platform)


class ImageArchive:
    """An opened archive; close it, or use it as a context manager. Several threads may use it.

    Args:
        fd: The uncompressed tar file, which the archive owns from now on.
        what: Its name, for messages.

    Attributes:
        what: Its name, for messages.
        index_bytes: `index.json` as it stands.
        index: What it lists.

    Raises:
        InvalidArgumentError: It is no image archive, or a damaged or hostile one; and why.
    """

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self.what = what
        try:
            self.index_bytes, self._blobs = self._open_layout(TarIndex(fd, what))
            self.index = Index.from_json(self._parse(self.index_bytes, "index.json"), f"{what}: index.json")
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, scratch: str | None = None) -> Self:
        """Open an archive by name; for `scratch` and further errors see `spool.open_path`."""
        return cls(spool.open_path(path, scratch=scratch), shorten(os.fspath(path)))

    @classmethod
    def from_stream(
        cls, stream: BinaryIO, *, what: str = "standard input", scratch: str | None = None
    ) -> Self:
        """Take an archive from a pipe, by way of a temporary file; see `spool.open_stream`."""
        return cls(spool.open_stream(stream, what=what, scratch=scratch), what)

    def close(self) -> None:
        """Give the file back; streams from `open_blob` must not be read any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, digest: str) -> bool:
        return digest in self._blobs

    def blob_size(self, digest: str) -> int:
        """The blob's length in bytes, as it is.

        Raises:
            InvalidArgumentError: The archive has no such blob.
        """
        return self._blobs.size(digest)

    def open_blob(self, digest: str) -> BinaryIO:
        """Open a blob for reading and seeking; its content is not verified.

        Raises:
            InvalidArgumentError: The archive has no such blob.
        """
        return self._blobs.open(digest)

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Read an index, a manifest or a config as it stands, verified; errors are those of `Blobs.read`."""
        return self._blobs.read(descriptor)

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """Read the manifest of one image.

        Raises:
            InvalidArgumentError: As for `read_document`, or it is no manifest.
        """
        return Manifest.from_json(self._read_json(descriptor), self._where(descriptor))

    def config(self, manifest: Manifest) -> ImageConfig:
        """Read the config that a manifest names.

        Raises:
            InvalidArgumentError: As for `read_document`, it is no image's config, or it has not one diff ID
                for each layer.
        """
        descriptor, where = manifest.config, self._where(manifest.config)
        if not mediatypes.is_config(descriptor.media_type):
            raise InvalidArgumentError(
                f"{where} is not an image's config but {shorten(descriptor.media_type)}"
            )
        config = ImageConfig.from_json(self._read_json(descriptor), where)
        if len(config.diff_ids) != len(manifest.layers):
            counts = f"{len(config.diff_ids)} diff IDs for {len(manifest.layers)} layers"
            raise InvalidArgumentError(f"{where} has {counts}")
        return config

    def candidates(self, descriptor: Descriptor) -> list[Candidate]:
        """List the images that a descriptor leads to: itself, or what an index names but attestations.

        Raises:
            InvalidArgumentError: An index cannot be read, or they are nested more than `MAX_INDEX_DEPTH`
                deep.
        """
        named = [descriptor]
        if mediatypes.is_index(descriptor.media_type):
            named = [child for _, index in self._indexes(descriptor) for child in index.manifests]
        images = {child.digest: child for child in named if _is_image(child)}
        return [Candidate(descriptor=child, platform=self._platform(child)) for child in images.values()]

    def select(self, descriptor: Descriptor, platform: Platform) -> Descriptor:
        """Find the manifest for a platform: the best one, where several would run.

        Raises:
            NotFoundError: There is none for the platform; the message names what there is.
            InvalidArgumentError: As for `candidates`.
        """
        candidates = self.candidates(descriptor)
        ranked = [(rank, each) for each in candidates if (rank := each.rank(platform)) is not None]
        if not ranked:
            raise NotFoundError(f"{self.what} has no image for {platform}: it has {offered(candidates)}")
        return min(ranked, key=lambda pair: pair[0])[1].descriptor

    def verify(self, descriptor: Descriptor, platform: Platform | None = None) -> list[Descriptor]:
        """Check all that an image consists of: present, and of the size and digest that its parent says.

        Args:
            descriptor: A manifest or an index, such as one of `index.manifests`.
            platform: Which of an index's images; None is every one whose manifest the archive has.

        Returns:
            What was checked, each blob once and before the documents that name it: the order to store them
            in. A foreign layer that the archive leaves out is left out here too.

        Raises:
            InvalidArgumentError: A blob is missing or wrong; the message names it and says how.
            NotFoundError: There is no image for the platform.
        """
        checked: dict[str, Descriptor] = {}
        for manifest in self._wanted(descriptor, platform):
            self._verify_manifest(manifest, checked)
        if mediatypes.is_index(descriptor.media_type):
            checked |= {each.digest: each for each, _ in self._indexes(descriptor)}
        return list(checked.values())

    def _wanted(self, descriptor: Descriptor, platform: Platform | None) -> list[Descriptor]:
        if platform is not None:
            return [self.select(descriptor, platform)]
        if mediatypes.is_index(descriptor.media_type):
            return [each.descriptor for each in self.candidates(descriptor) if each.descriptor.digest in self]
        return [descriptor]

    def _verify_manifest(self, descriptor: Descriptor, checked: dict[str, Descriptor]) -> None:
        manifest = self.manifest(descriptor)
        if mediatypes.is_config(manifest.config.media_type):
            self.config(manifest)
        for blob in (*manifest.layers, manifest.config):
            if blob.digest in checked:
                self._blobs.verify_size(blob)
            elif blob.digest in self or not mediatypes.is_foreign_layer(blob.media_type):
                self._blobs.verify(blob)
                checked[blob.digest] = blob
        checked[descriptor.digest] = descriptor

    def _indexes(self, descriptor: Descriptor) -> list[tuple[Descriptor, Index]]:
        """Read an index and those that it leads to, each once and before the one that names it."""
        found: dict[str, tuple[Descriptor, Index]] = {}
        self._collect_indexes(descriptor, found, depth=1)
        return list(found.values())

    def _collect_indexes(
        self, descriptor: Descriptor, found: dict[str, tuple[Descriptor, Index]], *, depth: int
    ) -> None:
        if descriptor.digest in found:
            return
        if depth > MAX_INDEX_DEPTH:
            raise InvalidArgumentError(f"{self.what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
        index = Index.from_json(self._read_json(descriptor), self._where(descriptor))
        for child in index.manifests:
            # `ctr image export --platform` names every platform and brings the blobs of one.
            if mediatypes.is_index(child.media_type) and child.digest in self:
                self._collect_indexes(child, found, depth=depth + 1)
        found[descriptor.digest] = (descriptor, index)

    def _platform(self, descriptor: Descriptor) -> Platform | None:
        """What an image runs on: by its descriptor, or else by its config."""
        if descriptor.platform is not None:
            return descriptor.platform
        manifest = self.manifest(descriptor)
        return self.config(manifest).platform if mediatypes.is_config(manifest.config.media_type) else None

    def _read_json(self, descriptor: Descriptor) -> Any:
        return self._parse(self.read_document(descriptor), descriptor.digest)

    def _parse(self, raw: bytes, name: str) -> Any:
        return document.parse(raw, f"{self.what}: {name}")

    def _where(self, descriptor: Descriptor) -> str:
        return f"{self.what}: {descriptor.digest}"

    def _open_layout(self, files: TarIndex) -> tuple[bytes, Blobs]:
        """Find the index and the blobs, of whichever kind of archive it is."""
        layout, index, listing = (files.find(name) for name in ("oci-layout", "index.json", "manifest.json"))
        if layout is not None:
            self._check_layout(layout)
            if index is None:
                raise InvalidArgumentError(f"{self.what} has oci-layout but no index.json")
            blobs = {digest: files.find(name) for name in files.names() if (digest := digest_of_path(name))}
            present = {digest: extent for digest, extent in blobs.items() if extent}
            return self._load(index, "index.json"), Blobs(self._fd, self.what, present)
        if listing is not None:
            raw = self._load(listing, "manifest.json")
            index_bytes, made = dockerarchive.as_layout(self._fd, files, raw, self.what)
            return index_bytes, Blobs(self._fd, self.what, made)
        raise InvalidArgumentError(f"{self.what} is no image: it has neither oci-layout nor manifest.json")

    def _check_layout(self, extent: Extent) -> None:
        where = f"{self.what}: oci-layout"
        fields = document.mapping(self._parse(self._load(extent, "oci-layout"), "oci-layout"), where)
        version = document.field(fields, "imageLayoutVersion", where, document.text)
        if version != LAYOUT_VERSION:
            raise InvalidArgumentError(f"{where} is of version {shorten(version)}, not {LAYOUT_VERSION}")

    def _load(self, extent: Extent, name: str) -> bytes:
        document.check_length(extent.size, f"{self.what}: {name}")
        return os.pread(self._fd, extent.size, extent.offset)


def offered(candidates: list[Candidate]) -> str:
    """List the platforms of an archive's images, for a message."""
    return (
        ", ".join(sorted({str(each.platform or "one that is not named") for each in candidates})) or "nothing"
    )


def _is_image(descriptor: Descriptor) -> bool:
    return mediatypes.is_manifest(descriptor.media_type) and _ATTESTATION not in descriptor.annotations
