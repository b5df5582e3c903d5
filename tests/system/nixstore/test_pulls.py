"""Clients of each containerd whose images are fetched from a cache: ten of them at once, and one whose cache dies."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Closure, Containerd, Installation, NixsnapDaemon, build_image, installed_program, run
from lab.containerd import unused_container_id
from lab.processes import wait_until
from rpc import connect
from storebed import Bed

pytestmark = [
    pytest.mark.parametrize("release", ["machine"], indirect=True),
    pytest.mark.parametrize("way", ["own-process"], indirect=True),
]

CLIENTS = 10
REFERENCE = "lab.invalid/app:1"
RECORD_EXISTS = f'ctr: image "{REFERENCE}": already exists\n'

Client = Callable[[Containerd, Path, str], subprocess.CompletedProcess[str]]


def nix2container(containerd: Containerd, archive: Path, namespace: str) -> subprocess.CompletedProcess[str]:
    """`nix2container load`, which hands the layers' annotations on."""
    flags = ("--address", containerd.address, "--namespace", namespace)
    return run(installed_program("nix2container"), *flags, "load", archive, check=False)


def ctr(containerd: Containerd, archive: Path, namespace: str) -> subprocess.CompletedProcess[str]:
    """`ctr image import`, which hands on none, so that a nix layer is known by its content alone."""
    # From 2.0 on that is the transfer service's business, which unpacks with what it is configured to, unless told.
    local = ("--local",) if containerd.installation.series == "2" else ()
    command = ("image", "import", *local, "--snapshotter", "nix", archive)
    return containerd.ctr(*command, namespace=namespace, check=False)


@pytest.fixture(params=[nix2container, ctr])
def client(request: pytest.FixtureRequest) -> Client:
    """Each client in turn."""
    chosen: Client = request.param
    return chosen


@pytest.fixture
def archive(bed: Bed, small: Closure) -> Path:
    """An image whose store paths the cache has and the store does not."""
    bed.publish(small)
    return build_image(small, bed.directory / "image.tar", reference=REFERENCE)


@contextmanager
def node(bed: Bed, installation: Installation) -> Iterator[tuple[NixsnapDaemon, Containerd]]:
    """A containerd with a nixsnap on the bed's store."""
    (bed.directory / "c").mkdir()
    with bed.nixsnap() as nixsnap:
        containerd = Containerd.start(installation, bed.directory / "c", snapshotter=nixsnap.address)
        try:
            yield nixsnap, containerd
        finally:
            containerd.stop()


@contextmanager
def pull_under_way(
    bed: Bed, installation: Installation, archive: Path, client: Client
) -> Iterator[tuple[NixsnapDaemon, Containerd, Future[subprocess.CompletedProcess[str]]]]:
    """A node on which a client pulls the image, in the midst of its fetch: the cache holds back what it sends."""
    bed.cache.held.clear()
    with node(bed, installation) as (nixsnap, containerd), ThreadPoolExecutor(1) as pool:
        pull = pool.submit(client, containerd, archive, "lab")
        wait_until(lambda: bool(bed.cache.nars), what="the fetch")
        yield nixsnap, containerd, pull


def made(nixsnap: NixsnapDaemon) -> tuple[list[str], int]:
    """The snapshots, and how many directories of roots there are."""
    with connect(nixsnap.address) as rpc:
        return rpc.list(), len(list((nixsnap.root / "gcroots").iterdir()))


def assert_runs(containerd: Containerd, namespace: str) -> None:
    """A container of the image runs."""
    container = unused_container_id()
    command = ("run", "--rm", "--snapshotter", "nix", REFERENCE, container, "sh", "-c", "echo up")
    assert containerd.ctr(*command, namespace=namespace).stdout == "up\n"


def test_ten_pulls_at_once(bed: Bed, installation: Installation, archive: Path, client: Client):
    """Of ten namespaces: one fetch, and a snapshot with roots for each."""
    bed.cache.delay_seconds = 0.1
    with node(bed, installation) as (nixsnap, containerd), ThreadPoolExecutor(CLIENTS) as pool:
        names = [f"lab-{number}" for number in range(CLIENTS)]
        for result in pool.map(lambda name: client(containerd, archive, name), names):
            assert result.returncode == 0, result.stderr
        assert bed.cache.nars
        assert len(bed.cache.nars) == len(set(bed.cache.nars))
        snapshots, roots = made(nixsnap)
        assert (len(snapshots), roots) == (CLIENTS, CLIENTS)
        for name in names[:2]:
            assert_runs(containerd, name)


def test_ten_pulls_into_one_namespace(bed: Bed, installation: Installation, archive: Path, client: Client):
    """One fetch, and one snapshot in the end."""
    bed.cache.delay_seconds = 0.1
    with node(bed, installation) as (nixsnap, containerd), ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(lambda _: client(containerd, archive, "lab"), range(CLIENTS)))
        if (
            client is ctr
        ):  # it makes the image's record where it found none, and somebody may have made it since
            results = [result for result in results if result.stderr != RECORD_EXISTS]
        assert results
        for result in results:
            assert result.returncode == 0, result.stderr
        assert len(bed.cache.nars) == len(set(bed.cache.nars))
        containerd.collect_garbage()  # which removes what its clients removed
        snapshots, roots = made(nixsnap)
        assert (len(snapshots), roots) == (1, 1)
        assert_runs(containerd, "lab")


def test_cache_killed_in_the_midst_of_a_pull(
    bed: Bed, installation: Installation, archive: Path, client: Client
):
    """The user is told the cache and what to do; nothing is half made; with the cache back, the retry does it."""
    with pull_under_way(bed, installation, archive, client) as (nixsnap, containerd, pull):
        bed.cache.kill()
        bed.cache.held.set()
        result = pull.result()
        assert result.returncode != 0
        for words in ("cannot realise /nix/store/", bed.cache.url, "is the cache up"):
            assert words in result.stderr
        containerd.collect_garbage()  # which removes what its clients removed
        assert made(nixsnap) == ([], 0)
        bed.cache.start()
        retry = client(containerd, archive, "lab")
        assert retry.returncode == 0, retry.stderr
        assert made(nixsnap)[1] == 1
        assert_runs(containerd, "lab")


def test_daemon_killed_in_the_midst_of_a_pull(
    bed: Bed, installation: Installation, archive: Path, client: Client
):
    """The pull fails; with a daemon that starts again the retry does it, and roots are those of live snapshots."""
    with pull_under_way(bed, installation, archive, client) as (nixsnap, containerd, pull):
        nixsnap.kill()
        result = pull.result()
        assert result.returncode != 0
        assert result.stderr
        with bed.nixsnap() as again:
            wait_until(
                lambda: not bed.fetchers(), what="the end of what fetched for a daemon that was killed"
            )
            # A layer without annotations was an active snapshot already. containerd could not reach the daemon to
            # have it removed, and does so with the next removal of another.
            snapshots, roots = made(again)
            assert roots == len(snapshots)
            assert all("/extract-" in name for name in snapshots)
            bed.cache.held.set()

            def succeeds() -> bool:
                retry = client(containerd, archive, "lab")
                # containerd waits for a moment before it connects again to what it could not reach.
                assert retry.returncode == 0 or "connection" in retry.stderr, retry.stderr
                return retry.returncode == 0

            wait_until(succeeds, what="containerd to reach the daemon again, and the pull")
            snapshots, roots = made(again)
            assert roots == len(snapshots)
            assert len([name for name in snapshots if "/extract-" not in name]) == 1
            assert_runs(containerd, "lab")
            containerd.ctr("image", "rm", "--sync", REFERENCE, namespace="lab")
            wait_until(lambda: made(again) == ([], 0), what="the image's layer and its roots to go")
            assert list((again.root / "snapshots").iterdir()) == []
