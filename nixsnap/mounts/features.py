"""What this kernel and these file systems can do, found out by trying it.

Never by version number: distributions carry features back, administrators and user namespaces take them away. Each
function works in a temporary directory of its own under the given one and leaves nothing there, whatever happens.
What cannot be tried at all, such as making that directory, raises `OSError`.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts import filetrees, fuse, kernel, overlayfs, stubfill
from nixsnap.mounts.idmapped import mount_idmapped, user_namespace
from nixsnap.mounts.operations import OverlayMount
from nixsnap.mounts.trial import Feature, attempted, directories, mounted, unmounting
from nixsnap.mounts.values import ID_END, IdMapping, IdRange

REDIRECT_XATTR = "trusted.overlay.redirect"

# One id is enough to see whether a file system can be idmapped; neither it nor its target need exist.
_ONE_ID = (IdRange(container_id=0, host_id=1, length=1),)


def mounts(root: Path) -> Feature:
    """Return whether anything can be mounted in this mount namespace: its user namespace's root can."""
    try:
        kernel.clone_tree(root, recursive=False).close()
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return Feature(str(error))
    return Feature()


def trusted_xattrs(root: Path) -> Feature:
    """Return whether `trusted.*` attributes can be set below a directory: only real root can, and not everywhere."""

    def attempt(scratch: Path) -> str | None:
        try:
            os.setxattr(scratch, "trusted.overlay.nixsnap", b"y")
        except OSError as error:
            return f"no trusted.* attributes in {root}: {error.strerror}"
        return None

    return attempted(root, attempt)


def d_type(root: Path) -> Feature:
    """Return whether directory entries come with their type below a directory, which overlayfs wants of an upperdir.

    XFS made with `ftype=0` is the file system that does not do so.
    """

    def attempt(scratch: Path) -> str | None:
        (scratch / "entry").touch()
        if filetrees.directory_has_types(scratch):
            return None
        return f"the file system of {root} does not keep types in directory entries"

    return attempted(root, attempt)


def overlay(root: Path, *, userxattr: bool = False) -> Feature:
    """Return whether an overlay with several lowerdirs and an upperdir can be mounted, and written to."""

    def attempt(scratch: Path) -> None:
        first, second, upper, work, target = directories(scratch, "first second upper work target")
        (second / "lower").mkdir()
        mount = OverlayMount(
            lowerdirs=(first, second),
            upperdir=upper,
            workdir=work,
            options=("userxattr",) if userxattr else (),
        )
        with mounted(mount, target):
            (target / "file").write_text("y")
            (target / "lower").rmdir()  # leaves a whiteout, which is a device file,
            (target / "lower").mkdir()  # and this an attribute that hides what is below

    return attempted(root, attempt)


def overlay_redirect(root: Path, store: Path) -> Feature:
    """Return whether a rootfs view works: a stub directory that redirects into a store at the bottom of an overlay.

    A small store is made below `root` for that, and `store`, if it is there, lies under it as it will in real views.
    """

    def attempt(scratch: Path) -> str | None:
        small, stub, upper, work, target = directories(scratch, "store stub upper work target")
        directories(small, "entry")
        (small / "entry" / "file").write_text("seen")
        (below,) = directories(stub, "below")
        stubfill.fill_stub(below, store=small, names=["entry"], redirect_xattr=REDIRECT_XATTR)
        mount = OverlayMount(
            lowerdirs=(stub, small, store) if store.is_dir() else (stub, small),
            upperdir=upper,
            workdir=work,
            options=("redirect_dir=follow", *index_off()),
        )
        with mounted(mount, target):
            seen = target / "below" / "entry" / "file"
            if seen.is_file() and seen.read_text() == "seen":
                return None
            return "overlayfs does not follow redirects of lower directories"

    return attempted(root, attempt)


def overlay_data_only(root: Path, store: Path, *, userxattr: bool = False) -> Feature:
    """Return whether a rootfs view works whose files have their data in a data-only layer (in namespaces: Linux 6.16).

    A small store is made below `root`, and the overlay that shows it becomes a layer of another. `store`, if it is
    there, lies under it as it will in real views: it may itself be an overlay, and they do not stack higher then.
    """

    def attempt(scratch: Path) -> str | None:
        small, stub, layer, upper, work, target = directories(scratch, "store stub layer upper work target")
        directories(small, "entry")
        (small / "entry" / "file").write_text("seen")
        (below,) = directories(stub, "below")
        prefix = "user.overlay." if userxattr else "trusted.overlay."
        options = [*(["userxattr"] if userxattr else []), *index_off()]
        stubfill.fill_stub_trees(
            below, store=small, names=["entry"], xattr_prefix=prefix, keep_ids=not userxattr
        )
        shown = OverlayMount(
            lowerdirs=(stub,),
            datadirs=(small, store) if store.is_dir() else (small,),
            options=options,
            readonly=True,
        )
        with shown.create() as tree:
            mount = OverlayMount(lowerdirs=(stub, layer), upperdir=upper, workdir=work, options=options)
            with mount.create(trees={stub: tree}) as view:
                kernel.attach(view, target)
        with unmounting(target):
            seen = target / "below" / "entry" / "file"
            if seen.is_file() and seen.read_text() == "seen":
                return None
            return "overlayfs does not follow files into data-only layers"

    return attempted(root, attempt)


def bind_in_overlay(root: Path, *, userxattr: bool = False) -> Feature:
    """Return whether a rootfs view works that shows store paths by bind mounts on an overlay."""

    def attempt(scratch: Path) -> None:
        store, first, second, upper, work, target = directories(
            scratch, "store first second upper work target"
        )
        directories(first, "entry")
        options = [*(["userxattr"] if userxattr else []), *index_off()]
        mount = OverlayMount(lowerdirs=(first, second), upperdir=upper, workdir=work, options=options)
        with mounted(mount, target):
            kernel.bind_mount(store, target / "entry", recursive=False, readonly=True)

    return attempted(root, attempt)


def fuse_overlay(root: Path) -> Feature:
    """Return whether fuse-overlayfs is here and mounts an overlay that can be written to."""

    def attempt(scratch: Path) -> str | None:
        if shutil.which(fuse.PROGRAM) is None:
            return f"there is no {fuse.PROGRAM} on PATH"
        lower, upper, work, target = directories(scratch, "lower upper work target")
        (lower / "file").write_text("seen")
        fuse.mount(OverlayMount(lowerdirs=(lower,), upperdir=upper, workdir=work), target)
        with unmounting(target):
            (target / "file").write_text("changed")
        return None

    return attempted(root, attempt)


def has_all_ids() -> bool:
    """Return whether every id means the same here as on the host: so outside user namespaces (user_namespaces(7))."""
    return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(ID_END)]


def needs_userxattr(root: Path) -> Feature:
    """Return whether overlays here keep their marks in `user.*` attributes: so in user namespaces (Linux 5.11)."""
    if trusted_xattrs(root):
        return Feature("trusted.* attributes can be set")
    return overlay(root, userxattr=True)


def index_off() -> list[str]:
    """Return the option that turns the inode index off, if overlayfs has one to turn off.

    With it, directories of removed snapshots stay in use for as long as another mount shares a lower layer.
    """
    return ["index=off"] if supports_index() else []


def supports_index() -> Feature:
    """Return whether overlayfs knows the `index` option (Linux 4.13): an unknown option is an error."""
    if Path("/sys/module/overlay/parameters/index").exists():
        return Feature()
    return Feature("overlayfs has no parameter named index")


def overlay_default(option: str) -> bool:
    """Return whether overlayfs turns an option on for mounts that do not mention it (a module parameter)."""
    parameter = Path(f"/sys/module/overlay/parameters/{option}")
    return parameter.exists() and parameter.read_text(encoding="ascii").strip() in {"Y", "on"}


def appends_lowerdirs() -> Feature:
    """Return whether lower layers can be given one by one ("lowerdir+"), so that their paths need not fit a page."""
    try:
        return Feature() if overlayfs.appends_lowerdirs() else Feature("overlayfs does not know lowerdir+")
    except OSError as error:
        return Feature(str(error))


def idmapped_mounts(path: Path) -> Feature:
    """Return whether the file system at a path can be mounted with mapped ids. Nothing is written there."""
    try:
        with (
            kernel.create_user_namespace(_ONE_ID, _ONE_ID) as userns,
            kernel.clone_tree(path, recursive=False) as tree,
        ):
            kernel.set_attributes(tree, userns=userns)
    except OSError as error:
        return Feature(f"{path}: {error}")
    return Feature()


def idmapped_layers(root: Path) -> Feature:
    """Return whether layers below a directory can lie in an overlay with mapped ids (Linux 5.19)."""

    def attempt(scratch: Path) -> str | None:
        lower, upper, work, target = directories(scratch, "lower upper work target")
        (lower / "file").touch()
        mount = OverlayMount(lowerdirs=(lower,), upperdir=upper, workdir=work)
        with user_namespace(IdMapping(uids=_ONE_ID, gids=_ONE_ID)) as userns:
            mount_idmapped(mount, target, trees=[lower], userns=userns, staging=scratch / "staging")
        try:
            seen = (target / "file").stat().st_uid
        finally:
            kernel.detach(target)
        return None if seen == _ONE_ID[0].host_id else "overlayfs does not show mapped owners"

    try:
        return attempted(root, attempt)
    except FailedPreconditionError as error:
        return Feature(str(error))
