"""Running a program to its end."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from nixsnap.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError, UnavailableError
from nixsnap.nix import process


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


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("error: writing to file: No space left on device", ResourceExhaustedError),
        (
            "error: path '/nix/store/x' is required, but there is no substituter that can build it",
            NotFoundError,
        ),
        (
            "error: unable to download 'https://cache/x.narinfo': Couldn't connect to server (7)",
            UnavailableError,
        ),
    ],
)
def test_failure_carries_the_programs_words(words, kind):
    """What the program said decides the class, and is in the message."""
    with pytest.raises(kind) as raised:
        run(f'echo "{words}" >&2; exit 3')
    assert words in raised.value.message
    assert "exit status 3" in raised.value.message


def test_endless_standard_error_is_read_and_its_end_kept():
    """Megabytes there neither stop the program, as a full pipe would, nor fill our memory."""
    with pytest.raises(UnavailableError) as raised:
        run("head -c 8000000 /dev/zero | tr '\\0' x >&2; seq -f 'line %g' 0 199 >&2; exit 1")
    assert "line 199" in raised.value.message
    assert "line 100" not in raised.value.message
    assert len(raised.value.message) < 100_000


def test_killed_program_names_the_signal():
    """A program that was killed has no exit status."""
    with pytest.raises(UnavailableError, match="killed by signal 9"):
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
    with pytest.raises(UnavailableError, match="killed by signal 15"):
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
