"""Mounting rootfs views whose owners are mapped, for containers in user namespaces.

The layers, the stub layers and the store come into the overlay idmapped: nothing is chowned, and containers with
different ids share them all. The upper layer is not idmapped, so what a container writes belongs to its ids outside.
Where store paths are mounts of their own, containerd mounts them out of a clone of the store that is attached for it.

Where a file system cannot be idmapped there is a way out that costs a copy of each file of the image's own layers,
and that nobody gets without having asked for it (`slow_chown`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from nixsnap.config import StoreView
from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.idmapped import clone_idmapped, mount_idmapped, user_namespace
from nixsnap.mounts.trial import Feature
from nixsnap.mounts.values import IdMapping
from nixsnap.snapshots.layout import TEMPORARY_PREFIX, Layout
from nixsnap.snapshots.views import ViewPlan

log = logging.getLogger(__name__)

# Beside `fs` in the upper layer, where no container sees it.
_CHOWNED: Final = "chowned"


@attrs.frozen(kw_only=True)
class MappedMounter:
    """Mounts the overlays of views with mapped ids.

    Attributes:
        layout: Where layers lie.
        store: Where the store lies on this host.
        store_dir: Where containers see it.
        idmapped_layers: Whether overlays take idmapped layers here.
        slow_chown: Copy layers and give the copies to the mapped ids where they cannot be idmapped.
    """

    layout: Layout
    store: Path
    store_dir: Path
    idmapped_layers: Feature
    slow_chown: bool = False

    def check(self) -> None:
        """Make sure that a snapshot with mapped ids can be had at all.

        Raises:
            FailedPreconditionError: It cannot.
        """
        if not self.idmapped_layers and not self.slow_chown:
            raise FailedPreconditionError(
                f"no container can have mapped ids here: {self.idmapped_layers.missing}"
            )

    def mount(self, plan: ViewPlan, mapping: IdMapping, *, plainly: Callable[[Path], None]) -> None:
        """Mount a view's overlay with the owners of its lower layers mapped.

        Args:
            plan: The view.
            mapping: The ids.
            plainly: Mounts it, with owners as they are, at the directory that it is given.

        Raises:
            FailedPreconditionError: A file system, or the kernel, cannot idmap, and nobody asked for copies; or they
                cannot be had.
            StepError: The kernel refused for another reason. Nothing is mounted then.
        """
        try:
            self._mount_idmapped(plan, mapping)
        except FailedPreconditionError as exc:
            if not self.slow_chown:
                raise
            self._mount_chowned(plan, mapping, plainly, reason=str(exc))

    def _mount_idmapped(self, plan: ViewPlan, mapping: IdMapping) -> None:
        self.check()
        if not self.idmapped_layers:
            raise FailedPreconditionError(str(self.idmapped_layers.missing))
        if plan.kind is StoreView.FUSE and plan.nix_layers:
            raise FailedPreconditionError(
                f"a rootfs view of kind {plan.kind.value} cannot show mapped ids",
                hint="set store_view = overlay, with the root on a file system that has trusted.* attributes",
            )
        with user_namespace(mapping) as userns:
            mount_idmapped(
                plan.overlay,
                plan.target,
                trees=self._trees(plan),
                nested=plan.store_overlays,
                userns=userns,
                staging=plan.target.with_name(f"{TEMPORARY_PREFIX}{plan.target.name}-layers"),
            )

    def attach_store(self, plan: ViewPlan) -> bool:
        """Mount the store with the owners that it has in a view, for containerd to mount store paths from.

        containerd itself does not idmap bind mounts that are read-only (`core/mount/mount_linux.go`: it remounts them
        read-only, and returns), but what it clones out of an idmapped mount stays idmapped.

        Returns:
            Whether it is mounted; if not, store paths are to show their owners as they are, as configured.

        Raises:
            FailedPreconditionError: The store's file system, or the kernel, cannot idmap, and nobody asked for copies.
            StepError: The kernel refused for another reason. Nothing is mounted then.
        """
        target = plan.mapped_store
        if plan.mapping is None or target is None:
            return False
        with contextlib.ExitStack() as stack:
            try:
                userns = stack.enter_context(user_namespace(plan.mapping))
                clone = stack.enter_context(clone_idmapped(self.store, userns=userns))
            except FailedPreconditionError as exc:
                if not self.slow_chown:
                    raise
                log.warning(
                    "store paths stay nobody's, as configured view=%s reason=%r", plan.target, str(exc)
                )
                return False
            target.mkdir(mode=0o700, exist_ok=True)
            kernel.attach(clone, target)
        return True

    def _trees(self, plan: ViewPlan) -> list[Path]:
        """The directories that hold lower layers; each may be a file system of its own."""
        layers = {*plan.overlay.lowerdirs}
        layers.update(path for _, overlay in plan.store_overlays for path in overlay.datadirs)
        trees = (self.layout.snapshots, self.layout.stubs, self.store)
        return [tree for tree in trees if any(layer.is_relative_to(tree) for layer in layers)]

    def _mount_chowned(
        self, plan: ViewPlan, mapping: IdMapping, plainly: Callable[[Path], None], *, reason: str
    ) -> None:
        """Mount a view as it is, after the files of its layers have been given away in it, once in its life."""
        upperdir = plan.overlay.upperdir
        if upperdir is None:
            raise FailedPreconditionError(
                f"a read-only view cannot have copies of files that belong to the mapped ids, and {reason}"
            )
        if not (upperdir / _CHOWNED).exists():
            log.warning(
                "chowning copies of an image's files, as configured; the store's stay nobody's view=%s reason=%r",
                plan.target,
                reason,
            )
            self._give_away(plan, upperdir, mapping, plainly)
        plainly(plan.target)

    def _give_away(
        self, plan: ViewPlan, upperdir: Path, mapping: IdMapping, plainly: Callable[[Path], None]
    ) -> None:
        """Chown the files where no container finds them: a daemon that ends meanwhile leaves no view half done."""
        files = plan.files.relative_to(plan.target)
        if any((upperdir / files).iterdir()):  # some may be given away, and would be for a second time
            raise FailedPreconditionError(
                f"{upperdir} has files already, of a container or of chowning that was interrupted",
                hint="remove the container and create it again",
            )
        staging = plan.target.with_name(f"{TEMPORARY_PREFIX}{plan.target.name}-chown")
        staging.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(staging.rmdir)
            plainly(staging)
            stack.callback(kernel.unmount, staging)
            self._chown(staging / files, mapping)
            (staging / _CHOWNED).touch()

    def _chown(self, files: Path, mapping: IdMapping) -> None:
        """Give away all but what is in store paths, which would copy the closure."""
        try:
            store = filetrees.open_beneath(
                files, str(self.store_dir.relative_to("/")), flags=os.O_PATH | os.O_DIRECTORY
            )
        except StepError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            filetrees.shift_owners(files, mapping)
            return
        with store:
            filetrees.shift_owners(files, mapping, shallow=store)
