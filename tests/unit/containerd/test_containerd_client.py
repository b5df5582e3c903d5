"""Connecting, headers, and containerd's errors as ours."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path

import grpc
import grpc.aio
import pytest
from fake_containerd import failing, on_fake

from nixsnap.api import images_pb2, images_pb2_grpc
from nixsnap.containerd.client import Client, connect, translate
from nixsnap.containerd.images import Images
from nixsnap.containerd.snapshots import Snapshots
from nixsnap.errors import (
    InvalidArgumentError,
    NixsnapError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)


def connect_to(address: str) -> None:
    """Connect and hang up."""

    async def main() -> None:
        async with connect(address, namespace="test"):
            pass

    asyncio.run(main())


def error_of(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """What gRPC raises."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def test_absent_socket_is_named_with_the_way_out(tmp_path):
    """The message has the path and the reason, the hint the flag."""
    with pytest.raises(UnavailableError, match=r"no/such\.sock: No such file") as caught:
        connect_to(f"{tmp_path}/no/such.sock")
    assert "--address" in str(caught.value.hint)


def test_socket_without_a_server(tmp_path):
    """A socket that a dead containerd left behind is unavailable, not a gRPC riddle."""
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(UnavailableError, match=r"dead\.sock: Connection refused"):
        connect_to(path)


@pytest.mark.parametrize("path", ["/" + "x" * 200, "/run/nul\0byte", ""])
def test_impossible_paths(path):
    """What can be no socket's path is an error of ours too."""
    with pytest.raises(UnavailableError, match="cannot connect to containerd at"):
        connect_to(path)


@pytest.fixture
def _without_root():
    """Let root see what others see."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield
    os.seteuid(was)


@pytest.mark.usefixtures("_without_root")
def test_forbidden_socket():
    """A socket that is not ours to open says so."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as theirs:
        path = f"{directory}/theirs.sock"
        theirs.bind(path)
        theirs.listen()
        Path(path).chmod(0)
        with pytest.raises(PermissionDeniedError, match="Permission denied"):
            connect_to(path)


def test_address_as_a_url(tmp_path):
    """containerd's tools write unix:// before the path."""

    async def scenario(_fake, client):
        async with connect(f"unix://{client.address}", namespace="test") as second:
            with pytest.raises(NotFoundError):
                await Images(second).get("x")

    on_fake(tmp_path, scenario)


def test_headers():
    """Namespace always, lease when there is one."""
    client = Client(channel=None, address="", namespace="k8s.io")
    assert client.metadata == (("containerd-namespace", "k8s.io"),)
    assert client.under("l1").metadata == (("containerd-namespace", "k8s.io"), ("containerd-lease", "l1"))
    assert client.lease is None


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, "x", NotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, "x", InvalidArgumentError),
        (grpc.StatusCode.PERMISSION_DENIED, "x", PermissionDeniedError),
        (grpc.StatusCode.UNAVAILABLE, "x", UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "x", UnavailableError),
        (grpc.StatusCode.UNKNOWN, "write: no space left on device", ResourceExhaustedError),
        (grpc.StatusCode.INTERNAL, "x", NixsnapError),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", UnavailableError),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: …", UnavailableError),
    ],
)
def test_translation(code, details, kind):
    """Every status becomes the error of ours with that status, and says what was being done."""
    error = translate(error_of(code, details), doing="do something")
    assert type(error) is kind
    assert error.message.startswith("cannot do something: ")


def test_unknown_snapshotter_names_the_setting(tmp_path):
    """containerd's words for a missing proxy plug-in (services/snapshots/service.go) get a hint."""

    async def scenario(fake, client):
        fake.before["Snapshots.Stat"] = failing(
            grpc.StatusCode.INVALID_ARGUMENT, "snapshotter not loaded: nix: invalid argument"
        )
        with pytest.raises(InvalidArgumentError, match="snapshotter not loaded: nix") as caught:
            await Snapshots(client, "nix").stat("x")
        assert "[proxy_plugins]" in caught.value.hint

    on_fake(tmp_path, scenario)


def test_deadline(tmp_path):
    """A containerd that hangs is unavailable after the deadline."""

    async def scenario(fake, client):
        async def hang(_context):
            await asyncio.Event().wait()

        fake.before["Images.Get"] = hang
        get = images_pb2_grpc.ImagesStub(client.channel).Get
        with pytest.raises(UnavailableError, match="cannot look: containerd did not answer in time"):
            await client.call(get, images_pb2.GetImageRequest(name="x"), doing="look", timeout=0.05)

    on_fake(tmp_path, scenario)
