"""Programs that a daemon which was killed left running, and those that are nobody's business."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

from nixsnap.nix import leftovers, process

SCRIPT = """
import sys
from pathlib import Path
from nixsnap.nix import leftovers, process
leftovers.take_over(Path(sys.argv[1]))
print(process.spawn(["sleep", "1000"], purpose="test").pid)
"""


@pytest.fixture
def own_environment(monkeypatch):
    """What programs of this process carry is as before afterwards."""
    monkeypatch.setattr(process, "_carried", {})


@pytest.fixture
def spawned():
    """Starts a daemon of a root that starts a program and is gone; gives what waits for that program's end."""
    pid_fds = []

    def spawn(root):
        root.mkdir(exist_ok=True)
        result = subprocess.run([sys.executable, "-c", SCRIPT, root], capture_output=True, check=True)
        pid_fds.append(os.pidfd_open(int(result.stdout)))
        return pid_fds[-1]

    yield spawn
    for pid_fd in pid_fds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
        os.close(pid_fd)


def has_ended(pid_fd, *, within_seconds):
    """Whether a process ends soon."""
    return bool(select.select([pid_fd], [], [], within_seconds)[0])


@pytest.mark.usefixtures("own_environment")
def test_what_an_earlier_daemon_left_is_ended(spawned, tmp_path):
    """The next daemon of the same root ends it, and nothing of another root's."""
    ours, theirs = spawned(tmp_path / "root"), spawned(tmp_path / "other")
    leftovers.take_over(tmp_path / "root")
    assert has_ended(ours, within_seconds=30)
    assert not has_ended(theirs, within_seconds=0)


@pytest.mark.usefixtures("own_environment")
def test_a_root_of_the_same_name_is_another(spawned, tmp_path):
    """As that of a daemon in a container is, whose processes can be seen from outside."""
    theirs = spawned(tmp_path / "root")
    (tmp_path / "root").rename(tmp_path / "moved")
    (tmp_path / "root").mkdir()
    leftovers.take_over(tmp_path / "root")
    assert not has_ended(theirs, within_seconds=0.2)


@pytest.mark.usefixtures("own_environment")
def test_one_that_does_not_end_is_killed(tmp_path, monkeypatch):
    """SIGTERM is asked for first."""
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    leftovers.take_over(tmp_path)
    stubborn = process.spawn(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], purpose="test"
    )
    assert stubborn.stdout.readline() == b"ready\n"
    leftovers.take_over(tmp_path)
    assert stubborn.wait(30) == -signal.SIGKILL
    process.reap(stubborn)
