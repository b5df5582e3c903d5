"""The store asked by programs: one `nix-store` for each question.

Slower than a connection, and without its temporary roots; for where Nix's daemon program cannot be had or talked to.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import attrs

from nixsnap.config import Config
from nixsnap.errors import UnavailableError
from nixsnap.nix import process
from nixsnap.nix.activities import Activities
from nixsnap.nix.caller import Caller
from nixsnap.nix.derivations import find_derivations
from nixsnap.nix.failures import Failure, name_all, plain
from nixsnap.nix.nowhere import may_build, with_unknown
from nixsnap.nix.options import nix_environment
from nixsnap.nix.progress import ProgressSink, ignore
from nixsnap.nix.store import root_names
from nixsnap.nix.storepath import StorePath

# execve takes 128 KiB an argument and a quarter of the stack limit (8 MiB, so 2 MiB) in all, environment included.
_ARGUMENT_BYTES: Final = 1 << 20

_Named = TypeVar("_Named", StorePath, str)

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class ProgramStore:
    """A store that `nix-store` works on.

    Attributes:
        config: Says where it is, and how Nix is called.
    """

    config: Config

    is_worth_sharing: ClassVar[bool] = False  # every question is a process, and two can run at once

    def initialise(self, caller: Caller) -> None:
        """As `NixStore.initialise` says."""
        try:
            self.call(["--init"], purpose="open the store", caller=caller)
        except process.ProgramError as exc:
            caller.check(waiting_for="Nix")
            raise UnavailableError(f"Nix cannot open its store: {plain(str(exc))}") from exc

    def call(
        self,
        arguments: Sequence[str],
        *,
        purpose: str,
        caller: Caller,
        heard: Callable[[bytes], bool] | None = None,
        anew: bool = False,
    ) -> process.Output:
        """Run `nix-store` on it; as `process.run` says, and `NixStore.open` of `anew`."""
        root = self.config.store_root
        return process.run(
            ["nix-store", *(() if root is None else ("--store", str(root))), *arguments],
            purpose=purpose,
            environment=nix_environment(self.config, anew=anew),
            caller=caller,
            heard=heard,
        )

    @contextlib.contextmanager
    def open(self, caller: Caller, *, anew: bool = False) -> Iterator[ProgramSession]:
        """As `NixStore.open` says."""
        yield ProgramSession(self, caller, anew=anew)


class ProgramSession:
    """A session of programs, each ended when the caller goes away."""

    def __init__(self, store: ProgramStore, caller: Caller, *, anew: bool) -> None:
        self._store = store
        self._anew = anew
        self._caller = caller
        self._activities = Activities()

    def protect(self, paths: Iterable[StorePath]) -> None:
        """Nothing: a program's temporary roots end with it."""

    def valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        """As `Session.valid` says."""
        invalid: set[str] = set()
        for batch in _batches(paths):
            output = self._run("--check-validity", "--print-invalid", *map(str, batch), of=batch)
            invalid.update(output.splitlines())
        return {path for path in paths if str(path) not in invalid}

    def references(self, paths: Collection[StorePath]) -> Mapping[StorePath, frozenset[StorePath]]:
        """As `Session.references` says."""
        found: dict[StorePath, frozenset[StorePath]] = {}
        for batch in _batches(paths):
            lines = iter(self._run("--dump-db", *map(str, batch), of=batch).splitlines())
            store_dir = batch[0].store_dir
            for path in lines:
                _hash, _size, _derivation, count = (next(lines) for _ in range(4))
                references = [next(lines) for _ in range(int(count))]
                found[StorePath.parse(path, store_dir=store_dir)] = frozenset(
                    StorePath.parse(reference, store_dir=store_dir) for reference in references
                )
        return found

    def add_roots(self, paths: Iterable[StorePath], first: Path) -> None:
        """As `Session.add_roots` says."""
        paths = list(paths)
        roots = root_names(first, len(paths))
        done = 0
        for batch in _batches(paths):
            # --indirect says nothing to Nix 2.4 and later, which know no other roots; before that it was needed.
            root = roots[done]
            self._run("--add-root", str(root), "--indirect", "--realise", *map(str, batch), of=batch)
            for name, made in zip(roots[done : done + len(batch)], root_names(root, len(batch)), strict=True):
                made.rename(name)
            done += len(batch)

    def would_fetch(self, paths: Collection[StorePath]) -> Collection[StorePath]:
        """As `Session.would_fetch` says."""
        fetched: dict[str, None] = {}
        for batch in _batches(paths):
            try:
                self._realise(["--dry-run", *map(str, batch)], batch)
            except process.ProgramError as exc:
                raise self._failure(batch, exc).error() from exc
            fetched |= dict.fromkeys(self._activities.fetchable)
        store_dir = next(iter(paths)).store_dir
        return [StorePath.parse(text, store_dir=store_dir) for text in fetched]

    def fetch(
        self, paths: Collection[StorePath], *, repair: bool = False, progress: ProgressSink = ignore
    ) -> None:
        """As `Session.fetch` says."""
        self._activities.tell(progress)
        words = ("--repair",) if repair else ()
        for batch in _batches(paths):
            self._fetch(batch, words)
        progress(self._activities.moment())

    def heard_seconds(self) -> float:
        """As `Session.heard_seconds` says."""
        return self._activities.heard_seconds

    def _fetch(self, paths: Sequence[StorePath], words: Sequence[str]) -> None:
        try:
            self._realise([*words, *map(str, paths)], paths)
        except process.ProgramError as exc:
            failure = self._failure(paths, exc)
            if failure.meaning() is None and not exc.was_killed:
                failure = self._look_into(failure, repair="--repair" in words)
            if not may_build(failure, self._store.config.nix):
                raise failure.error() from exc
            self._build(failure, words)

    def _build(self, failure: Failure, words: Sequence[str]) -> None:
        """Build what no cache has, and then fetch what could not be for want of it."""
        log.info("building %s", ", ".join(failure.derivations.values()))
        paths = list(failure.paths)
        try:
            for batch in _batches(failure.derivations.values()):
                self._realise([*words, *batch], paths)
            self._realise([str(path) for path in paths], paths)
        except process.ProgramError as exc:
            raise self._failure(paths, exc).error() from exc

    def _realise(self, arguments: Sequence[str], paths: Sequence[StorePath]) -> None:
        self._activities.heard_seconds = time.monotonic()
        self._call(["--log-format", "internal-json", "--realise", *arguments], paths, heard=self._activities)

    def _failure(self, paths: Sequence[StorePath], error: process.ProgramError) -> Failure:
        self._caller.check(waiting_for=name_all(paths))
        activities = self._activities
        words = "\n".join([*activities.lines, plain(str(error))])
        return Failure(paths=paths, words=words, caches=activities.caches)

    def _look_into(self, failure: Failure, *, repair: bool) -> Failure:
        """Find out what no cache has, and what would make that."""
        paths = {str(path): path for path in failure.paths}
        store_dir = next(iter(failure.paths)).store_dir
        unknown = [
            paths.get(text) or StorePath.parse(text, store_dir=store_dir) for text in self._activities.unknown
        ]
        if not unknown:
            unknown = list(failure.paths)
        if not repair:  # what is to be repaired is on record, though it is not there
            valid = self.valid(unknown)
            unknown = [path for path in unknown if path not in valid]
        return with_unknown(failure, unknown, self._derivations(unknown), config=self._store.config.nix)

    def _derivations(self, paths: Collection[StorePath]) -> Mapping[StorePath, str]:
        found = find_derivations(self._store.config.host_store, paths)
        valid = self.valid([derivation for candidates in found.values() for derivation, _ in candidates])
        return {
            path: next(f"{derivation}!{output}" for derivation, output in candidates if derivation in valid)
            for path, candidates in found.items()
            if any(derivation in valid for derivation, _ in candidates)
        }

    def _run(self, *arguments: str, of: Collection[StorePath]) -> str:
        try:
            return self._call(arguments, of).stdout
        except process.ProgramError as exc:
            self._caller.check(waiting_for=name_all(of))
            raise UnavailableError(f"cannot ask Nix about {name_all(of)}: {plain(str(exc))}") from exc

    def _call(
        self, arguments: Sequence[str], of: Collection[StorePath], *, heard: Activities | None = None
    ) -> process.Output:
        return self._store.call(
            arguments,
            purpose=f"realise {name_all(of)}",
            caller=self._caller,
            heard=None if heard is None else heard.take_json,
            anew=self._anew,
        )


def _batches(paths: Iterable[_Named]) -> Iterator[list[_Named]]:
    """Cut `paths` so that each piece fits on a command line."""
    batch: list[_Named] = []
    size = 0
    for path in paths:
        size += len(str(path)) + 9  # its terminator and its pointer
        if size > _ARGUMENT_BYTES and batch:
            yield batch
            batch, size = [], 0
        batch.append(path)
    if batch:
        yield batch
