"""Kubernetes' image service, `runtime.v1.ImageService`: containerd's own, but for `nix:0` references.

Everything passes through as bytes (see `passthrough`). Of the two methods that are looked at, PullImage is answered
here when its reference begins with `nix:0`, and RemoveImage, once containerd has answered it, gives up roots.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from nixsnap.api import cri_pb2
from nixsnap.errors import NixsnapError, UnavailableError
from nixsnap.periodic import periodically
from nixsnap.services.callers import caller_of
from nixsnap.services.errors import refuse
from nixsnap.services.passthrough import Forwarder, Passthrough
from nixsnap.services.pulls import PREFIX, NixPuller

log = logging.getLogger(__name__)

SERVICE: Final = "runtime.v1.ImageService"
_PULL: Final = f"/{SERVICE}/PullImage"
_REMOVE: Final = f"/{SERVICE}/RemoveImage"
_STATUS: Final = f"/{SERVICE}/ImageStatus"

_STATUS_SECONDS: Final = 10.0
# Images are removed without us too (`ctr image rm`, kubelet with another endpoint).
_COLLECT_SECONDS: Final = 300.0
_RETRY_SECONDS: Final = 5.0  # containerd starts after us


def image_service(forwarder: Forwarder, puller: NixPuller) -> Passthrough:
    """The handler that serves it.

    Args:
        forwarder: To containerd.
        puller: Answers for `nix:0` references.
    """

    def pull(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        reference = _reference(request)
        if not reference.startswith(f"{PREFIX}/"):
            yield from forwarder.forward(_PULL, iter([request]), context)
            return
        try:
            image_id = puller.pull(reference, caller=caller_of(context))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the client must hear of it
            refuse(exc, context, call="PullImage")
        yield cri_pb2.PullImageResponse(image_ref=image_id).SerializeToString()

    def remove(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from forwarder.forward(_REMOVE, iter([request]), context)
        if puller.has_roots():
            _collect(puller)

    return Passthrough(
        SERVICE,
        forwarder,
        {
            # On the wire one answer is a stream of one, and as a stream it can be passed on.
            "PullImage": grpc.unary_stream_rpc_method_handler(pull),
            "RemoveImage": grpc.unary_stream_rpc_method_handler(remove),
        },
    )


def cri_knows(channel: grpc.Channel) -> Callable[[str], bool]:
    """A function that asks CRI whether it resolves a reference."""
    status: grpc.UnaryUnaryMultiCallable[cri_pb2.ImageStatusRequest, cri_pb2.ImageStatusResponse] = (
        channel.unary_unary(
            _STATUS,
            request_serializer=cri_pb2.ImageStatusRequest.SerializeToString,
            response_deserializer=cri_pb2.ImageStatusResponse.FromString,
        )
    )

    def knows(reference: str) -> bool:
        request = cri_pb2.ImageStatusRequest(image=cri_pb2.ImageSpec(image=reference))
        try:
            return bool(status(request, timeout=_STATUS_SECONDS).image.id)
        except grpc.RpcError as exc:
            raise UnavailableError(
                f"containerd's CRI does not answer for {reference}: {exc.details()}"
            ) from exc

    return knows


def _reference(request: bytes) -> str:
    """The reference that a PullImageRequest names; what is no such message names none, and containerd will say so."""
    try:
        return cri_pb2.PullImageRequest.FromString(request).image.image
    except DecodeError:
        return ""


def upkeep(puller: NixPuller) -> AbstractContextManager[None]:
    """Look after the roots of images within the block: at once, and now and then, on a thread of its own."""

    def round_of_upkeep() -> bool:
        if not puller.ever_pulled():
            return True
        return _collect(puller) and puller.check_roots()

    return periodically(
        round_of_upkeep,
        name="image-roots",
        interval_seconds=_COLLECT_SECONDS,
        retry_seconds=_RETRY_SECONDS,
    )


def _collect(puller: NixPuller) -> bool:
    try:
        puller.collect_roots()
    except (NixsnapError, OSError) as exc:
        log.warning("roots of removed images stay for now error=%s", exc)
        return False
    return True
