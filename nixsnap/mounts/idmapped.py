"""Overlays whose lower layers show other owners than they have on disk, for containers in user namespaces.

Only a detached mount can be idmapped, and overlayfs does not let itself be; so the trees that hold the layers are
cloned, the clones idmapped, and the layers looked up in the clones. overlayfs clones each layer once more for itself,
which keeps the ids, so nothing of ours stays.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts import kernel, overlayfs
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.operations import OverlayMount
from nixsnap.mounts.values import IdMapping, OwnedFd


def clone_idmapped(path: Path, *, userns: OwnedFd) -> OwnedFd:
    """Return a detached, read-only clone of what is mounted at a path, its owners mapped by a user namespace.

    Raises:
        FailedPreconditionError: The file system, or the kernel, cannot do that.
        StepError: It is not there.
    """
    with ExitStack() as stack:
        tree = stack.enter_context(kernel.clone_tree(path, recursive=False))
        try:
            kernel.set_attributes(tree, readonly=True, userns=userns)
        except StepError as exc:
            if exc.errno not in {errno.EINVAL, errno.EPERM, errno.ENOSYS}:
                raise
            raise _cannot_idmap(path, exc) from exc
        stack.pop_all()
        return tree


def mount_idmapped(
    overlay: OverlayMount,
    target: Path,
    *,
    trees: Sequence[Path],
    userns: OwnedFd,
    staging: Path,
    nested: Sequence[tuple[Path, OverlayMount]] = (),
) -> None:
    """Mount an overlay with the owners of its lower layers mapped. The upper layer stays as it is.

    Args:
        overlay: The overlay.
        target: A directory.
        trees: Directories that each hold lower layers or are one; together they hold all of them.
        userns: Whose ids the owners become.
        staging: A path whose name, with a suffix, is free to be made a mount point; only older kernels need that.
        nested: Layers that are overlays themselves, by the path that stands for them; never attached anywhere.

    Raises:
        FailedPreconditionError: The file system of one of `trees`, or the kernel, cannot do that.
        StepError: The kernel refused for another reason. Nothing is mounted then.
    """
    with ExitStack() as stack:
        clones = {path: stack.enter_context(clone_idmapped(path, userns=userns)) for path in trees}
        inner = {path: stack.enter_context(layer.create(trees=clones)) for path, layer in nested}
        if _mount_detached(overlay, target, {**clones, **inner}):
            return
        if inner:  # kernels that take files without data from a layer (6.16) take detached layers as well
            raise FailedPreconditionError("the kernel takes no detached overlays as layers")
        attached = stack.enter_context(_attached(clones, staging))
        _relocate(overlay, attached).mount(target)


@contextmanager
def user_namespace(mapping: IdMapping) -> Iterator[OwnedFd]:
    """A user namespace with these ids, for as long as the block runs.

    Raises:
        FailedPreconditionError: This machine does not allow it.
    """
    try:
        userns = kernel.create_user_namespace(mapping.uids, mapping.gids)
    except StepError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EPERM, errno.ENOSYS, errno.EUSERS}:
            raise
        raise FailedPreconditionError(
            f"cannot make a user namespace: {exc}", hint="see sysctl user.max_user_namespaces"
        ) from exc
    with userns:
        yield userns


def _mount_detached(overlay: OverlayMount, target: Path, clones: Mapping[Path, OwnedFd]) -> bool:
    """Mount with layers in mounts that are attached nowhere; False where the kernel is too old for that."""
    if not overlayfs.appends_lowerdirs():
        return False
    try:
        tree = overlay.create(trees=clones)
    except StepError as exc:
        # What else EINVAL may mean, the mount that is tried next will say again.
        if exc.errno != errno.EINVAL:
            raise
        return False
    with tree:
        kernel.attach(tree, target)
    return True


@contextmanager
def _attached(clones: Mapping[Path, OwnedFd], staging: Path) -> Iterator[dict[Path, Path]]:
    """Attach clones below names of their own, and take them off again. overlayfs needs them while it mounts."""
    with ExitStack() as stack:
        places = {}
        for number, (path, clone) in enumerate(clones.items()):
            place = staging.with_name(f"{staging.name}-{number}")
            place.mkdir(mode=0o700, exist_ok=True)
            stack.callback(place.rmdir)
            kernel.attach(clone, place)
            stack.callback(kernel.detach, place)
            places[path] = place
        yield places


def _relocate(overlay: OverlayMount, places: Mapping[Path, Path]) -> OverlayMount:
    """The overlay with its lower layers looked up in other places."""

    def moved(path: Path) -> Path:
        for top in (path, *path.parents):
            if top in places:
                return places[top] / path.relative_to(top)
        return path

    return attrs.evolve(
        overlay, lowerdirs=map(moved, overlay.lowerdirs), datadirs=map(moved, overlay.datadirs)
    )


def _cannot_idmap(path: Path, exc: StepError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path} is on a file system ({_filesystem_type(path)}) that cannot be mounted with mapped ids: {exc}",
        hint="move it to one that can, as ext4, xfs, btrfs or tmpfs, or set slow_chown = true",
    )


def _filesystem_type(path: Path) -> str:
    """The type of the file system at a path, as /proc/mounts calls it."""
    number = str(kernel.probe_mount(path).mount_id)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.split(" ", 1)[0] == number:
            return line.rpartition(" - ")[2].split(" ", 1)[0]
    return "unknown"
