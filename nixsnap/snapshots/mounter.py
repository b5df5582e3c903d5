"""Mounting rootfs views and taking them down again.

A view lives in the mount namespace that containerd uses and outlives the daemon. Whether one is up is asked of the
kernel each time, so no record of ours can be wrong about it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import attrs

from nixsnap.config import StoreView
from nixsnap.mounts import kernel
from nixsnap.mounts.values import OwnedFd
from nixsnap.snapshots.layout import TEMPORARY_PREFIX, Layout
from nixsnap.snapshots.stubs import StubMaker
from nixsnap.snapshots.views import ViewPlan


@attrs.frozen(kw_only=True)
class ViewMounter:
    """Mounts rootfs views.

    Attributes:
        layout: Where views and layers lie.
        stubs: Makes the stub layers that are missing.
        store: Where the store lies on this host.
        store_dir: Where containers see it.
        readonly_store: Put a read-only mount over the store in each view.
    """

    layout: Layout
    stubs: StubMaker
    store: Path
    store_dir: Path
    readonly_store: bool = False

    def up(self, plan: ViewPlan, *, chain: Sequence[int], names_of: Callable[[int], Sequence[str]]) -> bool:
        """Mount a rootfs view unless it is mounted.

        Args:
            plan: The view.
            chain: Ids of its ancestors, nearest first.
            names_of: Gives the names of a nix layer's store paths: thousands, and mostly not needed.

        Returns:
            Whether it had to be mounted.

        Raises:
            StepError: The kernel refused; nothing is mounted then.
        """
        if is_mounted(plan.target):
            return False
        for snapshot_id in plan.nix_layers:
            if not self.stubs.has(snapshot_id):
                below = chain[chain.index(snapshot_id) :]
                self.stubs.ensure(snapshot_id, names=names_of(snapshot_id), chain=below)
        if plan.workdir is not None:
            plan.workdir.mkdir(mode=0o700, exist_ok=True)
        plan.target.mkdir(mode=0o700, exist_ok=True)
        if plan.kind is StoreView.BIND or self.readonly_store:
            self._assemble(plan, {name for snapshot_id in plan.nix_layers for name in names_of(snapshot_id)})
        else:
            plan.overlay.mount(plan.target)
        return True

    def mounted(self) -> list[int]:
        """The snapshots whose rootfs views are mounted."""
        views = (path for path in self.layout.views.iterdir() if path.name.isdecimal())
        return [int(path.name) for path in views if is_mounted(path)]

    def renew(self, snapshot_id: int, *, names: Collection[str]) -> None:
        """Have a mounted view show store paths that were deleted and put back since it was mounted.

        Files that a container holds open stay those that were deleted.

        Args:
            snapshot_id: The snapshot whose view it is.
            names: The store paths; those that the view does not show stay unseen.

        Raises:
            StepError: The kernel refused.
        """
        view = self.layout.view(snapshot_id)
        kernel.forget_names(view)
        if (directory := self._open_in_store(view / "fs", "")) is None:
            return
        with directory:
            mounted = [name for name in names if self._take_off(directory, name)]
        self._bind_store_paths(view / "fs", mounted)

    @staticmethod
    def _take_off(directory: OwnedFd, name: str) -> bool:
        """Take a store path's own mount off it; whether it had one."""
        try:
            kernel.detach(Path(f"/proc/self/fd/{directory.fileno()}/{name}"))
        except kernel.StepError as exc:
            if exc.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return False
            raise
        return True

    def down(self, snapshot_id: int) -> None:
        """Unmount the rootfs view of a snapshot, where there is one, and remove its mount point and work directory.

        A view that a process still uses is detached: no new one finds it, and it goes with its last user. So its work
        directory stays, until the snapshot's files go.
        """
        if take_down(self.layout.view(snapshot_id)):
            kernel.remove_tree(self.layout.work(snapshot_id))

    def _assemble(self, plan: ViewPlan, names: Iterable[str]) -> None:
        """Mount a view of several mounts so that it is there whole or not at all, whenever we may be killed.

        It is put together in another place, cloned with all its mounts, and the clone attached in one step. (Moving it
        would do, but the kernel moves no mount whose parent is shared, as is usual on hosts.)
        """
        staging = plan.target.with_name(f"{TEMPORARY_PREFIX}{plan.target.name}")
        staging.mkdir(mode=0o700, exist_ok=True)
        plan.overlay.mount(staging)
        try:
            if plan.kind is StoreView.BIND:
                self._bind_store_paths(staging / plan.files.name, names)
            if self.readonly_store:
                self._seal_store(staging / plan.files.name)
            with kernel.clone_tree(staging, recursive=True) as tree:
                kernel.attach(tree, plan.target)
        finally:
            kernel.detach(staging)
            staging.rmdir()

    def _bind_store_paths(self, files: Path, names: Iterable[str]) -> None:
        """Bind each store path that is a directory; the stub layer holds the files and symlinks themselves."""
        for name in sorted(names):
            source = self.store / name
            if not stat.S_ISDIR(source.lstat().st_mode):
                continue
            with contextlib.ExitStack() as stack:
                if (target := self._open_in_store(files, name)) is None:
                    continue
                stack.enter_context(target)
                tree = stack.enter_context(kernel.clone_tree(source, recursive=False))
                kernel.set_attributes(tree, readonly=True)
                kernel.attach(tree, target)

    def _seal_store(self, files: Path) -> None:
        if (target := self._open_in_store(files, "")) is None:
            return
        with target, kernel.clone_tree(target, recursive=True) as tree:
            kernel.set_attributes(tree, readonly=True, recursive=True)
            kernel.attach(tree, target)

    def _open_in_store(self, files: Path, name: str) -> OwnedFd | None:
        """Open a directory of the view's store; None where a layer took it away or put something else there.

        Layers hold symlinks of any kind, so none is followed.
        """
        relative = self.store_dir.relative_to("/") / name
        try:
            return kernel.open_beneath(files, str(relative), flags=os.O_PATH | os.O_DIRECTORY)
        except kernel.StepError as exc:
            if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}:
                return None
            raise


def take_down(view: Path) -> bool:
    """Unmount a view with all that is mounted in it, and remove its mount point; if it is not there, that is fine.

    Returns:
        Whether nobody uses it any more. Else it was detached, and goes with its last user.

    Raises:
        OSError: The kernel refused.
    """
    unused = True
    if is_mounted(view):
        try:
            kernel.unmount(view)
        except kernel.StepError as exc:
            if exc.errno not in {errno.EBUSY, errno.EINVAL}:
                raise
            if (
                exc.errno == errno.EBUSY
            ):  # in use, or there are mounts in it; EINVAL: somebody else was faster
                kernel.detach(view)
                unused = False
    with contextlib.suppress(FileNotFoundError):
        view.rmdir()
    return unused


def is_mounted(target: Path) -> bool:
    """Whether `target` is the root of a mount; a directory that is not there is none."""
    try:
        return kernel.probe_mount(target).is_root
    except kernel.StepError as exc:
        if exc.errno == errno.ENOENT:
            return False
        raise
