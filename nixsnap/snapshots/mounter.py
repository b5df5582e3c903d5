"""Mounting rootfs views and taking them down again.

A view lives in the mount namespace that containerd uses and outlives the daemon. Whether one is up is asked of the
kernel each time, so no record of ours can be wrong about it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from nixsnap.config import StoreView
from nixsnap.mounts import filetrees, fuse, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.operations import BindMount
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.mapped import MappedMounter
from nixsnap.snapshots.stubs import StubMaker
from nixsnap.snapshots.views import BINDING, ViewPlan


@attrs.frozen(kw_only=True)
class ViewMounter:
    """Mounts rootfs views.

    Attributes:
        layout: Where views and layers lie.
        stubs: Makes the stub layers that are missing.
        mapped: Mounts views with mapped ids.
        store: Where the store lies on this host.
        store_dir: Where containers see it.
        readonly_store: Put a read-only mount over the store in each view.
    """

    layout: Layout
    stubs: StubMaker
    mapped: MappedMounter
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
            FailedPreconditionError: The owners cannot be shown with mapped ids; nor then.
        """
        if is_mounted(plan.target):
            if plan.kind is not StoreView.FUSE or _is_alive(plan.target):
                return False
            take_down(plan.target)
        for snapshot_id in plan.nix_layers:
            if not self.stubs.has(snapshot_id):
                below = chain[chain.index(snapshot_id) :]
                self.stubs.ensure(snapshot_id, names=names_of(snapshot_id), chain=below)
        if plan.workdir is not None:
            plan.workdir.mkdir(mode=0o700, exist_ok=True)
        plan.target.mkdir(mode=0o700, exist_ok=True)
        self._mount(plan)
        return True

    def _mount(self, plan: ViewPlan) -> None:
        if plan.mapping is None:
            _mount_overlay(plan, plan.target)
        else:
            self.mapped.mount(plan, plan.mapping, plainly=lambda target: _mount_overlay(plan, target))

    def mounted(self) -> list[int]:
        """The snapshots whose rootfs views are mounted."""
        views = (path for path in self.layout.views.iterdir() if path.name.isdecimal())
        return [int(path.name) for path in views if is_mounted(path)]

    def renew(self, snapshot_id: int) -> None:
        """Have a mounted view show store paths that were deleted and put back since it was mounted.

        Files that a container holds open stay those that were deleted, and so do store paths that are mounts of their
        own in it. A store overlay needs nothing: it looks up a file's data when that is first read, and holds it then.

        Args:
            snapshot_id: The snapshot whose view it is.

        Raises:
            StepError: The kernel refused.
        """
        kernel.forget_names(self.layout.view(snapshot_id))

    def down(self, snapshot_id: int) -> None:
        """Unmount the rootfs view of a snapshot, where there is one, and remove its mount point and work directory.

        A view that a process still uses is detached: no new one finds it, and it goes with its last user. So its work
        directory stays, until the snapshot's files go.
        """
        unused = take_down(self.layout.view(snapshot_id))
        take_down(self.layout.mapped_store(snapshot_id))
        if unused:
            filetrees.remove_tree(self.layout.work(snapshot_id))

    def handed_out(
        self, plan: ViewPlan, *, readonly: bool, names_of: Callable[[int], Sequence[str]]
    ) -> tuple[BindMount, ...]:
        """What containerd is given for a view that is up: one mount, or several if store paths are mounts of their own.

        They could be put together here and given as one recursive bind mount, were it not for containerd's temporary
        mounts (core/mount/temp.go): before a container starts it mounts the rootfs to read /etc/passwd, and ends that
        with a plain umount(2), which fails for as long as anything is mounted below (EBUSY).

        Raises:
            StepError: The kernel refused.
        """
        within = tuple(self._mounts_within(plan, names_of))
        return (BindMount(source=plan.files, recursive=not within, readonly=readonly), *within)

    def _mounts_within(self, plan: ViewPlan, names_of: Callable[[int], Sequence[str]]) -> Iterator[BindMount]:
        if self.readonly_store and plan.nix_layers and self._is_shown(plan.files, ""):
            source = plan.files / self.store_dir.relative_to("/")
            yield BindMount(source=source, recursive=False, readonly=True, within=self.store_dir)
        if plan.kind in BINDING:
            store = self._store_of(plan)
            for name in sorted({name for snapshot_id in plan.nix_layers for name in names_of(snapshot_id)}):
                source = store / name
                # The stub layer holds files and symlinks themselves. A symlink is never mounted, which would follow it.
                if stat.S_ISDIR(source.lstat().st_mode) and self._is_shown(plan.files, name):
                    yield BindMount(
                        source=source, recursive=False, readonly=True, within=self.store_dir / name
                    )

    def _store_of(self, plan: ViewPlan) -> Path:
        """Where the store lies as a view shows it; mounted there if it is not."""
        mapped = plan.mapped_store
        if mapped is None or not (is_mounted(mapped) or self.mapped.attach_store(plan)):
            return self.store
        return mapped

    def _is_shown(self, files: Path, name: str) -> bool:
        """Whether a directory of the view's store is there: a layer may have taken it away, or put a symlink there.

        Layers hold symlinks of any kind, so none is followed.
        """
        relative = self.store_dir.relative_to("/") / name
        try:
            filetrees.open_beneath(files, str(relative), flags=os.O_PATH | os.O_DIRECTORY).close()
        except StepError as exc:
            if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}:
                return False
            raise
        return True


def _mount_overlay(plan: ViewPlan, target: Path) -> None:
    """Mount a view's overlay; layers that are overlays themselves live on as its layers only."""
    if plan.kind is StoreView.FUSE:
        fuse.mount(plan.overlay, target)
        return
    if not plan.store_overlays:
        plan.overlay.mount(target)
        return
    with contextlib.ExitStack() as stack:
        trees = {path: stack.enter_context(overlay.create()) for path, overlay in plan.store_overlays}
        kernel.attach(stack.enter_context(plan.overlay.create(trees=trees)), target)


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
        except StepError as exc:
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
    except StepError as exc:
        if exc.errno == errno.ENOENT:
            return False
        if exc.errno == errno.ENOTCONN:  # of a file system in user space whose process has gone
            return True
        raise


def _is_alive(target: Path) -> bool:
    """Whether a mount answers."""
    try:
        os.statvfs(target)
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            return False
        raise
    return True
