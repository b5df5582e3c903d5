"""Nothing stays behind when a call is made many times, whether it succeeds or fails.

Descriptors are checked around every test of this directory (conftest.py); here it is memory, and both together in
great number, as psutil's tests/test_memleaks.py does it.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest

from nixsnap.mounts import filetrees, kernel, overlayfs, stubfill
from nixsnap.mounts.values import IdMapping

USER = "user.overlay."
NO_IDS = IdMapping(uids=(), gids=())
ROUNDS = 500
ALLOWED_BYTES = ROUNDS * 16  # any leak is larger: the smallest block of malloc is 24 bytes


class MallocInfo(ctypes.Structure):
    """struct mallinfo2 (malloc.h, glibc 2.33)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def allocated_bytes() -> int:
    """What malloc has given out and not got back."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocInfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


def open_descriptors() -> int:
    """How many descriptors are open, and one for the directory that lists them."""
    return len(list(Path("/proc/self/fd").iterdir()))


def fails(call) -> None:
    """A call that is to fail."""
    with pytest.raises(OSError, match=":"):
        call()


@pytest.fixture
def tree(tmp_path) -> Path:
    """Enough directories for the walk's arrays to be allocated."""
    for number in range(10):
        (tmp_path / "tree" / str(number) / "below").mkdir(parents=True)
    return tmp_path / "tree"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library has no mallinfo2")
@pytest.mark.parametrize(
    "call",
    [
        filetrees.disk_usage,
        lambda tree: fails(lambda: filetrees.disk_usage(tree / "absent")),
        kernel.probe_mount,
        lambda tree: filetrees.open_beneath(tree, "1/below").close(),
        lambda tree: fails(lambda: filetrees.open_beneath(tree, "../x")),
        lambda tree: filetrees.remove_tree(tree / "absent"),
        lambda tree: fails(
            lambda: stubfill.fill_stub(tree, store=tree.parent, names=["absent"], redirect_xattr=None)
        ),
        lambda tree: (
            stubfill.fill_stub(tree / "1", store=tree, names=["2", "3"], redirect_xattr=None),
            filetrees.remove_tree(tree / "1" / "2"),
            filetrees.remove_tree(tree / "1" / "3"),
        ),
        lambda tree: (
            fails(
                lambda: stubfill.fill_stub_trees(
                    tree / "1",
                    store=tree,
                    names=["2", "absent"],
                    xattr_prefix=USER,
                    donors=[tree, tree / "absent"],
                )
            )
            or filetrees.remove_tree(tree / "1" / "2")
        ),
        lambda tree: (
            stubfill.fill_stub_trees(
                tree / "1", store=tree, names=["2", "3"], xattr_prefix=USER, donors=[tree]
            ),
            filetrees.remove_tree(tree / "1" / "2"),
            filetrees.remove_tree(tree / "1" / "3"),
        ),
        lambda tree: ((tree / "9" / "x").mkdir(parents=True), filetrees.remove_tree(tree / "9")),
        lambda tree: filetrees.shift_owners(tree, NO_IDS),
        lambda tree: fails(lambda: filetrees.shift_owners(tree / "absent", NO_IDS)),
        lambda tree: fails(lambda: overlayfs.create_overlay(lowerdirs=[tree / "absent"])),
    ],
    ids=[
        "disk usage",
        "disk usage that fails",
        "probe",
        "open beneath",
        "open beneath that fails",
        "removal of nothing",
        "stub that fails",
        "stub",
        "stub tree that fails",
        "stub tree",
        "removal",
        "owners",
        "owners that fail",
        "overlay that fails",
    ],
)
def test_no_memory_and_no_descriptor_leaks(tree, call):
    """Hundreds of calls allocate no more than one."""
    for _ in range(20):  # caches fill
        call(tree)
    gc.collect()
    memory, descriptors = allocated_bytes(), open_descriptors()
    for _ in range(ROUNDS):
        call(tree)
    gc.collect()
    assert open_descriptors() == descriptors
    assert allocated_bytes() - memory < ALLOWED_BYTES
