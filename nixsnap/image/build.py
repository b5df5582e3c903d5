"""Building an image: a base, a nix layer on it, a config, and the archive that holds them all."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import posixpath
import tempfile
from collections.abc import Callable
from typing import BinaryIO, Final

import attrs

from nixsnap.image.archive import ImageArchive
from nixsnap.image.assemble import Image, assemble
from nixsnap.image.base import BaseImage, open_base
from nixsnap.image.blobs import open_extent
from nixsnap.image.closure import AnnotationForm, Closure, read_closure
from nixsnap.image.layer import plan_layer, write_layer
from nixsnap.image.layout import Source, write_archive
from nixsnap.image.oci import Descriptor
from nixsnap.image.output import whole_file
from nixsnap.image.platform import Platform
from nixsnap.image.reference import Reference
from nixsnap.image.roots import merge_roots, read_roots, root_paths
from nixsnap.image.runconfig import read_run_config
from nixsnap.image.tarindex import Extent
from nixsnap.nix.storepath import STORE_DIR

log = logging.getLogger(__name__)

# What distribution's registry takes (maxManifestBodySize); containerd pulls no more than 4,393,216 bytes.
MAX_PUSHABLE_MANIFEST: Final = 4 << 20


@attrs.frozen(kw_only=True)
class Request:
    """What to build.

    Args:
        out: The archive to write.
        reference: The image's name.
        platform: What the image runs on.
        config: JSON file with the `config` of the image.
        closure: What `read_closure` reads.
        copy_to_root: What `read_roots` reads.
        from_image: Archive with the base image.
        annotations: None is the closure form where the closure allows it, else the legacy one.
        store_dir: The store directory.
    """

    out: str
    reference: Reference
    platform: Platform
    config: str | None = None
    closure: str | None = None
    copy_to_root: str | None = None
    from_image: str | None = None
    annotations: AnnotationForm | None = None
    store_dir: str = STORE_DIR


def build(request: Request) -> Descriptor:
    """Build an image and write its archive; the same inputs give the same bytes.

    Returns:
        The descriptor of the image's manifest.

    Raises:
        InvalidArgumentError: An input is malformed, or two contradict each other; the message names it.
        NotFoundError: An input, a store path, or an image for the platform does not exist.
        ResourceExhaustedError: No room for a temporary copy of the base image.
    """
    run_config = read_run_config(request.config) if request.config else {}
    closure, form = _closure_of(request)
    roots = read_roots(request.copy_to_root, store_dir=request.store_dir) if request.copy_to_root else []
    _warn_of_dangling_links(roots, closure, request)
    entries = plan_layer(closure.paths, merge_roots(roots, store_dir=request.store_dir))
    with contextlib.ExitStack() as stack:
        base = None
        if request.from_image:
            base = open_base(stack.enter_context(ImageArchive.open(request.from_image)), request.platform)
        scratch = stack.enter_context(tempfile.TemporaryFile())
        layer = write_layer(entries, scratch)
        scratch.flush()
        image = assemble(
            platform=request.platform,
            run_config=run_config,
            base=base,
            layer=layer,
            # A layer without store paths is an ordinary one, and the snapshotter refuses a nix layer that
            # names none.
            annotations=closure.annotations(form) if closure.paths else {},
        )
        _warn_if_long(image.descriptor, request)
        sources = _sources(image, base, lambda: open_extent(scratch.fileno(), Extent(0, layer.size)))
        write_archive(
            stack.enter_context(whole_file(request.out)),
            image=image,
            reference=request.reference,
            sources=sources,
        )
    log.info("built %s: %s, %d store paths, %s", request.out, request.reference, len(closure.paths), form)
    return image.descriptor


def _closure_of(request: Request) -> tuple[Closure, AnnotationForm]:
    """Read the closure, and settle the form of its annotations.

    Without a closureInfo output, the config's own path is left out: its text is in the image's config
    already, and what it names is in the closure. That is what the Go tool does. With one, the layer must
    hold a mount point for every path that it lists.
    """
    closure = read_closure(request.closure, store_dir=request.store_dir) if request.closure else Closure()
    form = request.annotations or (AnnotationForm.CLOSURE if closure.info else AnnotationForm.LEGACY)
    if form is AnnotationForm.LEGACY and request.config:
        closure = closure.without(posixpath.realpath(request.config))
    return closure, form


def _warn_of_dangling_links(roots: list[str], closure: Closure, request: Request) -> None:
    """Say which roots will be links to nothing; a base image may bring what they lead to, so that is no error."""
    present = set(closure.paths)
    for root, path in root_paths(roots, store_dir=request.store_dir).items():
        if path not in present and not request.from_image:
            log.warning("copy-to-root: %s is not in the closure: links to %s will lead nowhere", root, path)


def _sources(
    image: Image, base: BaseImage | None, open_nix_layer: Callable[[], BinaryIO]
) -> dict[str, Source]:
    """Where each blob of the image is to be had, by digest."""
    *base_layers, nix_layer = image.manifest.layers
    found = [Source(what="the nix layer", descriptor=nix_layer, open=open_nix_layer)]
    for descriptor in (image.manifest.config, image.descriptor):
        open_document = functools.partial(io.BytesIO, image.documents[descriptor.digest])
        found.append(Source(what="the image", descriptor=descriptor, open=open_document))
    if base is not None:
        open_blob, what = base.archive.open_blob, f"base image {base.archive.what}"
        found += [
            Source(what=what, descriptor=layer, open=functools.partial(open_blob, layer.digest))
            for layer in base_layers
        ]
    return {source.descriptor.digest: source for source in found}


def _warn_if_long(manifest: Descriptor, request: Request) -> None:
    if manifest.size > MAX_PUSHABLE_MANIFEST:
        log.warning(
            "the manifest of %s has %d bytes: it can be loaded, but registries take no more than %d; "
            "annotations of the closure form are short",
            request.out,
            manifest.size,
            MAX_PUSHABLE_MANIFEST,
        )
