"""Running Nix: one program to its end, with the last of what it said kept for the error."""

from __future__ import annotations

import collections
import contextlib
import errno
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
from nixsnap.errors import (
    FailedPreconditionError,
    NixsnapError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

_KEPT_LINES: Final = 20
_LINE_LIMIT_BYTES: Final = 4096
_BLOCK_BYTES: Final = 65536
_POLL_SECONDS: Final = 0.05
END_SECONDS: Final = 5.0
"""How long programs that are told to end have until they are killed."""

# What Nix 2.8 to 2.26 print; the first that is found in the output decides. Everything else is Unavailable, since
# most failures of a fetch pass with time.
_MEANINGS: Final[Sequence[tuple[str, type[NixsnapError]]]] = (
    ("No space left on device", ResourceExhaustedError),
    ("Disk quota exceeded", ResourceExhaustedError),
    # A cache that could not be asked may well have the path, whatever is said of substituters after that.
    ("unable to download", UnavailableError),
    ("there is no substituter that can build it", NotFoundError),
    ("don't know how to build these paths", NotFoundError),
    ("no substituter that can build", NotFoundError),
)


@attrs.frozen(kw_only=True)
class Output:
    """What a program that ended well printed."""

    stdout: str


def run(arguments: Sequence[str], *, purpose: str, environment: Mapping[str, str] | None = None) -> Output:
    """Run a program to its end.

    Its two outputs are read all the time, so that no amount of them can stop it, and only the end of its standard
    error is kept.

    Args:
        arguments: The program and its arguments.
        purpose: What this is for, as "fetch the closure of X"; the error begins with it.
        environment: Variables put over our own.

    Raises:
        FailedPreconditionError: There is no such program.
        NotFoundError, ResourceExhaustedError, UnavailableError: It failed, or `end_all` ended it; the message holds
            its last lines.
    """
    if _closing.is_set():
        raise UnavailableError(f"cannot {purpose}: nixsnap is stopping")
    try:
        process = netns.within(
            lambda: subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A group of its own: what the service manager or a terminal sends to ours is for us to pass on.
                start_new_session=True,
                env=None if environment is None else {**os.environ, **environment},
            )
        )
    except OSError as exc:
        if exc.errno in {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}:
            raise
        raise FailedPreconditionError(
            f"cannot {purpose}: cannot run {arguments[0]!r}: {exc.strerror}",
            hint="install Nix, or put its bin directory on nixsnap's PATH",
        ) from exc
    with process, _noted(process):
        stdout, stderr = _read(process)
        code = process.wait()
    if code != 0:
        raise _failure(arguments[0], code, stderr.text(), purpose=purpose)
    return Output(stdout=stdout.decode(errors="surrogateescape"))


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


_running: set[subprocess.Popen[bytes]] = set()  # its add, discard and list are atomic
_closing = threading.Event()


def _signal_all(number: signal.Signals) -> None:
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):  # it is gone already
            os.killpg(process.pid, number)


@contextlib.contextmanager
def _noted(process: subprocess.Popen[bytes]) -> Iterator[None]:
    _running.add(process)
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        _running.discard(process)


class _Tail:
    """The last lines of an output, and of an endless line its beginning."""

    def __init__(self) -> None:
        self._lines: collections.deque[bytes] = collections.deque(maxlen=_KEPT_LINES)
        self._partial = b""

    def add(self, block: bytes) -> None:
        *whole, partial = (self._partial + block).split(b"\n")
        self._lines.extend(line[:_LINE_LIMIT_BYTES] for line in whole if line.strip())
        self._partial = partial[:_LINE_LIMIT_BYTES]

    def text(self) -> str:
        lines = [*self._lines, self._partial] if self._partial.strip() else self._lines
        return "\n".join(line.decode(errors="replace") for line in lines)


def _read(process: subprocess.Popen[bytes]) -> tuple[bytes, _Tail]:
    """Read both outputs until the program ends, and then what is left in them.

    Not until their end: a process that the program left behind may hold them open for ever (ssh, with a connection that
    is shared).
    """
    stdout, stderr = bytearray(), _Tail()
    takers: dict[int, Callable[[bytes], object]] = {}
    with selectors.DefaultSelector() as selector, _opened_pidfd(process) as pid_fd:
        for pipe, take in ((process.stdout, stdout.extend), (process.stderr, stderr.add)):
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


def _failure(program: str, code: int, stderr: str, *, purpose: str) -> NixsnapError:
    ending = f"was killed by signal {-code}" if code < 0 else f"exit status {code}"
    kind = next((kind for words, kind in _MEANINGS if words in stderr), UnavailableError)
    return kind(f"cannot {purpose}: {program} {ending}: {stderr or 'it printed nothing'}")
