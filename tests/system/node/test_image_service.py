"""The image service on real containerd: its own answers come through, and pulls of ours have their own rules."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
from backend import SERVICE
from cri import Cri, M
from kube import PAUSE, KubeNode, kube_node, store_archive
from lab import build_image, nix_closure, run
from lab.processes import wait_until
from registries import HTPASSWD, PASSWORD, USER, start_docker_registry

pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)

# What each method of cri-api's runtime/v1/api.proto is asked, and whether its answer has no time in it.
REQUESTS = [
    ("ListImages", M["ListImagesRequest"](), True),
    ("ImageStatus", M["ImageStatusRequest"](image=M["ImageSpec"](image=PAUSE)), True),
    ("ImageStatus", M["ImageStatusRequest"](image=M["ImageSpec"](image="lab.invalid/none:1")), True),
    ("ImageStatus", M["ImageStatusRequest"](image=M["ImageSpec"](image="No Reference")), True),
    ("PullImage", M["PullImageRequest"](image=M["ImageSpec"](image="localhost:1/none:1")), True),
    ("PullImage", M["PullImageRequest"](), True),
    ("RemoveImage", M["RemoveImageRequest"](image=M["ImageSpec"](image="lab.invalid/none:1")), True),
    ("RemoveImage", M["RemoveImageRequest"](), True),
    ("ImageFsInfo", M["ImageFsInfoRequest"](), False),
    ("FromTheFuture", M["ImageFsInfoRequest"](), True),
]


@attrs.frozen
class Answer:
    """What came of a call."""

    code: grpc.StatusCode
    details: str
    message: bytes


def ask(address: Path, method: str, request: Any) -> Answer:
    """Call a method, in bytes."""
    with grpc.insecure_channel(f"unix://{address}") as channel:
        unary = channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return Answer(grpc.StatusCode.OK, "", unary(request.SerializeToString(), timeout=60))
        except grpc.RpcError as error:
            return Answer(error.code(), error.details(), b"")


def test_every_method_answers_as_containerd_does(kube):
    """Byte for byte, and error for error."""
    for method, request, is_timeless in REQUESTS:
        ours = ask(kube.nixsnap.address, method, request)
        theirs = ask(kube.containerd.address, method, request)
        assert (ours.code, ours.details) == (theirs.code, theirs.details), method
        if is_timeless:
            assert ours.message == theirs.message, method
        else:
            assert len(ours.message) > 0 < len(theirs.message)


def test_credentials_go_to_containerd(kube, closure, tmp_path):
    """A pull with the password succeeds, and without or with a wrong one fails as containerd says."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    registry = start_docker_registry(
        kube.directory / "registry",
        auth={"htpasswd": {"realm": "the registry", "path": str(tmp_path / "htpasswd")}},
    )
    direct = Cri(runtime=kube.containerd.address, images=kube.containerd.address)
    try:
        reference = f"{registry.host}/team/app:1"
        archive = build_image(closure, tmp_path / "app.tar", reference=reference)
        run(
            *("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"),
            *("--dest-creds", f"{USER}:{PASSWORD}", f"oci-archive:{archive}", f"docker://{reference}"),
        )
        for auth in ({}, {"username": USER, "password": "wrong"}):
            refusals = []
            for cri in (kube.cri, direct):
                with pytest.raises(grpc.RpcError) as raised:
                    cri.pull(reference, **auth)
                refusals.append((raised.value.code(), raised.value.details()))
            assert refusals[0] == refusals[1]
        assert kube.cri.pull(reference, username=USER, password=PASSWORD) == direct.image_id(reference)
    finally:
        direct.close()
        registry.stop()


def test_pull_while_containerd_is_away(kube):
    """It is unavailable, leaves no root, and works once containerd is there."""
    archive = store_archive(nix_closure(1, salt="away"), "away")
    kube.containerd.process.stop()
    with pytest.raises(grpc.RpcError) as raised:
        kube.cri.pull(f"nix:0{archive}")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert str(kube.containerd.address) in raised.value.details()
    assert kube.roots() == []
    kube.containerd.restart()
    wait_until(lambda: pulls(kube, f"nix:0{archive}"), what="pull")
    assert kube.roots() == [Path(archive).name]


def pulls(kube: KubeNode, reference: str) -> bool:
    """Whether a pull succeeds, while containerd may not be there yet."""
    try:
        return bool(kube.cri.pull(reference))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


@pytest.fixture
def slow(directory, installation, closure) -> Iterator[KubeNode]:
    """A node whose archives take until the file `go-on` is there."""
    program = directory / "builder"
    program.write_text(
        f"""#!/bin/sh
        echo "$2" >> {directory}/calls
        case $2 in *.tar) until [ -e {directory}/go-on ]; do sleep 0.05; done ;; esac
        exec nix-store --realise --add-root "$1" "$2"
        """
    )
    program.chmod(0o755)
    with kube_node(directory, installation, closure, config=f'external_builder = "{program}"\n') as node:
        yield node
        (directory / "go-on").touch()


def test_caller_that_gives_up(slow):
    """kubelet's deadline ends its call and not the work: who asks again joins it."""
    archive = store_archive(nix_closure(1, salt="slow"), "slow")
    reference = f"nix:0{archive}"
    request = {"image": M["ImageSpec"](image=reference)}
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as raised:
            slow.cri.call("ImageService", "PullImage", timeout=1.0, **request)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(slow.cri.pull, reference) for _ in range(3)]
        (slow.directory / "go-on").touch()
        ids = {future.result() for future in waiting}
    assert ids == {slow.cri.image_id(reference)}
    assert (slow.directory / "calls").read_text().split().count(archive) == 1


def test_pull_of_what_is_there_already(kube):
    """It does nothing, also under a name with a tag, which is an image of its own upon the same root."""
    archive = store_archive(nix_closure(1, salt="twice"), "twice")
    first = kube.cri.pull(f"nix:0{archive}")
    assert kube.cri.pull(f"nix:0{archive}:latest") == first
    assert kube.cri.pull(f"nix:0{archive}:other") == first
    assert {f"nix:0{archive}:latest", f"nix:0{archive}:other"} <= set(kube.cri.images())
    assert kube.roots() == [Path(archive).name]
    kube.cri.remove_image(f"nix:0{archive}:latest")  # CRI removes all names of the image it stands for
    assert {name for name in kube.cri.images() if archive in name} == set()
    assert kube.roots() == []


def test_known_to_cri_at_once(kube):
    """CRI hears of an image by an event, some time after it was stored; a pull returns no earlier than that."""
    archive = store_archive(nix_closure(1, salt="at-once"), "at-once")
    for number in range(20):
        reference = f"nix:0{archive}:{number}"
        assert kube.cri.image_id(reference) == ""
        image_id = kube.cri.pull(reference)
        assert kube.cri.image_id(reference) == image_id


def test_name_that_an_archive_gives_itself(kube):
    """A pulled archive gets the name it was pulled by and no other: it could take the place of any image."""
    archive = store_archive(nix_closure(1, salt="name"), "name", options=("--ref", PAUSE))
    before = kube.cri.image_id(PAUSE)
    kube.cri.pull(f"nix:0{archive}")
    assert kube.cri.image_id(PAUSE) == before != kube.cri.image_id(f"nix:0{archive}")
    assert set(kube.cri.images()) == {PAUSE, f"nix:0{archive}:latest"}
