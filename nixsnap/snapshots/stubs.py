"""Stub layers: what a nix layer adds to the overlays above it.

A stub layer is made from the database and the store alone, never from what an image or a container wrote, and can be
made again at any time; so it needs no place in the database and none in a backup.

For the `data-only` kind it has a file for each file of the closure. A file is shared between all stub layers that have
it, by hard links: what several images hold is made once, and goes with the last of them, without any count of ours.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

import attrs

from nixsnap.config import StoreView
from nixsnap.mounts import filetrees, stubfill
from nixsnap.snapshots.layout import TEMPORARY_PREFIX, Layout
from nixsnap.snapshots.views import REDIRECT_XATTR, TRUSTED_XATTRS, USER_XATTRS

log = logging.getLogger(__name__)

_DEFAULT_MODE: Final = 0o755

# Stub layers to look for a store path in, before its stubs are made anew: the newest ones. Each is an open directory
# meanwhile, and a process may have 1024 open files.
_DONORS: Final = 64
# Files are made by two threads: most of the time goes into the file system, which locks a directory at a time.
_THREADS: Final = 2


@attrs.define(kw_only=True)
class StubMaker:
    """Makes stub layers.

    Attributes:
        layout: Where they lie.
        kind: The kind of rootfs view they are for.
        store: Where the store lies on this host.
        store_dir: Where containers see it.
        userxattr: Whether overlayfs keeps its marks in `user.*` attributes.
        keep_ids: Whether stubs belong to whom their store paths belong to. In a user namespace that may be nobody;
            there they are our own.
        executor: Threads for those that are begun ahead.
    """

    layout: Layout
    kind: StoreView
    store: Path
    store_dir: Path
    userxattr: bool
    keep_ids: bool
    executor: Executor
    _begun: dict[int, Future[Path]] = attrs.field(factory=dict, init=False)

    def begin(self, snapshot_id: int, *, names: Sequence[str]) -> None:
        """Begin to make a stub layer that `ensure` will be asked for, while somebody unpacks the nix layer itself.

        Never fails: what is not begun ahead is made when it is needed.

        Args:
            snapshot_id: The nix layer, which must not have one.
            names: The names of its closure's store paths.
        """
        try:
            self._begun[snapshot_id] = self.executor.submit(self._fill, snapshot_id, names)
        except RuntimeError as exc:  # we are stopping, or the system starts no more threads
            log.debug("a stub layer is not begun ahead id=%d error=%s", snapshot_id, exc)

    def has(self, snapshot_id: int) -> bool:
        """Whether the stub layer of a nix layer is there."""
        return self.layout.stub(self.kind, snapshot_id).is_dir()

    def ensure(self, snapshot_id: int, *, names: Sequence[str], chain: Sequence[int]) -> None:
        """Make the stub layer of a nix layer unless it is there.

        Args:
            snapshot_id: The nix layer.
            names: The names of its closure's store paths.
            chain: The layer itself and its ancestors, nearest first.

        Raises:
            StepError: A store path is not there (ENOENT), or the file system refuses.
        """
        target = self.layout.stub(self.kind, snapshot_id)
        begun = self._begun.pop(snapshot_id, None)
        if begun is None and target.is_dir():
            return
        temporary = self._fill(snapshot_id, names) if begun is None else begun.result()
        try:
            self._copy_all_attributes(temporary, chain=chain)
            temporary.rename(target)
        except BaseException as exc:
            filetrees.remove_tree(temporary)
            # Another call was faster, and what it made is the same.
            if isinstance(exc, OSError) and exc.errno in {errno.ENOTEMPTY, errno.EEXIST} and target.is_dir():
                return
            raise

    def remove(self, snapshot_id: int) -> None:
        """Remove the stub layers of a nix layer, those for other kinds of view too."""
        begun = self._begun.pop(snapshot_id, None)
        if begun is not None:
            with contextlib.suppress(OSError):  # then it has cleaned up after itself
                filetrees.remove_tree(begun.result())
        for directory in self.directories():
            filetrees.remove_tree(directory / str(snapshot_id))

    def directories(self) -> Iterator[Path]:
        """The directories that hold stub layers, one for each kind of view that was ever used here."""
        with os.scandir(self.layout.stubs) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))

    def _fill(self, snapshot_id: int, names: Sequence[str]) -> Path:
        """Make a stub layer under a temporary name; what a failure leaves is removed."""
        parent = self.layout.stub(self.kind, snapshot_id).parent
        parent.mkdir(mode=0o700, exist_ok=True)
        temporary = parent / f"{TEMPORARY_PREFIX}{snapshot_id}-{secrets.token_hex(4)}"
        directory = temporary / self._relative()
        try:
            directory.mkdir(parents=True)
            if self.kind is StoreView.DATA_ONLY:
                self._fill_trees(directory, names)
            else:
                self._fill_entries(directory, names)
        except BaseException:
            filetrees.remove_tree(temporary)
            raise
        return temporary

    def _fill_entries(self, directory: Path, names: Sequence[str]) -> None:
        stubfill.fill_stub(
            directory,
            store=self.store,
            names=names,
            redirect_xattr=REDIRECT_XATTR if self.kind is StoreView.OVERLAY else None,
            keep_ids=self.keep_ids,
        )

    def _fill_trees(self, directory: Path, names: Sequence[str]) -> None:
        donors = self._donors()

        def fill(part: int) -> None:
            stubfill.fill_stub_trees(
                directory,
                store=self.store,
                names=names[part::_THREADS],
                xattr_prefix=USER_XATTRS if self.userxattr else TRUSTED_XATTRS,
                donors=donors,
                keep_ids=self.keep_ids,
            )

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="stub-files") as threads:
            list(threads.map(fill, range(_THREADS)))

    def _donors(self) -> list[Path]:
        """The stub layers that may have store paths of another one, the newest first."""
        directory = self.layout.stub(self.kind, 0).parent
        ids = sorted((int(path.name) for path in directory.iterdir() if path.name.isdecimal()), reverse=True)
        return [directory / str(snapshot_id) / self._relative() for snapshot_id in ids[:_DONORS]]

    def _relative(self) -> PurePosixPath:
        return PurePosixPath("fs") / self.store_dir.relative_to("/")

    def _copy_all_attributes(self, stub: Path, *, chain: Sequence[int]) -> None:
        # Of directories that several layers hold, overlayfs shows the uppermost one's owner, mode and times. The stub
        # layer is only an artefact, so it repeats what the layers below it say. The innermost goes first, since
        # whatever is changed within a directory changes its times.
        relative = self._relative()
        for path in (relative, *relative.parents):
            self._copy_attributes(stub / path, relative=path, chain=chain)

    def _copy_attributes(self, directory: Path, *, relative: PurePosixPath, chain: Sequence[int]) -> None:
        status = self._find(relative, chain=chain)
        if status is None:
            directory.chmod(_DEFAULT_MODE)
            os.utime(directory, ns=(0, 0))
            return
        os.chown(directory, status.st_uid, status.st_gid)
        directory.chmod(stat.S_IMODE(status.st_mode))
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _find(self, relative: PurePosixPath, *, chain: Sequence[int]) -> os.stat_result | None:
        """The directory of that name in the uppermost layer that has one, whatever symlinks a layer holds."""
        for snapshot_id in chain:
            with (
                contextlib.suppress(OSError),
                filetrees.open_beneath(
                    self.layout.snapshot(snapshot_id), str(relative), flags=os.O_PATH | os.O_DIRECTORY
                ) as directory,
            ):
                return os.fstat(directory.fileno())
        return None
