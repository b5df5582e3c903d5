"""Realising closures: making every store path of a nix layer present and safe from Nix's garbage collector.

The roots are *indirect*: `nix-store --add-root` makes a symlink in a directory of ours and registers that in
`/nix/var/nix/gcroots/auto`. Removing the symlink is all it takes to give the path up again; the collector sweeps the
registration (Nix manual, `nix-store --gc`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import attrs

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.nix import process
from nixsnap.nix.caller import Caller
from nixsnap.nix.progress import ProgressSink, ignore
from nixsnap.nix.storepath import StorePath, parse_closure

# execve takes 128 KiB an argument and a quarter of the stack limit (8 MiB, so 2 MiB) in all, environment included.
_ARGUMENT_BYTES: Final = 1 << 20
# A closureInfo of 100,000 paths of the longest names has 26 MB; whatever is larger is no list of store paths.
_STORE_PATHS_LIMIT_BYTES: Final = 32 << 20
_BUILDERS_AT_ONCE: Final = 8
_CONNECT_SECONDS: Final = "15"
# Errors are matched and shown by their words: no colours, and not in another language.
_PLAIN_MESSAGES: Final = {"NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C"}


@attrs.frozen(kw_only=True)
class ClosureRequest:
    """What a nix layer says of its closure.

    Attributes:
        closure_info: The output of nixpkgs' `closureInfo`, whose file `store-paths` lists the closure.
        store_paths: Store paths that are named one by one.

    Raises:
        InvalidArgumentError: One of them is a derivation.
    """

    closure_info: StorePath | None = None
    store_paths: tuple[StorePath, ...] = ()

    def __attrs_post_init__(self) -> None:
        refuse_derivations(self.store_paths)
        if self.closure_info is not None:
            refuse_derivations([self.closure_info])

    def __str__(self) -> str:
        named = f"{len(self.store_paths)} store paths" if self.store_paths else ""
        return " and ".join(filter(None, (str(self.closure_info or ""), named)))


class Realiser(Protocol):
    """Makes closures present."""

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,
        caller: Caller | None = None,
    ) -> tuple[StorePath, ...]:
        """Make every store path of `request` present, with roots in the directory `gcroots`, which is made.

        Args:
            request: What is wanted.
            gcroots: Directory of the roots, of which the caller has no other use.
            progress: Told how the fetch goes on; not at all where nothing has to be fetched.
            caller: Who waits for it; None waits to the end.

        Returns:
            The closure: the paths that were asked for and those the closureInfo lists, sorted, each once, all present.

        Raises:
            CancelledError: The caller went away; a fetch under way goes on for a while, for a retry to join.
            NixsnapError: Not all of it could be made present. Here and there `gcroots` may hold some roots, which
                the caller removes.
        """
        ...


@attrs.frozen(kw_only=True)
class NixStoreRealiser:
    """Realises with `nix-store`, which needs no experimental feature.

    Attributes:
        store: Where the store lies on this host.
        store_root: The store's root where it is a chroot store.
    """

    store: Path
    store_root: Path | None = None

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,  # noqa: ARG002
        caller: Caller | None = None,  # noqa: ARG002
    ) -> tuple[StorePath, ...]:
        """As `Realiser.realise` says."""
        gcroots.mkdir(mode=0o755, parents=True, exist_ok=True)
        listed: list[StorePath] = []
        named = set(request.store_paths)
        if request.closure_info is not None:
            self._add_roots([request.closure_info], gcroots / "closure")
            self._put_back([request.closure_info])
            listed = read_closure_info(self.store, request.closure_info)
            # Who made the image made this list too, and may list what the closureInfo does not refer to, which its
            # root therefore does not keep.
            named |= set(listed) - self._requisites(request.closure_info)
        for index, batch in enumerate(_batches(sorted(named))):
            self._add_roots(batch, gcroots / f"path-{index}")
        closure = tuple(sorted({*named, *listed}))
        self._put_back(closure)
        check_present(self.store, closure)
        return closure

    def _add_roots(self, paths: Sequence[StorePath], root: Path) -> None:
        """Make one call for all `paths`; the first root is `root`, the others are `root`-2, `root`-3 and so on."""
        # --indirect says nothing to Nix 2.4 and later, which know no other roots; before that it was needed.
        self._nix_store("--add-root", str(root), "--indirect", "--realise", *map(str, paths), of=paths)

    def _put_back(self, paths: Iterable[StorePath]) -> None:
        """Fetch again what Nix has on record as valid, but somebody deleted without asking it."""
        for batch in _batches(find_missing(self.store, paths)):
            self._nix_store("--realise", "--repair", *map(str, batch), of=batch)

    def _requisites(self, path: StorePath) -> set[StorePath]:
        output = self._nix_store("--query", "--requisites", str(path), of=[path])
        return set(parse_closure(output.stdout, store_dir=path.store_dir))

    def _nix_store(self, *arguments: str, of: Sequence[StorePath]) -> process.Output:
        store = () if self.store_root is None else ("--store", str(self.store_root))
        # A cache that does not answer holds up the pull, and containerd's garbage collector with it; Nix's own default
        # is to wait for as long as the kernel tries.
        return process.run(
            ["nix-store", *store, "--option", "connect-timeout", _CONNECT_SECONDS, *arguments],
            purpose=f"realise {_name_all(of)}",
            environment=_PLAIN_MESSAGES,
        )


@attrs.frozen(kw_only=True)
class ExternalBuilder:
    """Realises with a program of the user's: called with an out-link and a store path, once for each path.

    The program makes the path present and the out-link a root of it, as `nix build --out-link` does. That is the
    contract of `external_builder` in pdtpartners/nix-snapshotter (`pkg/nix/nix.go`).

    Attributes:
        program: The program.
        store: Where the store lies on this host.
    """

    program: Path
    store: Path

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,  # noqa: ARG002
        caller: Caller | None = None,  # noqa: ARG002
    ) -> tuple[StorePath, ...]:
        """As `Realiser.realise` says."""
        gcroots.mkdir(mode=0o755, parents=True, exist_ok=True)
        listed: list[StorePath] = []
        if request.closure_info is not None:
            self._build([request.closure_info], gcroots)
            listed = read_closure_info(self.store, request.closure_info)
        closure = tuple(sorted({*request.store_paths, *listed}))
        # Each by name: only Nix knows what a closureInfo refers to, and the program may not be Nix.
        self._build(closure, gcroots)
        check_present(self.store, closure)
        return closure

    def _build(self, paths: Sequence[StorePath], gcroots: Path) -> None:
        def build(path: StorePath) -> None:
            process.run([str(self.program), str(gcroots / path.name), str(path)], purpose=f"realise {path}")

        pool = ThreadPoolExecutor(_BUILDERS_AT_ONCE, thread_name_prefix="builder")
        try:
            for _ in pool.map(build, paths):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure, those that have not begun


def read_closure_info(store: Path, closure_info: StorePath) -> list[StorePath]:
    """The store paths that a closureInfo lists, in its order.

    Args:
        store: Where the store lies on this host.
        closure_info: A store path that is present.

    Raises:
        InvalidArgumentError: It is no closureInfo: it has no plain file `store-paths`, or that lists anything other
            than store paths, or nothing.
    """
    # What a store path holds is whatever its builder liked: no symlink is followed, no fifo waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        directory_fd = os.open(store / closure_info.name, flags | os.O_DIRECTORY)
        try:
            file_fd = os.open("store-paths", flags, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
        with os.fdopen(file_fd, encoding="ascii") as stream:
            if not stat.S_ISREG(os.fstat(file_fd).st_mode):
                raise InvalidArgumentError(
                    f"{closure_info} is no closureInfo: its store-paths is not a plain file"
                )
            text = stream.read(_STORE_PATHS_LIMIT_BYTES + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidArgumentError(
            f"{closure_info} is no closureInfo: cannot read its file store-paths: {exc}"
        ) from exc
    if len(text) > _STORE_PATHS_LIMIT_BYTES:
        raise InvalidArgumentError(
            f"{closure_info}: its store-paths is larger than {_STORE_PATHS_LIMIT_BYTES} bytes"
        )
    paths = parse_closure(text, store_dir=closure_info.store_dir)
    if not paths:
        raise InvalidArgumentError(f"{closure_info}: its store-paths lists nothing")
    refuse_derivations(paths)
    return paths


def refuse_derivations(paths: Iterable[StorePath]) -> None:
    """Make sure that realising `paths` runs no build that an image chose.

    Nix builds a derivation that it is asked to realise: on the host, and as root where there are no build users.

    Raises:
        InvalidArgumentError: One of `paths` is a derivation.
    """
    for path in paths:
        if path.name.endswith(".drv"):
            raise InvalidArgumentError(f"{path} is a derivation, not something that a container can use")


def find_missing(store: Path, paths: Iterable[StorePath]) -> list[StorePath]:
    """Those of `paths` that the store does not hold; a dangling symlink is held."""
    return [path for path in paths if not os.path.lexists(store / path.name)]


def check_present(store: Path, paths: Iterable[StorePath]) -> None:
    """Make sure that a fetch that said it succeeded did.

    Raises:
        NotFoundError: Some of `paths` are not in the store.
    """
    if missing := find_missing(store, paths):
        raise NotFoundError(f"{_name_all(missing)} not in {store}, though the fetch reported success")


def _batches(paths: Sequence[StorePath]) -> Iterator[list[StorePath]]:
    """Cut `paths` so that each piece fits on a command line."""
    batch: list[StorePath] = []
    size = 0
    for path in paths:
        size += len(str(path)) + 9  # its terminator and its pointer
        if size > _ARGUMENT_BYTES and batch:
            yield batch
            batch, size = [], 0
        batch.append(path)
    if batch:
        yield batch


def _name_all(paths: Sequence[StorePath]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
