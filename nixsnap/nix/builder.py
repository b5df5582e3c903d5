"""Realising with a program of the user's (`external_builder`), which need not be Nix."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from nixsnap.config import NixConfig
from nixsnap.errors import NixsnapError, UnavailableError
from nixsnap.nix import process
from nixsnap.nix.caller import Caller
from nixsnap.nix.closureinfo import read_closure_info
from nixsnap.nix.failures import Failure
from nixsnap.nix.flights import Flight, Flights, await_first
from nixsnap.nix.progress import Progress, ProgressSink, ignore
from nixsnap.nix.realise import ClosureRequest, check_present
from nixsnap.nix.storepath import StorePath
from nixsnap.nix.watchdog import watchdog

_AT_ONCE: Final = 8


class _LinkLostError(Exception):
    """The program failed when those for whom it was called had gone, with the directory of its out-link."""


class ExternalBuilder:
    """Realises with a program: called with an out-link and a store path, once for each path.

    The program makes the path present and the out-link a root of it, as `nix build --out-link` does. That is the
    contract of `external_builder` in pdtpartners/nix-snapshotter (`pkg/nix/nix.go`). Two callers who want a path at the
    same time wait for one call; then the program is called once more for the other's out-link, and finds the path.

    Args:
        program: The program.
        store: Where the store lies on this host.
        config: The `[nix]` table, of which `stall_seconds` and `grace_seconds` apply.
    """

    def __init__(self, *, program: Path, store: Path, config: NixConfig) -> None:
        self._program = program
        self._store = store
        self._stall_seconds = config.stall_seconds
        self._executor = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="builder")
        self._flights: Flights[StorePath, Path] = Flights(self._executor, grace_seconds=config.grace_seconds)

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,
        caller: Caller | None = None,
    ) -> tuple[StorePath, ...]:
        """As `Realiser.realise` says."""
        caller = caller or Caller()
        gcroots.mkdir(mode=0o755, parents=True, exist_ok=True)
        listed: list[StorePath] = []
        if request.closure_info is not None:
            self._build_all([request.closure_info], gcroots, caller, progress)
            listed = read_closure_info(self._store, request.closure_info)
        closure = tuple(sorted({*request.store_paths, *listed}))
        # Each by name: only Nix knows what a closureInfo refers to, and the program may not be Nix.
        self._build_all(closure, gcroots, caller, progress)
        check_present(self._store, closure)
        return closure

    def close(self) -> None:
        """End all programs; those who wait for them get an error."""
        self._executor.shutdown(wait=False, cancel_futures=False)
        self._flights.end_all()

    def _build_all(
        self, paths: Collection[StorePath], gcroots: Path, caller: Caller, progress: ProgressSink
    ) -> None:
        def build(flight: Flight[StorePath, Path]) -> Path:
            (path,) = flight.keys
            out_link = gcroots / path.name
            try:
                self._build(path, out_link, flight.caller)
            except NixsnapError as exc:
                if gcroots.is_dir():
                    raise
                raise _LinkLostError from exc
            return out_link

        with contextlib.ExitStack() as stack:
            # Boarded in order, so that at a failure those that have not begun are given up together.
            waiting = [
                (path, stack.enter_context(self._flights.board([path], build, sink=lambda _: ignore))[0])
                for path in paths
            ]
            for done, (path, flight) in enumerate(waiting, start=1):
                self._await(path, flight, gcroots / path.name, caller)
                progress(Progress(paths_done=done, paths_total=len(waiting), current=(str(path),)))

    def _await(
        self, path: StorePath, flight: Flight[StorePath, Path], out_link: Path, caller: Caller
    ) -> None:
        while not flight.future.done():
            await_first([flight], caller, timeout_seconds=None, waiting_for=str(path))
        error = flight.future.exception()
        if error is None and flight.future.result() == out_link:
            return
        if error is not None and not isinstance(error, _LinkLostError) and not flight.caller.gone:
            raise error
        self._build(path, out_link, caller)

    def _build(self, path: StorePath, out_link: Path, caller: Caller) -> None:
        heard_seconds = time.monotonic()

        def heard(_line: bytes) -> bool:
            nonlocal heard_seconds
            heard_seconds = time.monotonic()
            return True

        call = Caller()
        with (
            caller.told(call.leave),
            watchdog(lambda: heard_seconds, limit_seconds=self._stall_seconds, bite=call.leave) as watch,
        ):
            try:
                process.run(
                    [str(self._program), str(out_link), str(path)],
                    purpose=f"realise {path}",
                    caller=call,
                    heard=heard,
                    only_words=True,
                )
            except process.ProgramError as exc:
                caller.check(waiting_for=str(path))
                if watch.bitten:
                    raise UnavailableError(
                        f"cannot realise {path}: {self._program} has said nothing for {self._stall_seconds:g} seconds",
                        hint="[nix] stall_seconds is how long it may be silent",
                    ) from exc
                raise Failure(paths=[path], words=str(exc)).error() from exc
