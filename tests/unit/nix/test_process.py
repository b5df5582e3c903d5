"""Running a program to its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from nixsnap.errors import FailedPreconditionError, UnavailableError
from nixsnap.nix import process
from nixsnap.nix.caller import Caller


def run(script, **options):
    return process.run(["sh", "-c", script], purpose="test", **options)


def test_output_and_environment():
    """Standard output comes back whole; variables are put over our own."""
    assert run('printf %s "$A$HOME"', environment={"A": "x"}).stdout == "x" + os.environ["HOME"]


def test_missing_program_names_it_and_the_way_out():
    """Without Nix the error says which program is missing."""
    with pytest.raises(FailedPreconditionError, match="cannot realise: cannot run 'no-such-nix'") as raised:
        process.run(["no-such-nix"], purpose="realise")
    assert "install Nix" in raised.value.hint


def test_failure_carries_the_programs_words():
    """What the program said is in the message, and how it ended."""
    with pytest.raises(process.ProgramError, match="sh exit status 3: it rains"):
        run("echo it rains >&2; exit 3")


def test_silent_failure():
    """A program that says nothing is quoted as that."""
    with pytest.raises(process.ProgramError, match="it printed nothing"):
        run("exit 1")


def test_lines_are_heard_and_only_those_worth_it_kept():
    """Whoever listens decides which lines an error shows."""
    heard = []

    def listen(line: bytes) -> bool:
        heard.append(line)
        return line != b"chatter"

    with pytest.raises(process.ProgramError) as raised:
        run("echo chatter >&2; echo trouble >&2; exit 1", heard=listen)
    assert heard == [b"chatter", b"trouble"]
    assert "trouble" in str(raised.value)
    assert "chatter" not in str(raised.value)


def test_program_ends_with_its_caller():
    """A caller that goes away ends the program with what it started; one that had gone before, at once."""
    caller = Caller()
    threading.Timer(0.1, caller.leave).start()
    for _ in range(2):
        with pytest.raises(process.ProgramError, match="killed by signal 15") as raised:
            run("sleep 100 & wait", caller=caller)
        assert raised.value.was_killed


def test_program_that_ignores_the_end_is_killed(monkeypatch):
    """It has a while, and no more."""
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    caller = Caller()
    threading.Timer(0.1, caller.leave).start()
    with pytest.raises(process.ProgramError, match="killed by signal 9"):
        run("trap '' TERM; while :; do sleep 1; done", caller=caller)


def test_a_signal_finds_the_program_or_nobody(monkeypatch):
    """A program that ends while it is being signalled keeps its id until that is done, whoever waits for it."""
    kept = []

    def killpg(pid: int, _number: int) -> None:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)  # in which whoever waits would take note of the end
        kept.append(Path(f"/proc/{pid}").exists())

    program = process.spawn(["sleep", "1000"], purpose="test")
    monkeypatch.setattr(os, "killpg", killpg)
    waiting = threading.Thread(target=process.reap, args=[program])
    waiting.start()
    process.end(program)
    waiting.join()
    assert kept == [True]


def test_endless_standard_error_is_read_and_its_end_kept():
    """Megabytes there neither stop the program, as a full pipe would, nor fill our memory."""
    with pytest.raises(process.ProgramError) as raised:
        run("head -c 8000000 /dev/zero | tr '\\0' x >&2; seq -f 'line %g' 0 199 >&2; exit 1")
    assert "line 199" in str(raised.value)
    assert "line 100" not in str(raised.value)
    assert len(str(raised.value)) < 100_000


def test_killed_program_names_the_signal():
    """A program that was killed has no exit status."""
    with pytest.raises(process.ProgramError, match="killed by signal 9"):
        run("kill -9 $$")


def test_end_all_ends_the_whole_process_group(tmp_path):
    """What the program started goes with it; nothing is left that writes into a store nobody waits for."""
    pid_file = tmp_path / "pid"

    def end_when_running():
        while not (pid_file.exists() and pid_file.read_text().strip()):
            time.sleep(0.01)
        process.end_all()

    thread = threading.Thread(daemon=True, target=end_when_running)
    thread.start()
    with pytest.raises(process.ProgramError, match="killed by signal 15"):
        run(f"sleep 100 & echo $! > {pid_file}; wait")
    thread.join()
    with pytest.raises(UnavailableError, match="nixsnap is stopping"):
        run("true")
    process._closing.clear()
    child = int(pid_file.read_text())
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        # An orphan that nobody reaps stays a zombie, which is dead all the same.
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the child still runs")
