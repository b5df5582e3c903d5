"""Makes what is handed over: a detached mount of the store, idmapped, read-only, and locked so."""

from __future__ import annotations

from pathlib import Path

from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts import features, filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import OwnedFd
from nixsnap.storedoor.policy import Grant


def check_store(store: Path) -> None:
    """Return if the door can show a store.

    Raises:
        FailedPreconditionError: It is not there, not root's, or on a file system that cannot be idmapped.
        OSError: It cannot be looked at.
    """
    try:
        with filetrees.open_directory(store):
            status = store.lstat()
    except StepError as exc:
        raise FailedPreconditionError(
            f"there is no store at {str(store)!r}: {exc}",
            hint="name the directory itself, not a symlink to it, with --store",
        ) from exc
    if status.st_uid != 0:
        raise FailedPreconditionError(
            f"the store at {str(store)!r} is user {status.st_uid}'s; only root's is shown to others",
            hint="its owner needs no door, for in his own user namespace it is his already",
        )
    if missing := features.idmapped_mounts(store).missing:
        raise FailedPreconditionError(f"the store cannot be idmapped: {missing}")


def store_group(store: Path) -> int:
    """The group of the store directory."""
    return store.lstat().st_gid


def make_mount(store: Path, grant: Grant) -> OwnedFd:
    """Return a detached mount of the store, without what is mounted below it.

    Its attributes are locked. They are attributes of this mount only, and whoever has attached it in a user namespace
    of his own could else clear them, and write to the store as the owner that it shows him as.

    Raises:
        StepError: The kernel refused.
    """
    with (
        kernel.create_user_namespace(grant.uid_map, grant.gid_map) as userns,
        kernel.clone_tree(store, recursive=False) as tree,
    ):
        # No set-user-id programs: Nix leaves none in a store, but this is not where to trust in that.
        kernel.set_attributes(tree, readonly=True, nosuid=True, nodev=True, userns=userns)
        return kernel.lock_tree(tree)
