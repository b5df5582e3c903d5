"""The test bed: one containerd with its own overlayfs and nixsnap side by side, and images for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
from lab import (
    Closure,
    Containerd,
    NixsnapDaemon,
    build_image,
    build_plain_image,
    load_image,
)
from lab.place import HOST, Place

from bench.layered import build_layered_image
from bench.sampling import seconds
from bench.settings import Settings

OVERLAYFS = "overlayfs"
NIX = "nix"


@attrs.frozen(kw_only=True)
class Image:
    """An image that is loaded, and the snapshotter it is unpacked in."""

    reference: str
    snapshotter: str


@attrs.define(kw_only=True, eq=False)
class Bed:
    """A running node, private to `directory`."""

    directory: Path
    nixsnap: NixsnapDaemon
    containerd: Containerd

    @classmethod
    @contextmanager
    def started(
        cls, directory: Path, settings: Settings, *, containerd_config: str = "", place: Place = HOST
    ) -> Iterator[Bed]:
        """A node that keeps all of its own in `directory` and is gone when the block ends.

        nixsnap logs as it does by default: at `info`. `containerd_config` is TOML, appended to containerd's
        configuration, and `place` is where it runs.
        """
        (directory / "n").mkdir()
        (directory / "c").mkdir()
        nixsnap = NixsnapDaemon.start(directory / "n", log_level="info", place=place)
        try:
            containerd = Containerd.start(
                settings.installation,
                directory / "c",
                snapshotter=nixsnap.address,
                extra_config=containerd_config,
                place=place,
            )
            try:
                yield cls(directory=directory, nixsnap=nixsnap, containerd=containerd)
            finally:
                containerd.stop()
        finally:
            nixsnap.destroy()

    def plain_image(self) -> Image:
        """Load the plain image, busybox as an ordinary layer, on overlayfs."""
        image = Image(reference="bench.invalid/plain:1", snapshotter=OVERLAYFS)
        archive = build_plain_image(self.directory / "plain.tar", reference=image.reference)
        self._import(archive)
        return image

    def plain_image_on_nixsnap(self) -> Image:
        """Load the same, on nixsnap."""
        image = Image(reference="bench.invalid/plain-on-nixsnap:1", snapshotter=NIX)
        archive = build_plain_image(self.directory / "plain.tar", reference=image.reference)
        # `ctr image import` of containerd 2 unpacks only for snapshotters that containerd's configuration lists.
        load_image(self.containerd, archive)
        return image

    def layered_image(self, closure: Closure) -> Image:
        """Load an ordinary image whose layer holds the closure's files, unpacked in overlayfs."""
        image = Image(reference=f"bench.invalid/layered-{len(closure.paths)}:1", snapshotter=OVERLAYFS)
        archive = build_layered_image(closure, self.directory / "layered.tar", reference=image.reference)
        self._import(archive)
        return image

    def nix_image(self, closure: Closure) -> Image:
        """Load a Nix image of the closure."""
        image = Image(reference=f"bench.invalid/nix-{len(closure.paths)}:1", snapshotter=NIX)
        archive = build_image(closure, self.directory / "nix.tar", reference=image.reference)
        load_image(self.containerd, archive)
        return image

    def _import(self, archive: Path) -> None:
        self.containerd.ctr("image", "import", "--snapshotter", OVERLAYFS, archive)

    def start_to_exit(self, image: Image, *, options: Sequence[str] = ()) -> float:
        """Seconds of `ctr run --rm … true`, as a whole process.

        containerd removes the container's snapshot in its garbage collector, some time after. Here that is
        waited for, untimed: else the next sample would pay for this one.
        """
        took = seconds(
            lambda: self.containerd.run(
                image.reference, "true", snapshotter=image.snapshotter, options=options
            )
        )
        self.containerd.collect_garbage()
        return took

    def start_sleeper(self, image: Image) -> str:
        """Start a container that does nothing and return its id."""
        return self.containerd.start_container(
            image.reference, "sleep", "86400", snapshotter=image.snapshotter
        )

    def process_of(self, container_id: str) -> int:
        """The pid, on the host, of a running container's first process."""
        for line in self.containerd.ctr("task", "ls").stdout.splitlines():
            task, pid, *_ = line.split()
            if task == container_id:
                return int(pid)
        raise LookupError(f"no task of {container_id}")
