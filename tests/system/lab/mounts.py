"""What is mounted, as /proc/self/mountinfo tells it, and taking it down again."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import attrs

MNT_DETACH = 2
CLONE_NEWNS, MS_REC, MS_SLAVE = 0x20000, 0x4000, 0x80000
_OCTAL = re.compile(r"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


@attrs.frozen(kw_only=True)
class Mount:
    """One line of mountinfo: where it is attached, the file system's type, its source and its options."""

    mount_id: int
    point: Path
    root: str
    fs_type: str
    source: str
    options: str


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes (proc_pid_mountinfo(5))."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def _parse(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    mount_id, _, _, root, point, mount_options, *_ = before.split(" ")
    fs_type, source, super_options = after.split(" ")[:3]
    return Mount(
        mount_id=int(mount_id),
        point=Path(_unescape(point)),
        root=_unescape(root),
        fs_type=fs_type,
        source=_unescape(source),
        options=f"{mount_options},{_unescape(super_options)}",
    )


def mounts(pid: int | None = None) -> list[Mount]:
    """Every mount of this mount namespace, or of a process's, in the kernel's order: a later one may hide others."""
    with Path(f"/proc/{pid or 'self'}/mountinfo").open(encoding="utf-8", errors="surrogateescape") as file:
        return [_parse(line.rstrip("\n")) for line in file]


def mount_count() -> int:
    """How many mounts this mount namespace holds."""
    return len(mounts())


def mounts_below(directory: Path) -> list[Mount]:
    """The mounts attached at `directory` or beneath it."""
    return [mount for mount in mounts() if mount.point.is_relative_to(directory)]


def unmount_below(directory: Path) -> list[Path]:
    """Detach every mount at or beneath `directory`, the newest first; return where they were."""
    points = [mount.point for mount in reversed(mounts_below(directory))]
    for point in points:
        _check("umount2", _libc.umount2(os.fsencode(point), MNT_DETACH), str(point))
    return points


def part_from_host() -> None:
    """Give this process a mount namespace of its own: what it mounts, nobody else sees."""
    _check("unshare", _libc.unshare(CLONE_NEWNS))
    _check("mount", _libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "/")


def _check(call: str, result: int, *path: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", *path)
