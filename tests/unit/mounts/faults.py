"""Makes system calls fail on cue, for one thread and one call: a seccomp filter that answers with an errno.

The kernel does not see the call at all, so this also stands in for kernels that do not have it (ENOSYS), and, with
errno 0, for those that take an argument without looking at it. The filter lives as long as its thread, and the other
threads never notice.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_AT_FDCWD = -100
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = (
    0x20,
    0x15,
    0x06,
)  # linux/filter.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K

_COLUMN = {"x86_64": 0, "aarch64": 1}
# asm/unistd_64.h and asm-generic/unistd.h. glibc's fstat() is newfstatat on x86-64 from 2.33 to 2.38.
_NUMBERS = {
    "clone3": (435, 435),
    "fchdir": (81, 50),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "ftruncate": (77, 46),
    "getdents64": (217, 61),
    "ioctl": (16, 29),
    "linkat": (265, 37),
    "lseek": (8, 62),
    "mkdirat": (258, 34),
    "mmap": (9, 222),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "newfstatat": (262, 79),
    "open_tree": (428, 428),
    "openat": (257, 56),
    "openat2": (437, 437),
    "readlinkat": (267, 78),
    "sendfile": (40, 71),
    "statx": (332, 291),
    "symlinkat": (266, 36),
    "umount2": (166, 39),
    "unlinkat": (263, 35),
    "unshare": (272, 97),
    "utimensat": (280, 88),
    "write": (1, 64),
}

Result = TypeVar("Result")


@attrs.frozen
class Fault:
    """A system call that fails, or only seems to succeed (errno 0)."""

    call: str
    errno: int
    argument: tuple[int, int] | None = None
    """Only if this argument, counted from 0, has this value."""
    below_descriptor: bool = False
    """Only if the first argument is a directory's descriptor, not AT_FDCWD: Python's own opens are let pass."""


def _instruction(code: int, when_true: int, when_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, when_true, when_false, value & 0xFFFFFFFF)


def _program(faults: tuple[Fault, ...]) -> bytes:
    """Return the filter: what matches none of the faults is allowed."""
    column = _COLUMN[platform.machine()]
    program = b""
    for fault in faults:
        body = _instruction(_RETURN, 0, 0, _RET_ERRNO | fault.errno)
        if fault.argument is not None:
            index, value = fault.argument
            body = (
                _instruction(_LOAD_WORD, 0, 0, 16 + 8 * index)  # the low half, on little-endian machines
                + _instruction(_JUMP_IF_EQUAL, 0, 1, value)
                + body
            )
        if fault.below_descriptor:
            body = (
                _instruction(_LOAD_WORD, 0, 0, 16)
                + _instruction(_JUMP_IF_EQUAL, len(body) // 8, 0, _AT_FDCWD)
                + body
            )
        program += _instruction(_LOAD_WORD, 0, 0, 0)
        program += _instruction(_JUMP_IF_EQUAL, 0, len(body) // 8, _NUMBERS[fault.call][column])
        program += body
    return program + _instruction(_RETURN, 0, 0, _RET_ALLOW)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _install(faults: tuple[Fault, ...]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    text = _program(faults)
    program = _Program(len(text) // 8, text)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


def with_faults(action: Callable[[], Result], *faults: Fault) -> Result:
    """Return what the action returns, or raise what it raises, while these calls fail."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            _install(faults)
            outcome["result"] = action()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            outcome["error"] = error

    thread = threading.Thread(daemon=True, target=run)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
