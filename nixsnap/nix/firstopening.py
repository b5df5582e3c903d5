"""The first opening of a store, which makes its database.

Processes that open a new store at the same time get into each other's way: one writes `db/schema` once it has made the
database, with no lock held, while another finds that file empty ("is corrupt") or makes the tables a second time
(libstore/local-store.cc, `LocalStore`; seen with Nix 2.8). So one opens it, and the others wait for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from nixsnap.nix.caller import Caller
from nixsnap.nix.filelock import acquire
from nixsnap.nix.store import NixStore

log = logging.getLogger(__name__)


@attrs.define(kw_only=True)
class FirstOpening:
    """Sees to it that a store has a database before many want something of it.

    Attributes:
        nix: The way to the store.
        state: Nix's state directory.
    """

    nix: NixStore
    state: Path
    _is_elsewhere: bool = attrs.field(default=False, init=False)

    def ensure(self, caller: Caller) -> None:
        """Have the store opened, if it has no database; cheap if it has one.

        Raises:
            UnavailableError, FailedPreconditionError: Nix does not open it.
            CancelledError: The caller went away.
        """
        if self._is_elsewhere or self._has_database():
            return
        with self._one_at_a_time(caller):
            if self._has_database():
                return
            log.info("opening a new store state=%s", self.state)
            self.nix.initialise(caller)
        # That of a daemon whose files we do not see; it is not opened by us then, nor for the first time.
        self._is_elsewhere = not self._has_database()

    def _has_database(self) -> bool:
        try:
            return (self.state / "db/schema").stat().st_size > 0  # it is written last
        except OSError:
            return False

    @contextlib.contextmanager
    def _one_at_a_time(self, caller: Caller) -> Iterator[None]:
        """Hold a lock that all who would open the store first share, other programs of ours among them."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)  # as Nix does
            fd = os.open(self.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:  # then it is not we who make a database there
            log.debug("cannot reach Nix's state directory state=%s error=%s", self.state, exc)
            yield
            return
        try:
            acquire(fd, fcntl.LOCK_EX, caller, waiting_for="the first opening of Nix's store")
            yield
        finally:
            os.close(fd)
