"""OCI descriptors as containerd's API writes them: without platform, which it keeps nowhere."""

from __future__ import annotations

from nixsnap.api import descriptor_pb2
from nixsnap.image.oci import Descriptor


def to_message(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    """Encode a descriptor."""
    return descriptor_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def from_message(message: descriptor_pb2.Descriptor) -> Descriptor:
    """Decode a descriptor."""
    return Descriptor(
        media_type=message.media_type,
        digest=message.digest,
        size=message.size,
        annotations=dict(message.annotations),
    )
