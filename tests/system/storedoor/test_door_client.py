"""The user's side: what a daemon takes the store from, and doors that misbehave."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dooruser import Namespace
from lab.processes import wait_until

from nixsnap.errors import NotFoundError, PermissionDeniedError, UnavailableError
from nixsnap.storedoor import client, protocol

# As a daemon does at its start; what it logs is part of the result.
SHOW = """
import io, logging
words = io.StringIO()
logging.getLogger("nixsnap").addHandler(logging.StreamHandler(words))
logging.getLogger("nixsnap").setLevel(logging.INFO)
os.environ["T"] = str(target)
assert sh("mount -t tmpfs tmpfs $T")[0] == 0
mountpoint = target / "store"
def mounts():
    return sh("grep -c $T/store /proc/self/mountinfo")[1]
"""


def test_a_daemon_takes_the_doors_store(door, alice):
    """It is the store, root's; at the end it is gone, and so is what a killed daemon left."""
    seen = alice.run(
        SHOW
        + """
mountpoint.mkdir()
for _ in range(2):  # as a killed daemon leaves it
    with client.ask(door) as tree:
        kernel.attach(tree, mountpoint)
with client.shown_store(store, door=door, target=mountpoint) as shown:
    result = [str(shown), shown.stat().st_uid, sorted(os.listdir(shown)) == sorted(os.listdir(store)), mounts()]
result += [mounts(), mountpoint.exists(), words.getvalue().count("\\n"), words.getvalue()]
""",
        door=door.address,
        store=door.store,
    )
    *facts, words = seen
    assert facts == [str(alice.target / "store"), 0, True, "1", "0", False, 1]
    assert words.startswith("files of the store show as root's in containers store=")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("door=Path('/absent/door.sock')", "there is no store door at '/absent/door.sock'"),
        ("door=None", "no store_door is configured"),
        ("door=store", "Permission denied: '/"),
    ],
    ids=["no-door", "not-asked", "not-a-door"],
)
def test_without_a_door_all_is_as_before(store, alice, other, why):
    """The store itself, nobody's; said once."""
    shown, owner, lines, words = alice.run(
        SHOW
        + f"""
with client.shown_store(store, {other}, target=mountpoint) as shown:
    result = [str(shown), shown.stat().st_uid, words.getvalue().count("\\n"), words.getvalue()]
""",
        store=store,
    )
    assert (shown, lines) == (str(store), 1)
    assert owner == int(Path("/proc/sys/kernel/overflowuid").read_text())
    assert words.startswith("files of the store show as nobody's in containers store=")
    assert why in words


def test_a_door_that_refuses(door, store, directory):
    """Its reason is the log's."""
    stranger = Namespace(61_002, directory=directory, uid_map="0 61002 1\n", gid_map="0 61002 1\n")
    words = stranger.run(
        SHOW
        + """
with client.shown_store(store, door=door, target=mountpoint) as shown:
    assert shown == store
result = words.getvalue()
""",
        door=door.address,
        store=store,
    )
    assert "the store door refused: user id 61002 has no account on this machine" in words


def test_another_store(door, directory, alice):
    """A daemon that uses a store elsewhere does not take root's for it."""
    other = directory / "other"
    other.mkdir()
    words = alice.run(
        SHOW
        + """
with client.shown_store(store, door=door, target=mountpoint) as shown:
    assert shown == store
result = [words.getvalue(), mounts()]
""",
        door=door.address,
        store=other,
    )
    assert "the store door shows another store than ours" in words[0]
    assert words[1] == "0"


def test_a_store_of_ones_own_needs_no_door(directory, alice):
    """In the home, single-user: it is 0:0 already, and nothing is said."""
    own = directory / "own"
    own.mkdir()
    os.chown(own, alice.uid, alice.uid)
    seen = alice.run(
        SHOW
        + """
with client.shown_store(store, door=Path("/absent"), target=mountpoint) as shown:
    result = [str(shown), shown.stat().st_uid, words.getvalue()]
""",
        store=own,
    )
    assert seen == [str(own), 0, ""]


def test_root_needs_no_door(store, directory, caplog):
    """On the host nothing is asked, though the owner be the very id that nobody has."""
    os.chown(store, int(Path("/proc/sys/kernel/overflowuid").read_text()), 0)
    caplog.set_level(logging.INFO)
    with client.shown_store(store, door=Path("/absent"), target=directory / "shown") as shown:
        assert shown == store
    assert not caplog.records


@pytest.fixture
def odd_door(directory: Path) -> Iterator[Callable[[Callable[[socket.socket], object]], Path]]:
    """Make a door that answers one client in its own way."""
    threads = []
    address = directory / "odd.sock"

    def make(behave: Callable[[socket.socket], object]) -> Path:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(address))
        listener.listen()

        def serve() -> None:
            with listener:
                connection, _address = listener.accept()
                with connection:
                    behave(connection)

        threads.append(threading.Thread(daemon=True, target=serve))
        threads[-1].start()
        return address

    yield make
    for thread in threads:
        thread.join()


def descriptors() -> int:
    """How many are open here."""
    return len(list(Path("/proc/self/fd").iterdir()))


def with_descriptors(record: bytes, count: int) -> Callable[[socket.socket], object]:
    """Answer with as many descriptors."""

    def behave(connection: socket.socket) -> None:
        connection.recv(100)
        with Path("/dev/null").open("rb") as null:
            socket.send_fds(connection, [record], [null.fileno()] * count)

    return behave


@pytest.mark.parametrize(
    ("behave", "error", "words"),
    [
        (lambda connection: connection.recv(100), UnavailableError, "hung up without an answer"),
        (with_descriptors(protocol.refusal("no"), 1), PermissionDeniedError, "refused: no"),
        (with_descriptors(b"granted!", 1), UnavailableError, "makes no sense"),
        (with_descriptors(protocol.GRANTED, 0), UnavailableError, "grants a mount, but sends none"),
    ],
    ids=["hangs-up", "refuses-with-one", "nonsense-with-one", "grants-without"],
)
def test_a_door_that_misbehaves(odd_door, behave, error, words):
    """It gets a clear word, and nothing that it sent stays open."""
    address = odd_door(behave)
    before = descriptors()  # the listening socket among them, which its thread closes
    with pytest.raises(error, match=words):
        client.ask(address)
    wait_until(lambda: descriptors() < before, what="close all but what was open")


def test_more_descriptors_than_were_asked_for(odd_door):
    """The kernel closes them."""
    address = odd_door(with_descriptors(protocol.GRANTED, 20))
    before = descriptors()  # the listening socket among them, which its thread closes
    with client.ask(address):
        pass
    wait_until(lambda: descriptors() < before, what="close all but what was open")


def test_a_door_that_does_not_answer(odd_door, monkeypatch):
    """A daemon starts all the same."""
    monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.1)
    done = threading.Event()
    address = odd_door(lambda _connection: done.wait())
    try:
        with pytest.raises(UnavailableError, match="does not answer"):
            client.ask(address)
    finally:
        done.set()


def test_a_door_with_a_full_queue(directory, monkeypatch):
    """Somebody floods it: the client waits for its turn, up to a point."""
    monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.1)
    address = directory / "full.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(str(address))
            with pytest.raises(UnavailableError, match="lets nobody in"):
                client.ask(address)
            monkeypatch.setattr(client, "_ANSWER_SECONDS", 20.0)
            place = threading.Thread(daemon=True, target=lambda: answer_two(listener))
            place.start()
            with pytest.raises(PermissionDeniedError, match="refused: no"):
                client.ask(address)
            place.join()


def answer_two(listener: socket.socket) -> None:
    """Take two from the queue, and refuse them."""
    for _ in range(2):
        connection, _address = listener.accept()
        with connection:
            connection.send(protocol.refusal("no"))
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                connection.recv(100)


def test_no_door(directory):
    """The error names the path."""
    with pytest.raises(NotFoundError, match=r"there is no store door at .*none\.sock"):
        client.ask(directory / "none.sock")
