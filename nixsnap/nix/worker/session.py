"""The store behind a Nix daemon, whichever way leads to it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

import attrs

from nixsnap.config import NixConfig
from nixsnap.errors import NixsnapError, UnavailableError
from nixsnap.nix import failures
from nixsnap.nix.caller import Caller
from nixsnap.nix.nowhere import may_build, with_unknown
from nixsnap.nix.options import nix_options
from nixsnap.nix.progress import ProgressSink, ignore
from nixsnap.nix.store import root_names
from nixsnap.nix.storepath import StorePath
from nixsnap.nix.worker.connection import Connection, DaemonError, Operation
from nixsnap.nix.worker.transport import Transport
from nixsnap.nix.worker.wire import ProtocolError, Reader, mapping, number, string, strings

log = logging.getLogger(__name__)

_NORMAL: Final = 0
_REPAIR: Final = 1
_INFO_LEVEL: Final = 3


@attrs.frozen(kw_only=True)
class DaemonStore:
    """A store that is asked by the worker protocol. A session is a connection.

    Connections are not kept: a daemon remembers what it once answered, right or wrong by now.

    Attributes:
        connect: Makes a way to the daemon.
        config: The `[nix]` table.
    """

    connect: Callable[[], Transport]
    config: NixConfig

    is_worth_sharing: ClassVar[bool] = True

    def initialise(self, caller: Caller) -> None:
        """As `NixStore.initialise` says: a daemon has opened the store before it greets."""
        with self.open(caller):
            pass

    @contextlib.contextmanager
    def open(self, caller: Caller, *, anew: bool = False) -> Iterator[DaemonSession]:
        """As `NixStore.open` says."""
        try:
            transport = self.connect()
        except OSError as exc:
            raise UnavailableError(f"cannot reach the Nix daemon: {exc.strerror}") from exc
        try:
            with caller.told(transport.abort):
                try:
                    session = DaemonSession(Connection(transport), self.config)
                    if transport.is_foreign or anew:
                        session.set_options(nix_options(self.config, anew=anew))
                    yield session
                except ProtocolError as exc:
                    caller.check(waiting_for="Nix")
                    raise _broken(exc, transport) from exc
                except DaemonError as exc:
                    raise UnavailableError(f"the Nix daemon refuses: {failures.plain(str(exc))}") from exc
        finally:
            transport.close()


def _broken(error: ProtocolError, transport: Transport) -> NixsnapError:
    transport.abort()  # it may be in the middle of something that nobody will hear of
    words = failures.plain(transport.last_words())
    return UnavailableError(
        f"the Nix daemon does not do as it should: {error}{': ' if words else ''}{words}",
        hint="is nix-daemon running, and of Nix 2.4 or newer?",
    )


@attrs.frozen(kw_only=True)
class _Missing:
    """Of some paths and what they refer to: what would be fetched, and what no cache has."""

    fetched: list[StorePath]
    unknown: list[StorePath]


class DaemonSession:
    """A session over one connection, which whoever made it closes."""

    def __init__(self, connection: Connection, config: NixConfig) -> None:
        self._connection = connection
        self._config = config

    def set_options(self, options: Mapping[str, str]) -> None:
        """Have the daemon use our settings for this connection; one that does not trust us passes over some."""
        self._connection.call(
            Operation.SET_OPTIONS,
            *map(
                number, (0, 0, 0, _INFO_LEVEL)
            ),  # neither keep failed builds, nor go on, nor build as a fallback
            number(_to_job_count(options.get("max-jobs", "auto"))),
            *map(
                number, (0, 1, 0, 0, 0, 0, 1)
            ),  # no limit of silence; build hooks; …; all cores; substitutes
            mapping(options),
        )

    def protect(self, paths: Iterable[StorePath]) -> None:
        """As `Session.protect` says, by temporary roots."""
        self._connection.call_each(Operation.ADD_TEMP_ROOT, map(_encode, paths), Reader.number)

    def valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        """As `Session.valid` says."""
        by_text = {str(path): path for path in paths}
        answer = self._connection.call(Operation.QUERY_VALID_PATHS, strings(by_text), number(0))
        return {by_text[text] for text in answer.strings()}

    def references(self, paths: Collection[StorePath]) -> Mapping[StorePath, frozenset[StorePath]]:
        """As `Session.references` says."""
        answers: list[list[str]] = []
        self._connection.call_each(
            Operation.QUERY_PATH_INFO,
            map(_encode, paths),
            lambda read: answers.append(_read_references(read)),
        )
        known = {str(path): path for path in paths}
        found = {}
        for path, texts in zip(paths, answers, strict=True):
            found[path] = frozenset(
                known.get(text) or StorePath.parse(text, store_dir=path.store_dir) for text in texts
            )
        return found

    def add_roots(self, paths: Iterable[StorePath], first: Path) -> None:
        """As `Session.add_roots` says."""
        paths = list(paths)
        roots = root_names(first, len(paths))
        for path, root in zip(paths, roots, strict=True):
            _link(root, str(path))
        self._connection.call_each(
            Operation.ADD_INDIRECT_ROOT, (string(str(root)) for root in roots), Reader.number
        )

    def would_fetch(self, paths: Collection[StorePath]) -> Collection[StorePath]:
        """As `Session.would_fetch` says."""
        try:
            return self._query_missing(paths).fetched
        except DaemonError as exc:
            raise self._failure(paths, exc).error() from exc

    def fetch(
        self, paths: Collection[StorePath], *, repair: bool = False, progress: ProgressSink = ignore
    ) -> None:
        """As `Session.fetch` says."""
        self._connection.activities.tell(progress)
        mode = _REPAIR if repair else _NORMAL
        try:
            self._build(map(str, paths), mode=mode)
        except DaemonError as exc:
            failure = self._failure(paths, exc)
            if failure.meaning() is None:
                failure = self._look_into(failure, repair=repair)
            if not may_build(failure, self._config):
                raise failure.error() from exc
            self._build_from_derivations(failure, mode)
        finally:
            progress(self._connection.activities.moment())

    def heard_seconds(self) -> float:
        """As `Session.heard_seconds` says."""
        return self._connection.activities.heard_seconds

    def _build(self, wanted: Iterable[str], *, mode: int = _NORMAL) -> None:
        self._connection.call(Operation.BUILD_PATHS, strings(wanted), number(mode)).number()

    def _failure(self, paths: Collection[StorePath], error: DaemonError) -> failures.Failure:
        activities = self._connection.activities
        words = "\n".join([*activities.lines, failures.plain(str(error))])
        return failures.Failure(paths=paths, words=words, caches=activities.caches)

    def _look_into(self, failure: failures.Failure, *, repair: bool) -> failures.Failure:
        """Find out what no cache has, and what would make that."""
        # What is to be repaired is on record, so it is not unknown; but no cache gave it.
        unknown = sorted(failure.paths) if repair else self._unknown(failure.paths)
        derivations = {path: output for path in unknown if (output := self._derived(path)) is not None}
        return with_unknown(failure, unknown, derivations, config=self._config)

    def _unknown(self, paths: Collection[StorePath]) -> list[StorePath]:
        """Those of `paths` and of what they refer to that no cache has; the daemon has just looked for them all."""
        try:
            return sorted(self._query_missing(paths).unknown)
        except DaemonError:
            return []  # a cache that fails has been reported already

    def _query_missing(self, paths: Collection[StorePath]) -> _Missing:
        answer = self._connection.call(Operation.QUERY_MISSING, strings(map(str, paths)))
        _built, fetched, unknown = answer.strings(), answer.strings(), answer.strings()
        for _ in ("bytes to fetch", "bytes unpacked"):
            answer.number()
        store_dir = next(iter(paths)).store_dir
        return _Missing(
            fetched=[StorePath.parse(text, store_dir=store_dir) for text in fetched],
            unknown=[StorePath.parse(text, store_dir=store_dir) for text in unknown],
        )

    def _build_from_derivations(self, failure: failures.Failure, mode: int) -> None:
        """Build what no cache has, and then fetch what could not be for want of it."""
        log.info("building %s", ", ".join(failure.derivations.values()))
        try:
            self._build(failure.derivations.values(), mode=mode)
            self._build(map(str, failure.paths))
        except DaemonError as exc:
            raise self._failure(failure.paths, exc).error() from exc

    def _derived(self, path: StorePath) -> str | None:
        """`DERIVATION!OUTPUT` of a path; None if the store has no derivation that makes it."""
        for derivation in self._connection.call(Operation.QUERY_VALID_DERIVERS, _encode(path)).strings():
            answer = self._connection.call(Operation.QUERY_DERIVATION_OUTPUT_MAP, string(derivation))
            outputs = [(answer.string(), answer.string()) for _ in range(answer.count())]
            for name, output in outputs:
                if output == str(path):
                    return f"{derivation}!{name}"
        return None


def _link(root: Path, target: str) -> None:
    """Make a symlink, over another one if need be; one that leads there already is never taken away."""
    try:
        root.symlink_to(target)
    except FileExistsError:
        if not root.is_symlink() or str(root.readlink()) != target:
            root.unlink()
            root.symlink_to(target)


def _to_job_count(setting: str) -> int:
    return int(setting) if setting.isdecimal() else os.cpu_count() or 1  # "auto"


def _encode(path: StorePath) -> bytes:
    return string(str(path))


def _read_references(read: Reader) -> list[str]:
    """Read the answer to QUERY_PATH_INFO."""
    if not read.number():
        raise DaemonError("a path that was valid a moment ago is no longer")
    read.string()  # the derivation it was built from
    read.string()  # its hash
    references = read.strings()
    for _ in ("when it was registered", "its size", "whether it was built here"):
        read.number()
    read.strings()  # its signatures
    read.string()  # its content address
    return references
