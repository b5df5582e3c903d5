"""Resolving `nix:0` references: an image whose registry is the Nix store.

`nix:0/nix/store/<name>.tar[:tag]` names an OCI archive in the store. Pulling it means: realise the archive, keep a root
on it while containerd has the image, load it into the namespace that Kubernetes uses, and wait until CRI knows it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError, NixsnapError, UnavailableError
from nixsnap.mounts import filetrees
from nixsnap.nix import roots
from nixsnap.nix.caller import Caller
from nixsnap.nix.flights import Flight, Flights, await_first
from nixsnap.nix.progress import ignore
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.roots import RootInspector, StoreState
from nixsnap.nix.storepath import StorePath, shorten
from nixsnap.snapshots.locks import NamedLocks

log = logging.getLogger(__name__)

PREFIX: Final = "nix:0"
_NAMESPACE: Final = "k8s.io"
_PULLS_AT_ONCE: Final = 64
_DEFAULT_TAG: Final = "latest"  # what kubelet appends to a reference without a tag

# CRI hears of an image by containerd's events, a moment after it was stored (internal/cri/server/events.go).
_CRI_KNOWS_SECONDS: Final = 30.0
_CRI_POLL_SECONDS: Final = 0.01

_REFERENCE: Final = re.compile(r"nix:0(?P<path>/[^:@]*)(?::(?P<tag>\w[\w.-]{0,127}))?", re.ASCII)


@attrs.frozen(kw_only=True)
class NixReference:
    """A `nix:0` reference.

    Attributes:
        archive: The archive's store path.
        tag: The tag.
    """

    archive: StorePath
    tag: str

    @classmethod
    def parse(cls, text: str, *, store_dir: str) -> NixReference:
        """Take a reference apart.

        Raises:
            InvalidArgumentError: It names something that is not exactly a store path.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InvalidArgumentError(
                f"image reference {shorten(text)} is not of the form nix:0{store_dir}/HASH-NAME.tar[:TAG]"
            )
        try:
            archive = StorePath.parse(match["path"], store_dir=store_dir)
        except InvalidArgumentError as exc:
            raise InvalidArgumentError(f"image reference {shorten(text)}: {exc.message}") from exc
        return cls(archive=archive, tag=match["tag"] or _DEFAULT_TAG)

    def __str__(self) -> str:
        return f"{PREFIX}{self.archive}:{self.tag}"


@attrs.frozen(kw_only=True)
class Settings:
    """Where pulls find what they need.

    Attributes:
        containerd_address: containerd's socket.
        store: Where the store lies on this host.
        store_dir: What store paths begin with.
        gcroots: Directory for the roots on archives.
        snapshotter: The name that containerd has this snapshotter by.
    """

    containerd_address: Path
    store: Path
    store_dir: str
    gcroots: Path
    snapshotter: str = "nix"


class NixPuller:
    """Pulls `nix:0` images and keeps the roots on their archives.

    Args:
        settings: See there.
        realiser: Makes archives present.
        inspector: Looks at the roots.
        cri_knows: Whether CRI resolves a reference, by asking it.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        realiser: Realiser,
        inspector: RootInspector,
        cri_knows: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._realiser = realiser
        self._inspector = inspector
        self._cri_knows = cri_knows
        self._locks = NamedLocks()
        executor = ThreadPoolExecutor(_PULLS_AT_ONCE, thread_name_prefix="pull")
        # No grace of its own: what takes long is the fetch, which has one.
        self._flights: Flights[NixReference, str] = Flights(executor, grace_seconds=0)

    def pull(self, text: str, *, caller: Caller | None = None) -> str:
        """Pull an image; callers that want the same one at the same time share the work.

        Args:
            text: A reference that begins with `nix:0`.
            caller: Who waits for it.

        Returns:
            The image's id: the digest of its config.

        Raises:
            CancelledError: The caller went away.
            InvalidArgumentError: The reference or the archive is malformed.
            NotFoundError: No cache has the archive, or it holds no image for this platform.
            UnavailableError: containerd does not answer, or CRI does not take the image up.
        """
        reference = NixReference.parse(text, store_dir=self._settings.store_dir)
        caller = caller or Caller()
        with self._flights.board([reference], self._fly, sink=lambda _: ignore) as (flight,):
            while not flight.future.done():
                await_first([flight], caller, timeout_seconds=None, waiting_for=str(reference))
        if flight.caller.gone:  # it was given up in the moment in which we came aboard
            return self.pull(text, caller=caller)
        return flight.future.result()

    def collect_roots(self) -> None:
        """Give up the roots on archives of which containerd has no image any more.

        Raises:
            UnavailableError: containerd does not answer; all roots stay then.
        """
        with self._flights.grounded() as references:
            kept = {reference.archive.name for reference in references}
            # Grounded, so that no pull begins between the question and the removal.
            kept |= asyncio.run(self._archives_in_use())
            for root in self._roots():
                if root.name not in kept:
                    filetrees.remove_tree(root)
                    log.info("gave up the root of an image archive archive=%s", root.name)

    def check_roots(self) -> bool:
        """Root the archives again whose roots were lost, and fetch those again that somebody deleted by force.

        Returns:
            Whether all that containerd has images of are rooted now. What is not was logged.
        """
        try:
            used = asyncio.run(self._archives_in_use())
            state = self._inspector.look()
        except (NixsnapError, OSError) as exc:
            log.warning("cannot look at the roots of images error=%s", exc)
            return False
        faulty = [name for name in sorted(used) if self._fault(name, state)]
        mended = [self._mend_root(name) for name in faulty]
        return all(mended)

    def _fault(self, name: str, state: StoreState) -> str | None:
        return self._inspector.fault(self._settings.gcroots / name, state)

    def _mend_root(self, name: str) -> bool:
        try:
            with self._locks.hold(name):  # a pull makes the same roots
                fault = self._fault(name, self._inspector.look())
                if fault is not None:
                    log.warning(
                        "an image archive is not rooted: %s; rooting it again archive=%s", fault, name
                    )
                    self._realise(StorePath(store_dir=self._settings.store_dir, name=name))
        except (NixsnapError, OSError) as exc:
            log.warning("an image archive has no root for now archive=%s error=%s", name, exc)
            return False
        return True

    def ever_pulled(self) -> bool:
        """Whether a root was ever made here."""
        return self._settings.gcroots.is_dir()

    def has_roots(self) -> bool:
        """Whether there is any root that could be given up."""
        return bool(self._roots())

    def _roots(self) -> list[Path]:
        return list(self._settings.gcroots.iterdir()) if self._settings.gcroots.is_dir() else []

    def _fly(self, flight: Flight[NixReference, str]) -> str:
        (reference,) = flight.keys
        # Another reference to the same archive, or a call that was given up and still loads it, has the same root.
        with self._locks.hold(reference.archive.name):
            return self._pull(reference, flight.caller)

    def _pull(self, reference: NixReference, caller: Caller) -> str:
        archive = reference.archive
        root = self._settings.gcroots / archive.name
        log.info("pulling reference=%s", reference)
        had_root = root.exists()
        try:
            self._realise(archive, caller)
            config = asyncio.run(self._load(self._find(archive), str(reference)))
        except BaseException:
            if not had_root:
                filetrees.remove_tree(root)
            raise
        self._await_cri(str(reference))
        log.info("pulled reference=%s image=%s", reference, config)
        return config

    def _realise(self, archive: StorePath, caller: Caller | None = None) -> None:
        root = self._settings.gcroots / archive.name
        root.parent.mkdir(mode=0o755, exist_ok=True)
        self._realiser.realise(ClosureRequest(store_paths=(archive,)), gcroots=root, caller=caller)
        roots.seal(root)

    def _find(self, archive: StorePath) -> Path:
        path = self._settings.store / archive.name
        if not stat.S_ISREG(path.lstat().st_mode):  # a symlink could lead anywhere
            raise InvalidArgumentError(f"{archive} is not an image archive: it is not a plain file")
        return path

    async def _load(self, path: Path, name: str) -> str:
        # A daemon that never pulls a nix:0 image does without these modules and their memory.
        from nixsnap.containerd.client import connect  # noqa: PLC0415
        from nixsnap.containerd.load import load  # noqa: PLC0415
        from nixsnap.image.archive import ImageArchive  # noqa: PLC0415

        async with connect(str(self._settings.containerd_address), namespace=_NAMESPACE) as client:
            with ImageArchive.open(path) as archive:
                (image,) = await load(client, archive, snapshotter=self._settings.snapshotter, ref=name)
        return image.config

    async def _archives_in_use(self) -> set[str]:
        from nixsnap.containerd.client import connect  # noqa: PLC0415
        from nixsnap.containerd.images import Images  # noqa: PLC0415

        async with connect(str(self._settings.containerd_address), namespace=_NAMESPACE) as client:
            names = [image.name for image in await Images(client).list(f"name~=^{PREFIX}/")]
        used = set()
        for name in names:
            try:
                used.add(NixReference.parse(name, store_dir=self._settings.store_dir).archive.name)
            except NixsnapError:
                log.warning("image of a form that is not ours name=%r", name)
        return used

    def _await_cri(self, name: str) -> None:
        deadline = time.monotonic() + _CRI_KNOWS_SECONDS
        while not self._cri_knows(name):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{name} is loaded, but containerd's CRI does not know it after {_CRI_KNOWS_SECONDS:.0f} seconds",
                    hint="is containerd's CRI plug-in enabled?",
                )
            time.sleep(_CRI_POLL_SECONDS)
