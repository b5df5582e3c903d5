"""containerd's image records: a name, the descriptor it points to, labels."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from nixsnap.api import images_pb2, images_pb2_grpc
from nixsnap.containerd.client import Client
from nixsnap.containerd.descriptors import from_message, to_message
from nixsnap.image.oci import Descriptor


@attrs.frozen(kw_only=True)
class Image:
    """An image record.

    Attributes:
        name: The reference; any string that is not empty.
        target: The manifest or index it stands for. Records keep no platform, so this one has none.
        labels: containerd's and others', by name.
    """

    name: str
    target: Descriptor
    labels: Mapping[str, str] = attrs.field(factory=dict)


class Images:
    """The image records of a client's namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stub = images_pb2_grpc.ImagesStub(client.channel)

    async def get(self, name: str) -> Image:
        """Return the record called `name`.

        Raises:
            NotFoundError: There is none.
        """
        request = images_pb2.GetImageRequest(name=name)
        reply = await self._client.call(self._stub.Get, request, doing=f"look up image {name}")
        return _from_message(reply.image)

    async def list(self, *filters: str) -> list[Image]:
        """Return the records that any of the filters matches, all of them without one."""
        request = images_pb2.ListImagesRequest(filters=filters)
        reply = await self._client.call(self._stub.List, request, doing="list images")
        return [_from_message(image) for image in reply.images]

    async def create(self, image: Image) -> None:
        """Make a record.

        Raises:
            AlreadyExistsError: The name is taken.
        """
        request = images_pb2.CreateImageRequest(image=_to_message(image))
        await self._client.call(self._stub.Create, request, doing=f"create image {image.name}")

    async def update(self, image: Image) -> None:
        """Point an existing record to another target, and set the labels given beside those it has.

        Raises:
            NotFoundError: There is none of that name.
        """
        request = images_pb2.UpdateImageRequest(image=_to_message(image))
        request.update_mask.paths.append("target")
        request.update_mask.paths.extend(f"labels.{name}" for name in image.labels)
        await self._client.call(self._stub.Update, request, doing=f"update image {image.name}")

    async def delete(self, name: str) -> None:
        """Remove a record; what it kept goes with containerd's next collection.

        Raises:
            NotFoundError: There is none of that name.
        """
        request = images_pb2.DeleteImageRequest(name=name)
        await self._client.call(self._stub.Delete, request, doing=f"delete image {name}")


def _to_message(image: Image) -> images_pb2.Image:
    return images_pb2.Image(name=image.name, labels=image.labels, target=to_message(image.target))


def _from_message(message: images_pb2.Image) -> Image:
    return Image(name=message.name, target=from_message(message.target), labels=dict(message.labels))
