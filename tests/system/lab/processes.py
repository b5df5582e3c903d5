"""Running programs: short commands with errors worth reading, and daemons that end with their test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

STOP_SECONDS = 15.0
"""How long a daemon may take over SIGTERM before it is killed."""

RUNNING: list[Process] = []
"""Daemons not stopped yet; a failing test shows the ends of their logs."""


class CommandError(AssertionError):
    """A command ended with another status than zero; the message holds what it printed."""


def run(
    *argv: str | Path,
    check: bool = True,
    timeout_seconds: float = 120.0,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output.

    `environment` is added to this process's own. Raises CommandError when `check` is set and the status is
    not zero, and subprocess.TimeoutExpired (the command is killed) when it takes too long.
    """
    result = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout_seconds,
        env={**os.environ, **(environment or {})},
    )
    if check and result.returncode != 0:
        command = " ".join(map(str, argv))
        raise CommandError(f"status {result.returncode}: {command}\n{result.stdout}{result.stderr}")
    return result


def wait_until(condition: Callable[[], bool], *, what: str, timeout_seconds: float = 20.0) -> None:
    """Return once `condition` holds; raise TimeoutError naming `what` when it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:g} s")
        time.sleep(0.01)


@attrs.define(kw_only=True, eq=False)
class Process:
    """A daemon started by us, known by its pid, its output in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, name: str, *argv: str | Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start `argv` with both output streams appended to `log`.

        The program gets SIGTERM when the thread that started it ends, however that happens, so that a killed
        test run leaves no daemon behind (setpriv(1) execs it, so the pid is the program's own).
        """
        with log.open("ab") as output:
            popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        process = cls(name=name, popen=popen, log=log)
        RUNNING.append(process)
        return process

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self.popen.pid

    def log_text(self, *, last_bytes: int = 20_000) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-last_bytes:].decode(errors="replace")

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def wait_until(self, condition: Callable[[], bool], *, what: str, timeout_seconds: float = 20.0) -> None:
        """Return once `condition` holds; fail with the log when the program ends first or time runs out."""

        def holds() -> bool:
            if condition():
                return True
            if not self.is_running():
                raise CommandError(
                    f"{self.name} ended ({self.popen.returncode}) before {what}:\n{self.log_text()}"
                )
            return False

        try:
            wait_until(holds, what=f"{self.name}: {what}", timeout_seconds=timeout_seconds)
        except TimeoutError as error:
            raise CommandError(f"{error}\n{self.log_text()}") from None

    def stop(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        """End it by SIGTERM, by SIGKILL if that does not do, and return its status (negative: the signal)."""
        if self in RUNNING:
            RUNNING.remove(self)
        if self.is_running():
            self.popen.terminate()
        try:
            return self.popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def kill(self) -> int:
        """End it by SIGKILL, as a crash would, and return its status."""
        if self in RUNNING:
            RUNNING.remove(self)
        self.popen.kill()
        return self.popen.wait()


def _argv(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended while we looked, or it is a kernel thread
        return []


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def processes_naming(directory: Path) -> list[int]:
    """The processes, not this one, with an argument that is `directory` or a path beneath it."""
    exact, prefix = os.fsencode(directory), os.fsencode(directory) + b"/"
    return [
        pid
        for pid in _pids()
        if pid != os.getpid() and any(word == exact or word.startswith(prefix) for word in _argv(pid))
    ]


def kill_naming(directory: Path) -> list[int]:
    """Kill, each by its pid, the processes naming `directory` and their children; return those pids.

    What a containerd leaves behind when it dies: its shims carry its socket on their command line, and the
    shims' children are the containers' first processes.
    """
    named = processes_naming(directory)
    doomed = [*named, *(child for pid in named for child in _children(pid))]
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it went by itself
            continue
    wait_until(lambda: not processes_naming(directory), what=f"end of the processes below {directory}")
    return doomed
