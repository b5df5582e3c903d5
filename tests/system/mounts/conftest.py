"""What the tests of real mounts share. The root conftest's `directory` fixture checks that they leave no mount."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import filesystems

from nixsnap.mounts import kernel, overlayfs

# descriptors.py, faults.py and trees.py serve here too
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "mounts"))

from descriptors import open_descriptors


@pytest.fixture(autouse=True)
def no_descriptor_stays_open(directory: Path) -> Iterator[None]:
    """Every test here, of success or failure, is a test that no descriptor leaks."""
    assert directory.is_dir()  # made before we count: the session's first brings a lock file
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture(params=["lowerdir+", "mount(2)"])
def interface(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to mount an overlay: what this kernel would choose, and what an old one leaves."""
    if request.param == "mount(2)":
        monkeypatch.setattr(overlayfs, "appends_lowerdirs", lambda: False)
    elif not overlayfs.appends_lowerdirs():
        pytest.skip("this kernel does not know lowerdir+ (Linux 6.7)")
    return request.param


@pytest.fixture
def layers(directory: Path) -> Path:
    """Directories for an overlay of two: lower1, lower2, upper, work, target."""
    for name in ("lower1", "lower2", "upper", "work", "target"):
        (directory / name).mkdir()
    (directory / "lower1" / "both").write_text("first")
    (directory / "lower2" / "both").write_text("second")
    (directory / "lower2" / "second").write_text("second")
    return directory


def make_file_system(directory: Path, kind: str, *options: str, size: int) -> Path:
    """Make a file system in a file, mount it, and return where. The test unmounts it."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind}")
    image, target = directory / f"{kind}.img", directory / kind
    filesystems.make_file_system(image, kind, *options, size_bytes=size)
    filesystems.mount_image(image, target)
    return target


@pytest.fixture
def btrfs(directory: Path) -> Iterator[Path]:
    """A file system with reflinks."""
    target = make_file_system(directory, "btrfs", size=128 * 2**20)
    yield target
    kernel.detach(target)


@pytest.fixture
def without_types(directory: Path) -> Iterator[Path]:
    """A file system whose directory entries have no types."""
    target = make_file_system(directory, "ext4", "-O", "^filetype", size=8 * 2**20)
    yield target
    kernel.detach(target)
