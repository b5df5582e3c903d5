"""What goes into kernel calls and comes out of them."""

from __future__ import annotations

import enum
import os
import warnings
from types import TracebackType
from typing import Self

import attrs

ID_END = 2**32 - 1
"""The first number that is no id any more: all ones means "none" to chown(2)."""


class OwnedFd:
    """An open file descriptor that is closed when its owner is done with it.

    Use it in a `with` statement, or `detach` it. A descriptor of a detached mount holds that mount: closing it
    unmounts whatever has not been attached.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, which stays ours.

        Raises:
            ValueError: It was closed or detached before.
        """
        if self._fd < 0:
            raise ValueError("the descriptor is closed")
        return self._fd

    def detach(self) -> int:
        """Return the descriptor and hand it over: the caller closes it."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close it, if that has not been done."""
        if self._fd >= 0:
            os.close(self.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed descriptor {self._fd}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"OwnedFd({self._fd})"


class Propagation(enum.Enum):
    """Which mounts and unmounts below a mount are passed on, and to whom (mount_namespaces(7))."""

    PRIVATE = "private"
    SLAVE = "slave"
    SHARED = "shared"
    UNBINDABLE = "unbindable"


@attrs.frozen(kw_only=True)
class IdRange:
    """A run of user or group ids in a user namespace, and what they are outside it."""

    container_id: int = attrs.field(validator=attrs.validators.ge(0))
    """The first id inside."""
    host_id: int = attrs.field(validator=attrs.validators.ge(0))
    """The id that it is outside."""
    length: int = attrs.field(validator=attrs.validators.gt(0))
    """How many ids follow each other, the first included."""

    @length.validator
    def _stay_below_the_end(self, _attribute: attrs.Attribute[int], length: int) -> None:
        # The kernel reads numbers of 32 bits and drops what is above them: 4294967296 would map to root.
        if max(self.container_id, self.host_id) + length > ID_END:
            raise ValueError(f"ids of {self.container_id}:{self.host_id}:{length} lie beyond {ID_END - 1}")


@attrs.frozen(kw_only=True)
class IdMapping:
    """The ids of a user namespace. Its root must be among them."""

    uids: tuple[IdRange, ...]
    """Runs of user ids that do not overlap, inside or outside."""
    gids: tuple[IdRange, ...]
    """The same for group ids."""

    @property
    def root(self) -> tuple[int, int]:
        """The user and the group that are outside what root is inside."""
        return _root_of(self.uids), _root_of(self.gids)


def _root_of(ranges: tuple[IdRange, ...]) -> int:
    return next(run.host_id for run in ranges if run.container_id == 0)


@attrs.frozen(kw_only=True)
class MountProbe:
    """What a path lies on."""

    mount_id: int
    """The mount's number in /proc/self/mountinfo."""
    is_root: bool
    """Whether the path is where that mount is attached."""
    filesystem_magic: int
    """The f_type of statfs(2)."""


@attrs.frozen(kw_only=True)
class StubCounts:
    """How many stand-ins of which kind a stub layer got."""

    directories: int
    symlinks: int
    linked: int
    """Regular files that are hard links to the store's."""
    cloned: int
    """Regular files that share their blocks with the store's."""
    copied: int
    """Regular files that take up room of their own."""
    data_only: int = 0
    """Files without data that lead to the store's, made anew."""
    shared: int = 0
    """The same, hard links to those of another layer."""
    left_out: int = 0
    """Devices, pipes and sockets within store paths, which Nix makes none of."""

    @property
    def files(self) -> int:
        """All regular files."""
        return self.linked + self.cloned + self.copied + self.data_only + self.shared


@attrs.frozen(kw_only=True)
class DiskUsage:
    """The space a tree takes up, as containerd counts it."""

    inodes: int
    """Files and directories, a hard link once."""
    size_bytes: int
    """Allocated blocks, not file lengths."""
