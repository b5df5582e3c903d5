"""Media types: OCI's, Docker's older ones, and how the one become the other."""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD: Final = f"{OCI_LAYER}+zstd"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

# containerd (core/images/mediatypes.go) warns that Docker's plain type also stands on compressed layers.
_OCI_LAYER_OF_DOCKER: Final = {
    f"{DOCKER_LAYER}.gzip": OCI_LAYER_GZIP,
    f"{DOCKER_LAYER}.zstd": OCI_LAYER_ZSTD,
}
_OCI_LAYER_OF_COMPRESSION: Final = {"": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


def is_index(media_type: str) -> bool:
    """Whether it is a list of manifests."""
    return media_type in {OCI_INDEX, DOCKER_INDEX}


def is_manifest(media_type: str) -> bool:
    """Whether it is the manifest of one image."""
    return media_type in {OCI_MANIFEST, DOCKER_MANIFEST}


def is_config(media_type: str) -> bool:
    """Whether it is the configuration of a runnable image, not of some other artifact."""
    return media_type in {OCI_CONFIG, DOCKER_CONFIG}


def is_foreign_layer(media_type: str) -> bool:
    """Whether it is a layer that archives may leave out (Windows base layers)."""
    return media_type.startswith(
        (
            "application/vnd.oci.image.layer.nondistributable.",
            "application/vnd.docker.image.rootfs.foreign.",
        )
    )


def oci_layer(media_type: str, compression: str) -> str:
    """The media type that a layer of a base image has in an OCI manifest.

    Args:
        media_type: What the base's manifest says; OCI's own are kept.
        compression: What the layer's first bytes say: "", "gzip" or "zstd".
    """
    if media_type == DOCKER_LAYER:
        return _OCI_LAYER_OF_COMPRESSION[compression]
    return _OCI_LAYER_OF_DOCKER.get(media_type, media_type)
