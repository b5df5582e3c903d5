"""Pods whose images are fetched from a cache: it is down and comes back, and ten pods want the same image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from cri import Pod
from kube import KubeNode, kube_node, store_archive
from lab import Closure, Installation, build_image, installed_program, nix_closure, run
from registries import start_docker_registry
from rpc import connect
from storebed import Bed

pytestmark = [
    pytest.mark.parametrize("release", ["machine"], indirect=True),
    pytest.mark.parametrize("way", ["own-process"], indirect=True),
    pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True),
]

PODS = 10

Publish = Callable[[Bed, Closure], str]


@pytest.fixture
def publish(request: pytest.FixtureRequest, bed: Bed) -> Iterator[Publish]:
    """Each way to an image in turn; makes one, with its store paths in the cache, and returns its reference.

    One is a store path, which the image service fetches from the cache too; the other is pulled from a registry by
    containerd, which has the nix layer made.
    """
    if request.param == "store path":
        yield publish_store_path
        return
    registry = start_docker_registry(bed.directory / "registry")

    def publish_in_registry(bed: Bed, closure: Closure) -> str:
        bed.publish(closure)
        reference = f"{registry.host}/team/app:1"
        archive = build_image(closure, bed.directory / "app.tar", reference=reference)
        run(installed_program("nix2container"), "push", "--plain-http", "--ref", reference, archive)
        return reference

    yield publish_in_registry
    registry.stop()


def publish_store_path(bed: Bed, closure: Closure) -> str:
    """An image whose archive is in the cache."""
    archive = store_archive(closure, "app")
    bed.cache.publish([closure.info, archive], secret_key=bed.secret_key)
    return f"nix:0{archive}"


@contextmanager
def node(bed: Bed, installation: Installation, pause: Closure) -> Iterator[KubeNode]:
    """A node for pods on the bed's store, which holds no more than the pause image needs."""
    bed.publish(pause)
    with kube_node(bed.directory, installation, pause, config=bed.file()) as kube:
        bed.cache.requests.clear()
        try:
            yield kube
        finally:
            bed.cache.held.set()


def run_pod(kube: KubeNode, number: int) -> Pod:
    """A pod in the host's network, without a container yet."""
    return kube.cri.run_pod(f"pod-{number}", kube.directory / "logs")


def made(kube: KubeNode) -> tuple[int, int]:
    """How many committed nix layers there are, and how many directories of roots."""
    kube.containerd.collect_garbage(namespace="k8s.io")
    with connect(kube.nixsnap.address) as rpc:
        committed = [name for name in rpc.list() if name.startswith("k8s.io/") and "sha256:" in name]
    directories = [path for path in (kube.nixsnap.root / "gcroots").iterdir() if path.name != "images"]
    return len(committed), len(directories)


def start(pod: Pod, closure: Closure, reference: str) -> None:
    """Start a container in the pod and see that it has its store paths, and no others."""
    container = pod.start("app", reference, [f"{closure.top}/bin/sleep", "1000"])
    listed = pod.exec(container, f"{closure.top}/bin/ls", "/nix/store").split()
    assert listed == sorted(path.removeprefix("/nix/store/") for path in closure.paths)


@pytest.mark.parametrize("publish", ["store path", "registry"], indirect=True)
def test_pod_whose_cache_is_down(bed: Bed, installation: Installation, closure: Closure, publish: Publish):
    """The pull says which path, which cache and what to do; nothing of it stays; with the cache back the pod starts."""
    app = nix_closure(3, salt="pod of a cache", name="pod-app")
    reference = publish(bed, app)
    wanted = reference.removeprefix("nix:0") if reference.startswith("nix:0") else app.info
    with node(bed, installation, closure) as kube:
        before, roots = made(kube), kube.roots()
        pod = run_pod(kube, 0)
        bed.cache.kill()
        for _ in range(2):  # kubelet tries again and again
            with pytest.raises(grpc.RpcError) as raised:
                kube.cri.pull(reference)
            for words in (f"cannot realise {wanted}", bed.cache.url, "is the cache up"):
                assert words in raised.value.details()
            if reference.startswith("nix:0"):
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert kube.cri.image_id(reference) == ""
        with pytest.raises(grpc.RpcError, match="app"):
            start(pod, app, reference)
        assert (made(kube), kube.roots()) == (before, roots)
        bed.cache.start()
        kube.cri.pull(reference)
        start(pod, app, reference)
        layers, directories = made(kube)
        assert layers == directories == before[0] + 1
        pod.remove()
        kube.cri.remove_image(reference)
        assert (made(kube), kube.roots()) == (before, roots)


@pytest.mark.parametrize("publish", ["store path", "registry"], indirect=True)
def test_ten_pods_of_one_image(bed: Bed, installation: Installation, closure: Closure, publish: Publish):
    """Each pod has it pulled, as kubelet does; every store path is fetched once, and all ten run."""
    app = nix_closure(3, salt="ten pods", name="ten-app")
    reference = publish(bed, app)
    bed.cache.delay_seconds = 0.1
    with node(bed, installation, closure) as kube, ThreadPoolExecutor(PODS) as pool:
        before = made(kube)

        def pull_and_start(number: int) -> Pod:
            pod = run_pod(kube, number)
            kube.cri.pull(reference)
            start(pod, app, reference)
            return pod

        pods = list(pool.map(pull_and_start, range(PODS)))
        assert len({pod.id for pod in pods}) == PODS
        needed = {*app.paths, app.info} - {*closure.paths}
        nars = [bed.nar(path) for path in needed]
        assert sorted(path for path in bed.cache.nars if path in nars) == sorted(nars)
        assert len(bed.cache.nars) == len(set(bed.cache.nars))
        layers, directories = made(kube)
        assert layers == directories == before[0] + 1
        list(pool.map(Pod.remove, pods))
