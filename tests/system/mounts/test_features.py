"""What this kernel can do, and what it says where it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import Fault, with_faults
from lab import mounts_below

from nixsnap.mounts import features, overlayfs

EVERY = (
    features.trusted_xattrs,
    features.d_type,
    features.overlay,
    lambda root: features.overlay_redirect(root, Path("/nix/store")),
    features.needs_userxattr,
    features.idmapped_mounts,
)


@pytest.fixture(autouse=True)
def nothing_stays(directory):
    """No file is left where something was tried; the `directory` fixture sees to mounts."""
    yield
    overlayfs.appends_lowerdirs.cache_clear()
    assert list(directory.rglob(".probe-*")) == []


def test_real_root_has_what_rootfs_views_need(directory):
    """On any file system that containerd runs on."""
    assert features.trusted_xattrs(directory)
    assert features.d_type(directory)
    assert features.overlay(directory)
    assert features.overlay_redirect(directory, Path("/nix/store"))


def test_a_store_that_is_not_there_does_not_matter(directory):
    """Nix may come later."""
    assert features.overlay_redirect(directory, directory / "absent")


def test_real_root_needs_no_userxattr(directory):
    """And the answer says why."""
    feature = features.needs_userxattr(directory)
    assert not feature
    assert feature.missing == "trusted.* attributes can be set"


def in_user_namespace(directory: Path, expression: str) -> str:
    """The value of an expression in a user namespace of its own, where nobody is real root."""
    program = f"""
from pathlib import Path
from nixsnap.mounts import features
root = Path({str(directory)!r})
print({expression})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_a_user_namespace_has_no_trusted_attributes(directory):
    """Only the initial namespace's root may set them (xattr(7))."""
    said = in_user_namespace(directory, "features.trusted_xattrs(root).missing")
    assert said == f"no trusted.* attributes in {directory}: Operation not permitted"


def test_a_user_namespace_needs_userxattr(directory):
    """Without it overlays can be mounted but not fully written to."""
    assert in_user_namespace(directory, "bool(features.needs_userxattr(root))") == "True"
    assert in_user_namespace(directory, "bool(features.overlay(root))") == "False"
    assert in_user_namespace(directory, "bool(features.overlay(root, userxattr=True))") == "True"


def test_a_user_namespace_has_no_redirects(directory):
    """The step that fails is told."""
    said = in_user_namespace(directory, "features.overlay_redirect(root, Path('/nix/store')).missing")
    assert said == "fsetxattr redirect: Operation not permitted: 'entry'"


def test_a_file_system_without_types_in_directories(without_types):
    """It is named."""
    missing = features.d_type(without_types).missing
    assert missing == f"the file system of {without_types} does not keep types in directory entries"


def test_index_can_be_turned_off():
    """overlayfs has had the parameter since Linux 4.13."""
    assert features.supports_index()
    assert features.index_off() == ["index=off"]


def test_appending_lowerdirs_is_told_either_way():
    """Whatever this kernel has, the same kernel without fsopen has not."""
    assert isinstance(bool(features.appends_lowerdirs()), bool)
    overlayfs.appends_lowerdirs.cache_clear()
    feature = with_faults(features.appends_lowerdirs, Fault("fsopen", errno.ENOSYS))
    assert feature.missing == "overlayfs does not know lowerdir+"


def test_no_overlayfs_is_a_reason():
    """ENODEV, with the step."""
    overlayfs.appends_lowerdirs.cache_clear()
    feature = with_faults(features.appends_lowerdirs, Fault("fsopen", errno.ENODEV))
    assert feature.missing is not None
    assert feature.missing.startswith("fsopen overlay: No such device")


@pytest.mark.parametrize("call", ["move_mount", "fsmount", "open_tree", "mount_setattr", "fsetxattr"])
@pytest.mark.parametrize("feature", EVERY)
def test_a_failure_at_any_step_is_a_reason_and_leaves_nothing(directory, feature, call):
    """No exception, no file, no mount."""
    result = with_faults(lambda: feature(directory), Fault(call, errno.EPERM))
    assert result.missing is None or result.missing
    assert mounts_below(directory) == []


def test_a_directory_that_is_not_there_is_an_error(directory):
    """That is not the kernel's lack."""
    with pytest.raises(FileNotFoundError):
        features.overlay(directory / "absent")


def test_redirects_that_are_not_followed_are_a_reason(directory, monkeypatch):
    """The view mounts, and shows nothing: only looking into it tells."""
    monkeypatch.setattr(features, "index_off", lambda: ["redirect_dir=nofollow"])
    missing = features.overlay_redirect(directory, Path("/nix/store")).missing
    assert missing == "overlayfs does not follow redirects of lower directories"
