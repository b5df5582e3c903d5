"""Mounts as values: to compare, to hand to containerd, and to perform.

Building and describing them touches nothing; only `mount` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import attrs

from nixsnap.mounts import kernel, overlayfs
from nixsnap.mounts.values import OwnedFd

_SPECIAL = re.compile(r"([\\:,])")


@attrs.frozen(kw_only=True)
class MountEntry:
    """A mount as containerd's API has it (`types.Mount`), which is also a line of fstab(5) without the target."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""
    """Where below the place that is mounted on; empty for that place itself."""


@attrs.frozen(kw_only=True)
class BindMount:
    """A directory or file, shown in another place as well."""

    source: Path
    recursive: bool = True
    """Whether mounts below the source are shown too."""
    readonly: bool
    within: Path | None = None
    """Where containerd is to mount it below its own target (from 1.7 on); None for that target itself."""
    client_options: tuple[str, ...] = ()
    """What only containerd's own mount package understands: `uidmap=` and `gidmap=`. `mount` leaves them out."""

    def describe(self) -> MountEntry:
        """Return it as containerd has it."""
        usual = ("ro" if self.readonly else "rw", "rbind" if self.recursive else "bind")
        return MountEntry(
            type="bind",
            source=str(self.source),
            options=(*self.client_options, *usual),
            target="" if self.within is None else str(self.within),
        )

    def mount(self, target: Path) -> None:
        """Mount it on a target, which is not followed if it is a symlink.

        Raises:
            StepError: As `kernel.bind_mount`.
        """
        kernel.bind_mount(self.source, target, recursive=self.recursive, readonly=self.readonly)


def _freeze_paths(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(paths)


def _freeze_options(options: Iterable[str]) -> tuple[str, ...]:
    return tuple(options)


def _pair(instance: OverlayMount, attribute: attrs.Attribute[Path | None], value: Path | None) -> None:
    if (value is None) != (instance.upperdir is None):
        raise ValueError(f"{attribute.name} and upperdir go together")


@attrs.frozen(kw_only=True)
class OverlayMount:
    """Directories laid over each other."""

    lowerdirs: tuple[Path, ...] = attrs.field(converter=_freeze_paths, validator=attrs.validators.min_len(1))
    """The layers that stay as they are, topmost first."""
    datadirs: tuple[Path, ...] = attrs.field(converter=_freeze_paths, default=())
    """Data-only layers below them all: seen only where a layer above redirects to them."""
    upperdir: Path | None = None
    """Where writes go; without one the mount is read-only."""
    workdir: Path | None = attrs.field(default=None, validator=_pair)
    """An empty directory on the file system of `upperdir`."""
    options: tuple[str, ...] = attrs.field(converter=_freeze_options, default=())
    """Other options of overlayfs, "name=value" or "name"."""
    readonly: bool = False
    """Whether it is read-only even with an `upperdir`."""
    client_options: tuple[str, ...] = ()
    """As those of `BindMount`."""
    type: str = "overlay"
    """What containerd is told to mount: the kernel's "overlay", or "fuse3.fuse-overlayfs" through mount.fuse3(8)."""

    def describe(self) -> MountEntry:
        """Return it as containerd has it, with the options in the order of its overlayfs snapshotter.

        In this form options are text that overlayfs takes apart, so its special characters are escaped.
        """
        options = [*self.client_options]
        if self.upperdir is not None and self.workdir is not None:
            options += [f"workdir={_escape(self.workdir)}", f"upperdir={_escape(self.upperdir)}"]
        lowers = ":".join(map(_escape, self.lowerdirs))
        options.append("lowerdir=" + "::".join([lowers, *map(_escape, self.datadirs)]))
        options += self.options
        if self.readonly:
            options.append("ro")
        return MountEntry(type=self.type, source="overlay", options=tuple(options))

    def create(self, *, trees: Mapping[Path, OwnedFd] = MappingProxyType({})) -> OwnedFd:
        """Return it as a detached mount.

        Args:
            trees: As for `overlayfs.create_overlay`.

        Raises:
            StepError: As `overlayfs.create_overlay`.
        """
        return overlayfs.create_overlay(
            lowerdirs=self.lowerdirs,
            datadirs=self.datadirs,
            upperdir=self.upperdir,
            workdir=self.workdir,
            options=self.options,
            readonly=self.readonly,
            trees=trees,
        )

    def mount(self, target: Path) -> None:
        """Mount it on a directory, which is not followed if it is a symlink.

        Raises:
            StepError: As `overlayfs.mount_overlay`.
        """
        overlayfs.mount_overlay(
            target,
            lowerdirs=self.lowerdirs,
            datadirs=self.datadirs,
            upperdir=self.upperdir,
            workdir=self.workdir,
            options=self.options,
            readonly=self.readonly,
        )


def _escape(path: Path) -> str:
    r"""Return a path as overlayfs reads it in an option string: a backslash before `\`, `:` and `,`."""
    return _SPECIAL.sub(r"\\\1", str(path))
