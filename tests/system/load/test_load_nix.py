"""Loading Nix images into nixsnap itself: what it is handed, and what is left when it or Nix fails."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import build_image, nix_closure
from lab.nix import delete_closure
from lab.processes import wait_until

REFERENCE = "lab.invalid/app:1"


@pytest.fixture
def target(node, target_in):
    """A namespace of a containerd that has nixsnap as its snapshotter `nix`."""
    return target_in(node.containerd)


@pytest.mark.parametrize("form", ["closure", "legacy", "both"])
def test_annotations_reach_the_snapshotter(target, directory, closure, form):
    """Every annotation of the nix layer that has containerd's prefix is a label of its snapshot."""
    archive = build_image(
        closure, directory / "app.tar", reference=REFERENCE, options=["--annotations", form]
    )
    result = target.load(archive, snapshotter="nix")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{REFERENCE}\n", "")
    (name,) = target.snapshots("nix")
    labels = json.loads(target.ctr("snapshot", "--snapshotter", "nix", "info", name))["Labels"]
    assert ("containerd.io/snapshot/nix-closure" in labels) == (form != "legacy")
    named = {value for label, value in labels.items() if "/nix-store-path." in label}
    assert named == (set() if form == "closure" else set(closure.paths))


def test_closure_that_cannot_be_had(node, target, directory):
    """The load fails with Nix's own words, and neither containerd nor nixsnap keeps anything."""
    lost = nix_closure(2, salt=f"lost {os.getpid()}")  # nobody else's, who would miss it
    archive = build_image(lost, directory / "app.tar", reference=REFERENCE)
    nix_closure.cache_clear()
    delete_closure(lost)
    result = target.load(archive, snapshotter="nix")
    assert result.returncode != 0
    assert result.stdout == ""
    assert lost.info in result.stderr
    assert target.everything("nix") == {}
    assert [*node.nixsnap.root.glob("snapshots/*"), *node.nixsnap.root.glob("gcroots/*")] == []


def test_daemon_that_is_down(node, target, directory, closure):
    """It is the snapshotter that is missing, not containerd, and the message says so; then a retry succeeds."""
    archive = build_image(closure, directory / "app.tar", reference=REFERENCE)
    node.nixsnap.stop()
    result = target.load(archive, snapshotter="nix")
    assert result.returncode == 6
    assert "is the snapshotter's daemon running?" in result.stderr
    assert target.images() == set()
    restarted = type(node.nixsnap).start(node.nixsnap.directory)
    try:
        # containerd itself dials again at growing intervals of up to three seconds.
        wait_until(lambda: target.load(archive, snapshotter="nix").returncode == 0, what="load succeeds")
        assert target.leftovers("nix") == {}
    finally:
        node.containerd.stop()
        restarted.destroy()


def test_many_loads_of_one_nix_image(node, target, directory, closure):
    """Whoever wins, there is one snapshot in the end, in containerd and in nixsnap."""
    archive = build_image(closure, directory / "app.tar", reference=REFERENCE)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: target.load(archive, snapshotter="nix"), range(6)))
    assert [each.stderr for each in results if each.returncode] == []
    assert len(target.snapshots("nix")) == 1
    assert target.leftovers("nix") == {}
    target.collect()
    wait_until(lambda: len(list((node.nixsnap.root / "snapshots").iterdir())) == 1, what="one snapshot")
