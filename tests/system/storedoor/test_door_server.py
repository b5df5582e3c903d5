"""The door's loop in this process, where what goes wrong can be made to."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doorlab import ALICE
from lab.processes import wait_until

from nixsnap.mounts.values import IdRange
from nixsnap.storedoor import peer, protocol
from nixsnap.storedoor.limits import Limits
from nixsnap.storedoor.policy import Authority, Peer
from nixsnap.storedoor.server import Door, Server

ONE = IdRange(container_id=0, host_id=ALICE, length=1)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _as_alice(monkeypatch, directory):
    """We ask ourselves: so root stands for Alice, in a namespace of one id; and nothing may stay open."""
    assert directory.is_dir()
    monkeypatch.setattr(peer, "read_id_maps", lambda _connection, _peer: ((ONE,), (ONE,)))
    before = descriptors()
    yield
    assert descriptors() == before


def alice(client: Peer) -> Authority:
    return Authority(peer=Peer(pid=client.pid, uid=ALICE, gid=ALICE))


@pytest.fixture
def serving(directory: Path) -> Iterator[Callable[..., Path]]:
    """Serve a door until the test ends, and return its socket's path."""
    stop, waker = socket.socketpair()
    started: list[tuple[threading.Thread, socket.socket]] = []

    def serve(door: Door, kind: type[socket.socket] = socket.socket) -> Path:
        listener = kind(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address = directory / "door.sock"
        listener.bind(str(address))
        listener.listen()
        thread = threading.Thread(daemon=True, target=lambda: Server(door, listener).run(stop))
        thread.start()
        started.append((thread, listener))
        return address

    yield serve
    waker.send(b"x")
    for thread, listener in started:
        thread.join()
        listener.close()
    stop.close()
    waker.close()


def ask(address: Path) -> tuple[bytes, int]:
    """The answer, and how many descriptors came with it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(str(address))
        with contextlib.suppress(BrokenPipeError):  # it has been refused already
            connection.send(protocol.REQUEST)
        record, came, _flags, _address = socket.recv_fds(connection, 1000, 4)
    for descriptor in came:
        os.close(descriptor)
    return record, len(came)


def test_a_grant(serving, store):
    """What the other tests of this file depart from."""
    assert ask(serving(Door(store=store, look_up=alice))) == (protocol.GRANTED, 1)


def test_a_store_that_has_gone(serving, store, caplog):
    """Refused, and the next one too; it is logged as an error of ours."""
    address = serving(Door(store=store, look_up=alice))
    store.rename(store.with_name("elsewhere"))
    for _ in range(2):
        record, came = ask(address)
        assert record.startswith(b"refused the store cannot be shown: [Errno 2] No such file or directory")
        assert came == 0
    assert "cannot show the store uid=0" in caplog.text
    store.with_name("elsewhere").rename(store)
    assert ask(address) == (protocol.GRANTED, 1)


def test_a_store_whose_place_a_symlink_took(serving, store, directory):
    """It is not followed, wherever it leads."""
    address = serving(Door(store=store, look_up=alice))
    store.rename(store.with_name("elsewhere"))
    (directory / "secret").mkdir()
    store.symlink_to(directory / "secret")
    record, came = ask(address)
    assert record.startswith(
        b"refused the store cannot be shown: open_tree: Too many levels of symbolic links"
    )
    assert came == 0


def test_a_fault_of_ours_is_one_clients(serving, store, caplog):
    """The connection is closed, its place is free again, and the log has where it was."""
    calls = iter([ValueError("a bug"), None])

    def look_up(client: Peer) -> Authority:
        if (error := next(calls)) is not None:
            raise error
        return alice(client)

    address = serving(Door(store=store, look_up=look_up, limits=Limits(per_user=1)))
    with pytest.raises((ConnectionError, AssertionError)):
        assert ask(address)[0] != b""
    wait_until(lambda: "failed uid=0" in caplog.text, what="log the fault")
    assert "a bug" in caplog.text
    wait_until(lambda: ask_again(address), what="serve the next one")


def ask_again(address: Path) -> bool:
    """Whether the place of the one before is free by now."""
    return ask(address)[0] == protocol.GRANTED


def test_no_descriptors_for_a_connection(serving, store, caplog):
    """It is tried again: those inside will soon give some back."""
    failures = iter([errno.EMFILE, errno.ENFILE, errno.ECONNABORTED])

    class Starved(socket.socket):
        def accept(self):
            if (number := next(failures, None)) is not None:
                raise OSError(number, os.strerror(number))
            return super().accept()

    assert ask(serving(Door(store=store, look_up=alice), Starved)) == (protocol.GRANTED, 1)
    assert caplog.text.count("cannot accept a connection") == 2


def test_no_thread_for_a_connection(serving, store, monkeypatch):
    """It is turned away, and takes up no place."""
    address = serving(Door(store=store, look_up=alice, limits=Limits(per_user=1)))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("door-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        assert ask(address)[0] == b"refused no thread to be had: can't start new thread"
    monkeypatch.setattr(threading.Thread, "start", start)
    assert ask(address) == (protocol.GRANTED, 1)


def test_a_client_that_goes_while_its_mount_is_made(serving, store, caplog):
    """What was made for it is closed, and the log says that it has left."""
    caplog.set_level(logging.INFO)
    looked, gone = threading.Event(), threading.Event()

    def look_up(client: Peer) -> Authority:
        looked.set()
        gone.wait()
        return alice(client)

    address = serving(Door(store=store, look_up=look_up))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(address))
        connection.send(protocol.REQUEST)
        looked.wait()
    gone.set()
    wait_until(lambda: "left uid=0" in caplog.text, what="notice")


def test_one_that_is_slow_to_look_up_holds_up_nobody(serving, store):
    """A user database far away: others are served meanwhile."""
    first, go_on = threading.Event(), threading.Event()

    def look_up(client: Peer) -> Authority:
        if not first.is_set():
            first.set()
            go_on.wait()
        return alice(client)

    address = serving(Door(store=store, look_up=look_up))
    slow = threading.Thread(daemon=True, target=lambda: ask(address))
    slow.start()
    first.wait()
    assert ask(address) == (protocol.GRANTED, 1)
    go_on.set()
    slow.join()
