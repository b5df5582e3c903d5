"""`nix2container push` into Debian's docker-registry, as skopeo then sees it."""

from __future__ import annotations

import json
import signal
import time

import pytest
from droppingproxy import dropping
from imagekit import Layout, config_of, layer, sha256
from lab import DetachedNetwork, build_image, run
from lab.processes import wait_until
from pushable import BIG_BYTES, write_archive
from registries import has_tag, manifest, pull, skopeo, start_docker_registry

from nixsnap.image.archive import ImageArchive


def test_everything_arrives_as_it_is(registry, client, archive, tmp_path):
    """What skopeo pulls are the archive's own blobs; the printed name has the manifest's digest."""
    name = f"{registry.host}/team/app:1"
    printed = client.pushed("--ref", name, archive)
    with ImageArchive.open(archive) as opened:
        (top,) = opened.index.manifests
        blobs = {each.digest for each in opened.verify(top)}
    assert printed == f"{name}@{top.digest}"
    assert set(pull(name, tmp_path / "pulled")) >= blobs
    assert json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))["Digest"] == top.digest


def test_nix_image_keeps_its_annotations(registry, client, closure, tmp_path):
    """By which a node knows the closure; the tag is `latest` where none is given."""
    built = build_image(closure, tmp_path / "nix.tar", reference="lab.invalid/nix:1")
    client.pushed("--ref", f"{registry.host}/nix", built)
    layers = manifest(f"{registry.host}/nix:latest")["layers"]
    assert any(key.startswith("containerd.io/snapshot/nix") for key in layers[-1]["annotations"])


def test_second_push_sends_no_blob(registry, client, archive):
    """They are asked for and found."""
    first = client.push("--ref", f"{registry.host}/app:1", archive)
    assert first.stderr.count(": pushed") == 2
    uploads = registry.requests("POST")
    second = client.push("--ref", f"{registry.host}/app:2", archive)
    assert second.stderr.count(": already there") == 2
    assert registry.requests("POST") == uploads
    assert manifest(f"{registry.host}/app:2") == manifest(f"{registry.host}/app:1")


def test_two_platforms_become_one_index(registry, client, tmp_path):
    """A puller for either gets its own."""
    archives = [
        write_archive(tmp_path / f"{name}.tar", architecture=name, text="hello")
        for name in ("amd64", "arm64")
    ]
    name = f"{registry.host}/team/app:both"
    client.pushed("--ref", name, *archives)
    index = manifest(name)
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    for architecture in ("amd64", "arm64"):
        seen = skopeo("--override-arch", architecture, "inspect", "--tls-verify=false", f"docker://{name}")
        assert json.loads(seen)["Architecture"] == architecture


def test_index_is_pushed_as_it_is(registry, client, tmp_path):
    """An archive with an index keeps that index's digest, attestations included."""
    layout = Layout()
    children = []
    for architecture in ("amd64", "arm64"):
        layers = [layer(file=architecture)]
        layout.simple(*layers, config=config_of(layers, architecture=architecture))
        children.append(layout.manifests.pop() | {"platform": {"os": "linux", "architecture": architecture}})
    statement = layer(statement="made here")
    layout.simple(statement, config=config_of([statement], architecture="unknown", os="unknown"))
    children.append(
        layout.manifests.pop()
        | {
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        }
    )
    media_type = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": children}
    layout.manifests.append(layout.document(index, media_type))
    layout.write(tmp_path / "index.tar")
    name = f"{registry.host}/app:1"
    assert client.pushed("--ref", name, tmp_path / "index.tar").endswith(layout.manifests[0]["digest"])
    assert set(pull(name, tmp_path / "pulled")) >= set(layout.blobs)


def test_push_by_digest(registry, client, archive):
    """Without a tag the image can be had by its digest; a digest that is another one's is refused."""
    with ImageArchive.open(archive) as opened:
        digest = opened.index.manifests[0].digest
    assert client.pushed("--ref", f"{registry.host}/app@{digest}", archive) == f"{registry.host}/app@{digest}"
    assert manifest(f"{registry.host}/app@{digest}")
    other = client.push("--ref", f"{registry.host}/app:1@{sha256(b'')}", archive)
    assert other.returncode == 2
    assert digest in other.stderr
    assert not has_tag(f"{registry.host}/app:1")


def test_from_standard_input(registry, client, archive):
    """As `-`, from a pipe."""
    result = run(
        "sh", "-c", 'cat "$0" | exec "$@"', archive, *client.argv("--ref", f"{registry.host}/app:1", "-"),
        environment=client.environment,
    )  # fmt: skip
    assert result.stdout.startswith(f"{registry.host}/app:1@sha256:")
    assert has_tag(f"{registry.host}/app:1")


def test_layers_are_mounted_from_another_repository(registry, client, big_archive):
    """Of a registry that has them there; nothing of them is sent again."""
    client.pushed("--ref", f"{registry.host}/base:1", big_archive)
    with dropping(registry.port) as proxy:
        result = client.push(
            "--ref", f"localhost:{proxy.port}/team/app:1", "--mount-from", "base", big_archive
        )
    assert result.returncode == 0
    assert result.stderr.count(": mounted") == 3
    assert proxy.sent < BIG_BYTES / 100
    assert has_tag(f"{registry.host}/team/app:1")


@pytest.mark.parametrize("cuts", [(BIG_BYTES // 2,), (BIG_BYTES // 4, BIG_BYTES // 2, BIG_BYTES // 3)])
def test_dropped_connection_with_docker_registry(registry, client, big_archive, tmp_path, cuts):
    """It cannot resume (asked how far an upload is, release 2.8 calls it invalid), so the blob is sent once more."""
    with dropping(registry.port, *cuts) as proxy:
        result = client.push("--ref", f"localhost:{proxy.port}/app:1", big_archive)
        assert proxy.cuts == []
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("trying again") == len(cuts)
    assert len(pull(f"{registry.host}/app:1", tmp_path / "pulled")) == 4


@pytest.mark.parametrize("cuts", [(BIG_BYTES // 2,), (BIG_BYTES // 4, BIG_BYTES // 4, BIG_BYTES // 8)])
def test_dropped_connection_with_a_registry_that_resumes(
    resuming_registry, client, big_archive, tmp_path, cuts
):
    """What has arrived is not sent again."""
    with dropping(resuming_registry.port, *cuts) as proxy:
        result = client.push("--ref", f"localhost:{proxy.port}/app:1", big_archive)
        assert proxy.cuts == []
    assert result.returncode == 0, result.stderr
    assert proxy.sent < BIG_BYTES * 1.02
    assert len(pull(f"{resuming_registry.host}/app:1", tmp_path / "pulled")) == 4


def test_registry_that_restarts(start, client, big_archive):
    """While a blob is being sent: the push goes on when it is back."""
    first = start()
    with dropping(first.port, BIG_BYTES // 2) as proxy:
        pushing = client.popen("--ref", f"localhost:{proxy.port}/app:1", big_archive)
        wait_until(lambda: not proxy.cuts, what="half of the blob is sent")
        first.process.kill()
        time.sleep(0.3)
        second = start(port=first.port, storage=first.directory / "data")
        _, errors = pushing.communicate(timeout=60)
    assert pushing.returncode == 0, errors
    assert has_tag(f"{second.host}/app:1")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(registry, client, big_archive, number, status):
    """It ends at once, and the registry is told to throw the upload away."""
    with dropping(registry.port, pause_seconds=0.02) as proxy:
        pushing = client.popen("--ref", f"localhost:{proxy.port}/app:1", big_archive)
        wait_until(lambda: proxy.sent > BIG_BYTES // 10, what="some of the blob is sent")
        began = time.monotonic()
        pushing.send_signal(number)
        _, errors = pushing.communicate(timeout=30)
    assert pushing.returncode == status, errors
    assert time.monotonic() - began < 5
    assert "Traceback" not in errors
    wait_until(lambda: len(registry.requests("DELETE")) == 1, what="the upload is cancelled")
    assert not has_tag(f"{registry.host}/app:1")


def test_full_registry(directory, start, client, big_archive, archive):
    """It is said, nothing is tried in vain, the tag stays as it was, and room made is enough."""
    storage = directory / "small"
    storage.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={BIG_BYTES // 2}", "tmpfs", storage)
    try:
        registry = start(storage=storage)
        before = client.pushed("--ref", f"{registry.host}/app:1", archive).rpartition("@")[2]
        result = client.push("--ref", f"{registry.host}/app:1", big_archive)
        assert result.returncode == 8, result.stderr
        assert "cannot push sha256:" in result.stderr
        assert f"{registry.host} is out of room" in result.stderr
        assert "trying again" not in result.stderr
        now = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{registry.host}/app:1"))
        assert now["Digest"] == before
        run("mount", "-o", f"remount,size={BIG_BYTES * 4}", storage)
        client.pushed("--ref", f"{registry.host}/app:1", big_archive)
        registry.stop()
    finally:
        run("umount", storage)


def test_read_only_registry(start, client, archive):
    """Its refusal is shown, with what it may mean."""
    registry = start(storage_options={"maintenance": {"readonly": {"enabled": True}}})
    result = client.push("--ref", f"{registry.host}/app:1", archive)
    assert result.returncode == 5
    assert "405 Method Not Allowed" in result.stderr
    assert "read-only" in result.stderr


def test_archive_that_lies_is_refused_before_anything_is_sent(registry, client, tmp_path):
    """A blob whose content has another digest: the registry never hears of the image."""
    layout = Layout()
    layout.simple(layer(file="good"))
    victim = json.loads(layout.blobs[layout.manifests[0]["digest"]])["layers"][0]
    layout.blobs[victim["digest"]] = b"x" * victim["size"]
    layout.write(tmp_path / "bad.tar")
    result = client.push("--ref", f"{registry.host}/app:1", tmp_path / "bad.tar")
    assert result.returncode == 2
    assert victim["digest"] in result.stderr
    assert registry.requests() == []


def test_nobody_there(client, archive):
    """A port without a registry and a host that does not exist fail at once."""
    began = time.monotonic()
    refused = client.push("--ref", "localhost:1/app:1", archive)
    assert refused.returncode == 6
    assert "localhost:1 does not answer: connection refused" in refused.stderr
    assert time.monotonic() - began < 5


def test_a_registry_in_rootlesskits_detached_network(directory, client, archive):
    """It is reached there, and nowhere else."""
    with DetachedNetwork.made(directory) as network:
        registry = network.call(lambda: start_docker_registry(directory / "registry"))
        name = f"{registry.host}/app:1"
        outside = client.push("--ref", name, archive)
        assert (outside.returncode, "refused" in outside.stderr) == (6, True), outside.stderr
        client.environment |= network.environment
        assert client.pushed("--ref", name, archive).startswith(name)
        assert registry.requests("PUT")
        registry.stop()


def test_a_namespace_that_is_none(directory, client, archive):
    """What cannot be entered is an error with its name, not a push from somewhere else."""
    (directory / "netns").touch()
    client.environment["ROOTLESSKIT_STATE_DIR"] = str(directory)
    result = client.push("--ref", "localhost:1/app:1", archive)
    assert result.returncode == 5
    assert str(directory / "netns") in result.stderr
    assert "ROOTLESSKIT_STATE_DIR" in result.stderr
