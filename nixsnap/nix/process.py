"""Running Nix: one program to its end, with the last of what it said kept for the error."""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs

from nixsnap import netns
from nixsnap.errors import FailedPreconditionError, UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.later import later

_KEPT_LINES: Final = 20
_LINE_LIMIT_BYTES: Final = 4096
_BLOCK_BYTES: Final = 65536
_FIRST_POLL_SECONDS: Final = 0.0005
_POLL_SECONDS: Final = 0.05
END_SECONDS: Final = 5.0
"""How long programs that are told to end have until they are killed."""


@attrs.frozen(kw_only=True)
class Output:
    """What a program that ended well printed."""

    stdout: str


class ProgramError(Exception):
    """A program failed.

    Attributes:
        was_killed: Whether a signal ended it.
    """

    def __init__(self, program: str, code: int, words: str) -> None:
        self.was_killed = code < 0
        ending = f"was killed by signal {-code}" if self.was_killed else f"exit status {code}"
        super().__init__(f"{program} {ending}: {words or 'it printed nothing'}")


def run(
    arguments: Sequence[str],
    *,
    purpose: str,
    environment: Mapping[str, str] | None = None,
    caller: Caller | None = None,
    heard: Callable[[bytes], bool] | None = None,
    only_words: bool = False,
) -> Output:
    """Run a program to its end.

    Its two outputs are read all the time, so that no amount of them can stop it, and only the end of its standard
    error is kept.

    Args:
        arguments: The program and its arguments.
        purpose: What this is for, as "fetch the closure of X"; the error begins with it.
        environment: Variables put over our own.
        caller: The program is ended when this one goes away.
        heard: Called with each line of its standard error; whether that line is worth keeping for an error.
        only_words: Its standard output is for people too, and goes where its standard error goes.

    Raises:
        FailedPreconditionError: There is no such program.
        UnavailableError: nixsnap is stopping.
        ProgramError: It failed, or was ended.
    """
    stderr_to = subprocess.STDOUT if only_words else subprocess.PIPE
    process = spawn(arguments, purpose=purpose, environment=environment, stderr=stderr_to)
    told = contextlib.nullcontext() if caller is None else caller.told(lambda: end(process))
    try:
        with told:
            stdout, stderr = _read(process, heard)
            _has_ended(process, within_seconds=math.inf)
    finally:
        reap(process)
    if process.returncode != 0:
        raise ProgramError(arguments[0], process.returncode, stderr.text())
    return Output(stdout=stdout.decode(errors="surrogateescape"))


def spawn(
    arguments: Sequence[str],
    *,
    purpose: str,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a program, whose outputs are pipes, for the caller to `reap` in the end.

    Raises:
        FailedPreconditionError, UnavailableError: As `run`.
    """
    if _closing.is_set():
        raise UnavailableError(f"cannot {purpose}: nixsnap is stopping")
    try:
        process = netns.within(
            lambda: subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # A group of its own: what the service manager or a terminal sends to ours is for us to pass on.
                start_new_session=True,
                env={**os.environ, **_carried, **(environment or {})},
            )
        )
    except OSError as exc:
        if exc.errno in {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}:
            raise
        raise FailedPreconditionError(
            f"cannot {purpose}: cannot run {arguments[0]!r}: {exc.strerror}",
            hint="install Nix, or put its bin directory on nixsnap's PATH",
        ) from exc
    _running.add(process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program with what it started, without waiting for it: it has `END_SECONDS` until it is killed."""
    _signal(process, signal.SIGTERM)  # Nix ends its builders then, which are no part of its process group
    later(END_SECONDS, lambda: _signal(process, signal.SIGKILL))


def wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a program that ends by itself; one that does not is killed after `END_SECONDS`."""
    if not _has_ended(process, within_seconds=END_SECONDS):
        _signal(process, signal.SIGKILL)
        _has_ended(process, within_seconds=math.inf)


def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a program as `wait` does, and give up what we hold of it; of no effect the second time."""
    try:
        wait(process)
    finally:
        _running.discard(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def carry(variables: Mapping[str, str]) -> None:
    """Put variables into the environment of every program that is started from now on."""
    _carried.update(variables)


def end_all() -> None:
    """End all running programs with what they started, and start no more; each `run` then raises.

    Takes `END_SECONDS` at most.
    """
    _closing.set()
    _signal_all(signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while _running and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _signal_all(signal.SIGKILL)


_carried: dict[str, str] = {}
_running: set[subprocess.Popen[bytes]] = set()  # its add, discard and list are atomic
_closing = threading.Event()
# A process id is free for others once somebody has waited for it, so nobody does while somebody else signals. A pidfd
# would do for one process, but for a group of them only from Linux 6.9 on (PIDFD_SIGNAL_PROCESS_GROUP).
_reaping = threading.Lock()


def _signal_all(number: signal.Signals) -> None:
    for process in list(_running):
        _signal(process, number)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with _reaping, contextlib.suppress(ProcessLookupError):
        if process.returncode is None:  # nobody has waited for it
            os.killpg(process.pid, number)


def _has_ended(process: subprocess.Popen[bytes], *, within_seconds: float) -> bool:
    """Wait for a program's end, and take note of it. As `Popen.wait` does it, which knows nothing of our lock."""
    deadline = time.monotonic() + within_seconds
    delay = _FIRST_POLL_SECONDS
    while True:
        with _reaping:
            if process.poll() is not None:
                return True
        if (left := deadline - time.monotonic()) <= 0:
            return False
        time.sleep(min(delay, left))
        delay = min(2 * delay, _POLL_SECONDS)


class _Tail:
    """The last lines of an output, and of an endless line its beginning.

    Args:
        heard: Told of each line; whether it is worth keeping.
    """

    def __init__(self, heard: Callable[[bytes], bool] | None = None) -> None:
        self._heard = heard
        self._lines: collections.deque[bytes] = collections.deque(maxlen=_KEPT_LINES)
        self._partial = b""

    def add(self, block: bytes) -> None:
        *whole, partial = (self._partial + block).split(b"\n")
        self._lines.extend(line[:_LINE_LIMIT_BYTES] for line in whole if line.strip() and self._is_kept(line))
        self._partial = partial[:_LINE_LIMIT_BYTES]

    def _is_kept(self, line: bytes) -> bool:
        return self._heard is None or self._heard(line)

    def text(self) -> str:
        lines = [*self._lines, self._partial] if self._partial.strip() else self._lines
        return "\n".join(line.decode(errors="replace") for line in lines)


def _read(process: subprocess.Popen[bytes], heard: Callable[[bytes], bool] | None) -> tuple[bytes, _Tail]:
    """Read both outputs until the program ends, and then what is left in them.

    Not until their end: a process that the program left behind may hold them open for ever (ssh, with a connection that
    is shared).
    """
    stdout, stderr = bytearray(), _Tail(heard)
    take_stdout = stderr.add if process.stderr is None else stdout.extend
    takers: dict[int, Callable[[bytes], object]] = {}
    with selectors.DefaultSelector() as selector, _opened_pidfd(process) as pid_fd:
        for pipe, take in ((process.stdout, take_stdout), (process.stderr, stderr.add)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                takers[pipe.fileno()] = take
                selector.register(pipe.fileno(), selectors.EVENT_READ)
        selector.register(pid_fd, selectors.EVENT_READ)
        ended = False
        while not ended:
            ready = {key.fd for key, _ in selector.select()}
            ended = pid_fd in ready
            for fd in list(takers) if ended else ready & takers.keys():
                if _drain(fd, takers[fd]):
                    selector.unregister(fd)
                    del takers[fd]
    return bytes(stdout), stderr


def _drain(fd: int, take: Callable[[bytes], object]) -> bool:
    """Take what is there now; whether it was the end."""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(fd, _BLOCK_BYTES):
            take(block)
        return True
    return False


@contextlib.contextmanager
def _opened_pidfd(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A descriptor that can be read once the process has ended (Linux 5.3)."""
    fd = os.pidfd_open(process.pid)
    try:
        yield fd
    finally:
        os.close(fd)
