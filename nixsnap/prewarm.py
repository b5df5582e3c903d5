"""Fetching what images need before anyone pulls them."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.archive import ImageArchive
from nixsnap.image.platform import Platform
from nixsnap.nix import roots
from nixsnap.nix.progress import ProgressSink, ProgressSum
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.storepath import StorePath, shorten
from nixsnap.snapshots.labels import parse_closure_request


@attrs.frozen(kw_only=True)
class Prewarmer:
    """Realises image archives, closures and store paths, as pulling them would.

    Attributes:
        realiser: Makes closures present.
        store: Where the store lies on this host.
        store_dir: What store paths begin with.
        gcroots: Directory of the roots, with a numbered one for each closure.
        first_number: The first of these numbers.
        platform: Which of an archive's images is meant.
        progress: Told how it goes on.
    """

    realiser: Realiser
    store: Path
    store_dir: str
    gcroots: Path
    platform: Platform
    progress: ProgressSink
    first_number: int = 1
    _sum: ProgressSum = attrs.field(
        default=attrs.Factory(lambda self: ProgressSum(self.progress), takes_self=True), init=False
    )
    _numbers: Iterator[int] = attrs.field(
        default=attrs.Factory(lambda self: itertools.count(self.first_number), takes_self=True), init=False
    )

    def realise(self, what: Sequence[str]) -> set[StorePath]:
        """Make all of it present and rooted.

        Args:
            what: Store paths, closureInfos and image archives among them; or names of archives outside the store, or of
                symlinks to store paths, as Nix leaves them (`result`).

        Returns:
            All store paths that are present now for it.

        Raises:
            NotFoundError: There is no such file, or no cache has a path.
            InvalidArgumentError: An archive is malformed, or names no store paths.
            NixsnapError: Nix failed.
        """
        named = {one: self._store_path(one) for one in what}
        paths = [path for path in named.values() if path is not None]
        present = self._all([ClosureRequest(store_paths=tuple(sorted(set(paths))))] if paths else [])
        requests = [request for path in paths for request in self._behind(path)]
        for one, path in named.items():
            if path is None:
                requests += self._named_by(Path(one))
        return present | self._all(dict.fromkeys(requests))

    def _all(self, requests: Iterable[ClosureRequest]) -> set[StorePath]:
        present: set[StorePath] = set()
        for request in requests:
            directory = self.gcroots / str(next(self._numbers))
            progress = self._sum.part(request)
            present |= set(self.realiser.realise(request, gcroots=directory, progress=progress))
            if request.closure_info is not None:
                present.add(request.closure_info)
            roots.seal(directory)
        return present

    def _store_path(self, text: str) -> StorePath | None:
        """The store path that an argument is, or leads to; None if it is a file outside the store."""
        if text.startswith(f"{self.store_dir}/"):
            return StorePath.parse(text, store_dir=self.store_dir)
        try:
            real = os.path.realpath(text, strict=True)
        except OSError as exc:
            raise NotFoundError(
                f"{shorten(text)} is neither a store path nor a file: {exc.strerror}"
            ) from exc
        try:
            return StorePath.parse(real, store_dir=self.store_dir)
        except InvalidArgumentError:
            return None

    def _behind(self, path: StorePath) -> list[ClosureRequest]:
        """What a store path that is present stands for besides itself."""
        place = self.store / path.name
        status = place.lstat()
        if stat.S_ISREG(status.st_mode) and path.name.endswith(".tar"):
            return self._named_by(place)
        if stat.S_ISDIR(status.st_mode) and (place / "store-paths").is_file():
            return [ClosureRequest(closure_info=path)]
        return []

    def _named_by(self, file: Path) -> list[ClosureRequest]:
        """The closures that the layers of an archive's images name."""
        requests = []
        with ImageArchive.open(file) as archive:
            for top in archive.index.manifests:
                manifest = archive.manifest(archive.select(top, self.platform))
                for layer in manifest.layers:
                    request = parse_closure_request(layer.annotations, store_dir=self.store_dir)
                    requests += [] if request is None else [request]
        if not requests:
            raise InvalidArgumentError(f"{shorten(str(file))} names no store paths: it is an ordinary image")
        return requests
