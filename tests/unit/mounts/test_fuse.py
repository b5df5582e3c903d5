"""Running fuse-overlayfs; here a script stands for it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nixsnap.mounts import features, fuse
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.operations import OverlayMount

OVERLAY = OverlayMount(
    lowerdirs=(Path("/b"), Path("/a")),
    upperdir=Path("/u"),
    workdir=Path("/w"),
    options=("userxattr", "index=off"),
)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a program of that name, alone on PATH, out of a script."""

    def make(script: str) -> None:
        path = tmp_path / "bin" / fuse.PROGRAM
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))

    return make


def test_what_it_is_told(program, tmp_path):
    """Layers and target, and none of the options that only the kernel's own overlays have."""
    program(f'for word; do echo "$word"; done > {tmp_path}/said')
    fuse.mount(OVERLAY, Path("/target"))
    assert (tmp_path / "said").read_text().splitlines() == [
        "-o", "workdir=/w,upperdir=/u,lowerdir=/b:/a", "/target",
    ]  # fmt: skip


def test_what_it_says_is_the_error(program):
    """The last line of it."""
    program("echo first >&2; echo fuse: device not found >&2; exit 1")
    with pytest.raises(StepError) as caught:
        fuse.mount(OVERLAY, Path("/target"))
    assert str(caught.value) == "fuse-overlayfs: Input/output error: '/target' (fuse: device not found)"


def test_a_failure_without_words(program):
    """The status is better than nothing."""
    program("exit 7")
    with pytest.raises(StepError, match="status 7"):
        fuse.mount(OVERLAY, Path("/target"))


def test_a_program_that_hangs(program, monkeypatch):
    """A call to the daemon must not wait for ever."""
    monkeypatch.setattr(fuse, "_TIMEOUT_SECONDS", 0.1)
    program("while :; do :; done")
    with pytest.raises(StepError) as caught:
        fuse.mount(OVERLAY, Path("/target"))
    assert caught.value.errno == errno.ETIMEDOUT


def test_no_such_program(tmp_path, monkeypatch):
    """It is named, by a mount that fails and by the probe."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepError, match="run: No such file or directory: 'fuse-overlayfs'"):
        fuse.mount(OVERLAY, Path("/target"))
    assert features.fuse_overlay(tmp_path).missing == "there is no fuse-overlayfs on PATH"
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_fails_is_a_missing_feature(program, tmp_path):
    """In its own words."""
    program("echo fuse: device not found >&2; exit 1")
    assert "device not found" in (features.fuse_overlay(tmp_path).missing or "")
