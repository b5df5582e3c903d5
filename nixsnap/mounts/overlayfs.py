"""Overlays: detached, layer by layer, where the kernel can do so; else by mount(2)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from nixsnap.errors import InvalidArgumentError
from nixsnap.mounts._calls import check, encode, ffi, lib, new_failure, place, strings
from nixsnap.mounts.kernel import attach
from nixsnap.mounts.values import OwnedFd


def _locate(path: Path, trees: Mapping[Path, OwnedFd]) -> tuple[int, Path]:
    """Return the tree that a path is to be looked up in, -1 for none, and the path from there."""
    for top in (path, *path.parents):
        if top in trees:
            return trees[top].fileno(), path.relative_to(top)
    return -1, path


class _Overlay:
    """A struct nsnap_overlay, the strings that it points to, and the paths that its failures count."""

    def __init__(
        self,
        *,
        lowerdirs: Sequence[Path],
        datadirs: Sequence[Path],
        upperdir: Path | None,
        workdir: Path | None,
        options: Sequence[str],
        readonly: bool,
        trees: Mapping[Path, OwnedFd] = MappingProxyType({}),
    ) -> None:
        for option in options:
            if "," in option:
                raise InvalidArgumentError(f"a comma in the overlay option {option!r}")
        self.paths = [str(path) for path in (*lowerdirs, *datadirs, upperdir, workdir) if path is not None]
        places = [_locate(path, trees) for path in (*lowerdirs, *datadirs)]
        lowers, keep_lowers = strings([encode(path) for _, path in places[: len(lowerdirs)]])
        datas, keep_datas = strings([encode(path) for _, path in places[len(lowerdirs) :]])
        tree_fds = ffi.new("int[]", [fd for fd, _ in places]) if trees else ffi.NULL
        choices, keep_choices = strings([encode(option) for option in options])
        upper = ffi.NULL if upperdir is None else ffi.new("char[]", encode(upperdir))
        work = ffi.NULL if workdir is None else ffi.new("char[]", encode(workdir))
        self._keep = [lowers, keep_lowers, datas, keep_datas, tree_fds, choices, keep_choices, upper, work]
        self.struct = ffi.new(
            "struct nsnap_overlay *",
            {
                "lowerdirs": lowers,
                "lowerdir_count": len(lowerdirs),
                "datadirs": datas,
                "datadir_count": len(datadirs),
                "tree_fds": tree_fds,
                "upperdir": upper,
                "workdir": work,
                "options": choices,
                "option_count": len(options),
                "readonly": readonly,
            },
        )


@functools.cache
def appends_lowerdirs() -> bool:
    """Return whether overlayfs takes its lower layers one by one here ("lowerdir+", Linux 6.7).

    Where it does not, overlays are mounted by mount(2), which reads one page of options. The kernel is asked once.

    Raises:
        StepError: ENODEV: there is no overlayfs; EPERM: no right to mount.
    """
    failure = new_failure()
    return check(lib.nsnap_overlay_appends(failure), failure) == 1


def _create_overlay(overlay: _Overlay) -> OwnedFd:
    failure = new_failure()
    return OwnedFd(check(lib.nsnap_overlay_create(overlay.struct, failure), failure, row=overlay.paths))


def _mount_overlay_page(overlay: _Overlay, target: Path | OwnedFd) -> None:
    dir_fd, path, name = place(target)
    failure = new_failure()
    result = lib.nsnap_overlay_mount_page(overlay.struct, dir_fd, path, failure)
    check(result, failure, name, row=overlay.paths)


def create_overlay(
    *,
    lowerdirs: Sequence[Path],
    datadirs: Sequence[Path] = (),
    upperdir: Path | None = None,
    workdir: Path | None = None,
    options: Sequence[str] = (),
    readonly: bool = False,
    trees: Mapping[Path, OwnedFd] = MappingProxyType({}),
) -> OwnedFd:
    """Return a detached overlay mount; only where `appends_lowerdirs`.

    Args:
        lowerdirs: The lower layers, topmost first.
        datadirs: Data-only layers, which lie below all of them and only serve redirected file contents.
        upperdir: Where writes go. Without one the mount is read-only.
        workdir: An empty directory on the file system of `upperdir`, there if and only if that is.
        options: Other options of overlayfs, "name=value" or "name".
        readonly: Whether the mount is read-only even so.
        trees: Detached mounts that stand in for what is mounted at their paths: layers at or below one of these are
            looked up in it.

    Raises:
        StepError: The kernel refused; filename is the layer that it refused, where it was one. EINVAL, with `trees`:
            it may be too old for layers that are detached (Linux 6.15).
        InvalidArgumentError: An option has a comma, or something has a NUL.
    """
    return _create_overlay(
        _Overlay(
            lowerdirs=lowerdirs,
            datadirs=datadirs,
            upperdir=upperdir,
            workdir=workdir,
            options=options,
            readonly=readonly,
            trees=trees,
        )
    )


def mount_overlay(
    target: Path | OwnedFd,
    *,
    lowerdirs: Sequence[Path],
    datadirs: Sequence[Path] = (),
    upperdir: Path | None = None,
    workdir: Path | None = None,
    options: Sequence[str] = (),
    readonly: bool = False,
) -> None:
    """Mount an overlay on a directory, which is not followed if it is a symlink.

    Args: as `create_overlay`.

    Raises:
        StepError: As `create_overlay`; E2BIG: the kernel is too old for more layers than fit into a page of options.
        InvalidArgumentError: As `create_overlay`.
    """
    overlay = _Overlay(
        lowerdirs=lowerdirs,
        datadirs=datadirs,
        upperdir=upperdir,
        workdir=workdir,
        options=options,
        readonly=readonly,
    )
    if not appends_lowerdirs():
        _mount_overlay_page(overlay, target)
        return
    with _create_overlay(overlay) as tree:
        attach(tree, target)
