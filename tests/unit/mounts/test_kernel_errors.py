"""StepError, and what is refused before any system call."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.mounts import _calls, filetrees, kernel, overlayfs, stubfill
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import IdMapping, OwnedFd

NUL = Path("/tmp/a\0b")


def failure(step: bytes, *, index: int = -1, subject: bytes = b"", message: bytes = b"") -> object:
    """A struct nsnap_failure as the C core fills it. The step stays alive for as long as the test module."""
    filled = _calls.ffi.new("struct nsnap_failure *")
    KEEP.append(_calls.ffi.new("char[]", step))
    filled.step = KEEP[-1]
    filled.index = index
    filled.subject = subject
    filled.message = message
    return filled


KEEP: list[object] = []


def test_a_result_that_is_no_error_is_returned():
    """Zero, descriptors and counts pass."""
    assert _calls.check(0, failure(b"")) == 0
    assert _calls.check(7, failure(b"")) == 7


def test_an_error_has_errno_step_and_path():
    """A failed call is an OSError with all that an ordinary handler looks at."""
    with pytest.raises(OSError, match=r"^move_mount: No such file or directory: '/some/where'$") as caught:
        _calls.check(-errno.ENOENT, failure(b"move_mount"), "/some/where")
    error = caught.value
    assert isinstance(error, StepError)
    assert (error.errno, error.strerror) == (errno.ENOENT, "No such file or directory")
    assert (error.step, error.filename, error.detail) == ("move_mount", "/some/where", "")


def test_an_error_in_a_row_of_paths_names_the_one():
    """failure->index picks the path."""
    with pytest.raises(StepError) as caught:
        _calls.check(-errno.EINVAL, failure(b"fsconfig lowerdir+", index=1), "/target", row=["/a", "/b"])
    assert caught.value.filename == "/b"


def test_an_index_outside_the_row_is_no_second_error():
    """A number that the row does not have leaves the call's own path."""
    with pytest.raises(StepError) as caught:
        _calls.check(-errno.EINVAL, failure(b"x", index=2), "/target", row=["/a", "/b"])
    assert caught.value.filename == "/target"


def test_subject_and_message_follow_in_parentheses():
    """An option or entry, and the kernel's words, come behind the path."""
    filled = failure(b"fsconfig option", subject=b"foo=bar", message=b"overlay: Unknown parameter 'foo'")
    with pytest.raises(StepError) as caught:
        _calls.check(-errno.EINVAL, filled)
    expected = "fsconfig option: Invalid argument ('foo=bar': overlay: Unknown parameter 'foo')"
    assert str(caught.value) == expected


def test_bytes_that_are_no_text_do_not_break_the_message():
    """Names on disk are any bytes; the error still forms."""
    with pytest.raises(StepError, match=r"unlinkat: Device or resource busy \('\\udcff'\)"):
        _calls.check(-errno.EBUSY, failure(b"unlinkat", subject=b"\xff"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: overlayfs.create_overlay(lowerdirs=[NUL]),
        lambda: overlayfs.create_overlay(lowerdirs=[Path("/")], datadirs=[NUL]),
        lambda: overlayfs.create_overlay(lowerdirs=[Path("/")], upperdir=NUL, workdir=Path("/")),
        lambda: overlayfs.create_overlay(lowerdirs=[Path("/")], upperdir=Path("/"), workdir=NUL),
        lambda: overlayfs.create_overlay(lowerdirs=[Path("/")], options=["index=\0off"]),
        lambda: kernel.clone_tree(NUL, recursive=False),
        lambda: kernel.attach(OwnedFd(-1), NUL),
        lambda: kernel.forget_names(NUL),
        lambda: kernel.unmount(NUL),
        lambda: kernel.detach(NUL),
        lambda: kernel.probe_mount(NUL),
        lambda: filetrees.open_directory(NUL),
        lambda: filetrees.open_beneath(Path("/"), "a\0b"),
        lambda: stubfill.fill_stub(Path("/"), store=Path("/"), names=["a\0b"], redirect_xattr=None),
        lambda: stubfill.fill_stub(Path("/"), store=Path("/"), names=["a"], redirect_xattr="user.\0"),
        lambda: stubfill.fill_stub_trees(Path("/"), store=Path("/"), names=["a\0b"], xattr_prefix="user."),
        lambda: stubfill.fill_stub_trees(Path("/"), store=Path("/"), names=["a"], xattr_prefix="user.\0"),
        lambda: filetrees.remove_tree(Path("/") / "tmp" / "a\0b"),
        lambda: filetrees.disk_usage(NUL),
        lambda: filetrees.shift_owners(NUL, IdMapping(uids=(), gids=())),
    ],
)
def test_a_nul_is_refused(call):
    """C would take the text before the NUL for the whole: another path than the caller named."""
    with pytest.raises(InvalidArgumentError, match="NUL"):
        call()


def test_a_comma_in_an_overlay_option_is_refused():
    """In the text that mount(2) takes it would be two options, the second not the caller's."""
    with pytest.raises(InvalidArgumentError, match="comma"):
        overlayfs.create_overlay(lowerdirs=[Path("/")], options=["index=off,upperdir=/etc"])


def test_a_closed_descriptor_is_refused():
    """What was closed is not passed on as whatever now has that number."""
    closed = OwnedFd(-1)
    with pytest.raises(ValueError, match="closed"):
        kernel.set_attributes(closed, readonly=True)


def test_names_without_an_end_are_refused_by_the_c_core(tmp_path):
    """It would read beyond them; `fill_stub` never passes such."""
    counts = _calls.ffi.new("struct nsnap_stub_counts *")
    filled = failure(b"")
    with filetrees.open_directory(tmp_path) as opened:
        fd = opened.fileno()
        result = _calls.lib.nsnap_stub_fill(fd, fd, b"name", 4, True, _calls.ffi.NULL, b"/", counts, filled)
    assert result == -errno.EINVAL
    assert _calls.ffi.string(filled.step) == b"stub names"


def test_a_propagation_that_there_is_not_is_refused_by_the_c_core():
    """The enum has five members; `set_attributes` never passes another."""
    attributes = _calls.ffi.new("struct nsnap_attributes *", {"propagation": 99, "userns_fd": -1})
    filled = failure(b"")
    assert _calls.lib.nsnap_set_attributes(-1, attributes, False, filled) == -errno.EINVAL
    assert _calls.ffi.string(filled.step) == b"mount_setattr"
