"""The door as a process: how it is started, and what it says when it cannot be."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorlab import ALICE, RunningDoor, start_door
from dooruser import Namespace
from lab import installed_program, run
from lab.processes import wait_until


@pytest.fixture
def activated(directory: Path, store: Path) -> Iterator[RunningDoor]:
    """A door that systemd's own program starts when the first client comes."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("this machine lacks systemd-socket-activate")
    address = directory / "door.sock"
    launcher = ("systemd-socket-activate", "--seqpacket", "--listen", address)
    process = start_door(directory, "--store", store, "--idle-seconds", "60", launcher=launcher)
    process.wait_until(address.exists, what="listen")
    address.chmod(0o666)
    yield RunningDoor(address=address, store=store, process=process)
    process.stop()


def test_socket_activation(activated, alice):
    """The first client is served as any other; the socket stays when the door ends, since it is systemd's."""
    assert alice.run("client.ask(door).close()\nresult = 1", door=activated.address) == 1
    activated.wait_for_log(f"granted uid={ALICE}")
    assert activated.process.stop() == 0
    assert activated.address.exists()


def allowed_calls(*sets: str) -> set[str]:
    """The system calls that systemd's sets stand for."""
    allowed: set[str] = set()
    for line in run("systemd-analyze", "--no-pager", "syscall-filter", *sets).stdout.splitlines():
        name = line.strip()
        if line.startswith("    @"):
            allowed |= allowed_calls(name)
        elif line.startswith("    ") and not name.startswith("#"):
            allowed.add(name)
    return allowed


def test_the_units_system_calls(directory, store, alice):
    """The door makes no system call, from its start to a grant, a refusal and its end, that the unit forbids it."""
    for program in ("strace", "systemd-analyze"):
        if shutil.which(program) is None:
            pytest.skip(f"this machine lacks {program}")
    address, trace = directory / "run/door.sock", directory / "trace"
    # The tracer as a grandchild, so that the process is the program itself.
    launcher = ("strace", "--daemonize=grandchild", "--follow-forks", "--output", trace)
    process = start_door(directory, "--store", store, "--address", address, launcher=launcher)
    process.wait_until(lambda: "serving" in process.log_text(), what="serve")
    assert alice.run("client.ask(door).close()\nresult = 1", door=address) == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(address))
        assert connection.recv(1000).startswith(b"refused")
    process.stop()
    text = trace.read_text()
    # Not what the launcher does before: from where the program itself is executed.
    begin = re.search(r"execve\(\"[^\"]*/nixsnap\"", text)
    assert begin is not None
    used = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", text[begin.start() :], flags=re.MULTILINE))
    assert {"clone3", "unshare", "open_tree", "mount_setattr", "move_mount"} <= used
    unit = (Path(__file__).parents[3] / "packaging/systemd/nixsnap-store-door.service").read_text()
    (sets,) = re.findall(r"^SystemCallFilter=(.*)$", unit, flags=re.MULTILINE)
    assert used - allowed_calls(*sets.split()) == set()


PASS = """
import os, socket, sys
kind, listens, *command = sys.argv[1:]
passed = socket.socket(socket.AF_UNIX, int(kind))
passed.bind("")
if listens == "yes":
    passed.listen()
os.dup2(passed.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS=os.environ.get("COUNT", "1"), LISTEN_PID=str(os.getpid()))
os.execvp(command[0], command)
"""


@pytest.mark.parametrize(
    ("passed", "count", "flags", "words"),
    [
        ((socket.SOCK_STREAM, "yes"), "1", [], "the socket that was passed is of another kind"),
        ((socket.SOCK_DGRAM, "no"), "1", [], "the socket that was passed is of another kind"),
        ((socket.SOCK_SEQPACKET, "no"), "1", [], "the socket that was passed is of another kind"),
        ((socket.SOCK_SEQPACKET, "yes"), "2", [], "one socket is to be passed, not '2'"),
        (
            (socket.SOCK_SEQPACKET, "yes"),
            "1",
            ["--group", "daemon"],
            "--address and --group are the socket's own",
        ),
    ],
)
def test_a_socket_that_is_no_use(store, passed, count, flags, words):
    """What is wrong with it, and the unit's setting for it."""
    kind, listens = passed
    done = subprocess.run(
        [
            *(sys.executable, "-c", PASS, str(int(kind)), listens),
            *(installed_program("nixsnap"), "store-door", "--store", store, *flags),
        ],
        env={**os.environ, "COUNT": count},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr


def refused_start(*flags: str | Path) -> str:
    """Why it does not start."""
    done = run(installed_program("nixsnap"), "store-door", *flags, check=False)
    assert done.returncode != 0
    return done.stderr


def test_a_store_that_is_no_use(directory, store):
    """Each with the store's name."""
    link = directory / "link"
    link.symlink_to(store)
    address = ("--address", directory / "door.sock")
    assert f"there is no store at '{directory}/none'" in refused_start(
        *address, "--store", directory / "none"
    )
    assert "not a symlink to it" in refused_start(*address, "--store", link)
    assert "the store cannot be idmapped: " in refused_start(*address, "--store", "/proc")
    os.chown(store, ALICE, ALICE)
    assert f"is user {ALICE}'s; only root's is shown to others" in refused_start(*address, "--store", store)
    assert not (directory / "door.sock").exists()


def test_a_socket_that_cannot_be(directory, store):
    """Another group, another door, another file."""
    flags = ("--store", store, "--address", directory / "door.sock")
    assert "there is no group 'no-such-group'" in refused_start(*flags, "--group", "no-such-group")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(directory / "door.sock"))
        other.listen()
        assert "is served by another process" in refused_start(*flags)
    (directory / "door.sock").unlink()
    (directory / "door.sock").touch()
    assert "is there and is no socket" in refused_start(*flags)


def test_a_dead_doors_socket_is_replaced(directory, store, alice):
    """One that was killed leaves its socket behind."""
    address = directory / "run/door.sock"
    first = start_door(directory, "--store", store, "--address", address)
    first.wait_until(lambda: "serving" in first.log_text(), what="serve")
    first.kill()
    shutil.rmtree(directory / "etc")
    second = start_door(directory, "--store", store, "--address", address)
    wait_until(lambda: second.log_text().count("serving store=") == 2, what="the second serves")
    assert alice.run("client.ask(door).close()\nresult = 1", door=address) == 1
    second.stop()


def test_only_root(store, directory):
    """Nobody else could make such mounts."""
    words = Namespace(ALICE, directory=directory).run(
        """
        from nixsnap.storedoor import service
        try:
            service.serve(store, address=None, group=None, idle_seconds=None)
        except Exception as error:
            result = str(error)
        """,
        store=store,
    )
    assert words == "only root can hand out mounts of its store"
