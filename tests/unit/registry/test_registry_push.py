"""Tests of `nixsnap.registry.push`: whole images, in the order that keeps a registry from having half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fakeregistry import Fault
from imagekit import Layout, config_of, layer

from nixsnap.errors import PermissionDeniedError, UnavailableError
from nixsnap.image.archive import ImageArchive
from nixsnap.image.reference import Reference
from nixsnap.registry.progress import Outcome
from nixsnap.registry.push import push
from nixsnap.registry.retry import Clock

LAYERS = 9


@pytest.fixture
def layout() -> Layout:
    """An image of many layers."""
    layers = [layer(file=f"layer {number}", noise=os.urandom(1000).hex()) for number in range(LAYERS)]
    layout = Layout()
    layout.simple(*layers, config=config_of(layers))
    return layout


@pytest.fixture
def push_to(fake, heard, config, layout, tmp_path: Path):
    """Pushes the image to a name in the registry that fails on cue."""

    def push_one(name: str, **settings: object) -> str:
        with ImageArchive.open(layout.write(tmp_path / "image.tar")) as archive:
            pushed = push(
                [archive],
                Reference.parse(f"{fake.host}/{name}"),
                hosts_dirs=[tmp_path],
                config=config,
                progress=heard,
                clock=Clock(unit_seconds=0.001),
                **{"plain_http": True, **settings},
            )
        return str(pushed)

    return push_one


def test_push(fake, heard, layout, push_to):
    """Everything arrives, and the printed name is a reference with the digest."""
    digest = layout.manifests[0]["digest"]
    assert push_to("team/app:1") == f"{fake.host}/team/app:1@{digest}"
    assert fake.manifests["team/app", "1"][1] == layout.blobs[digest]
    assert {each for _, each in fake.blobs} == set(layout.blobs) - {digest}
    assert set(heard.outcomes.values()) == {Outcome.PUSHED}
    size = sum(len(raw) for raw in layout.blobs.values()) - len(layout.blobs[digest])
    assert heard.announced == [(LAYERS + 1, size)]


def test_order(fake, push_to):
    """All blobs before the manifest."""
    push_to("app:1")
    methods = fake.methods()
    assert methods.index("POST") == LAYERS + 1  # each is asked for first
    assert fake.requests[-1] == "PUT /v2/app/manifests/1"
    assert sum("manifests" in each for each in fake.requests) == 1


def test_tls_is_tried_once(fake, push_to):
    """By the first request alone, before others go out at the same time."""
    push_to("app:1", plain_http=False)
    assert ("app", "1") in fake.manifests


def test_what_is_there_is_not_sent(fake, heard, layout, push_to):
    """And counted as such."""
    manifest = json.loads(layout.blobs[layout.manifests[0]["digest"]])
    for each in manifest["layers"][:4]:
        fake.blobs["app", each["digest"]] = layout.blobs[each["digest"]]
    push_to("app:1")
    assert list(heard.outcomes.values()).count(Outcome.THERE) == 4
    assert fake.methods().count("POST") == LAYERS + 1 - 4


def test_without_a_tag(fake, layout, push_to):
    """Under its digest alone."""
    digest = layout.manifests[0]["digest"]
    assert push_to(f"app@{digest}") == f"{fake.host}/app@{digest}"
    assert set(fake.manifests) == {("app", digest)}


def test_failed_blob_leaves_the_tag(fake, push_to):
    """As it was, and no upload behind: each is finished, cancelled or was never begun."""
    fake.manifests["app", "1"] = ("x", b"before")
    fake.faults.append(Fault(method="PUT", path="uploads", status=403))
    with pytest.raises(PermissionDeniedError):
        push_to("app:1")
    assert fake.manifests == {("app", "1"): ("x", b"before")}
    assert fake.uploads == {}


def test_manifest_is_tried_again(fake, push_to):
    """As everything."""
    fake.faults += [
        Fault(method="PUT", path="manifests", status=500),
        Fault(method="PUT", path="manifests", is_answer_lost=True),
    ]
    push_to("app:1")
    assert ("app", "1") in fake.manifests


def test_refused_manifest(fake, push_to):
    """The error says what could not be pushed, to where, and as what."""
    body = b'{"errors":[{"code":"MANIFEST_INVALID","message":"no"}]}'
    fake.faults += [Fault(method="PUT", path="manifests", status=503, body=body)] * 20
    with pytest.raises(
        UnavailableError, match=r"cannot push sha256:.* to app as 1: .* \(MANIFEST_INVALID: no\)"
    ):
        push_to("app:1")
