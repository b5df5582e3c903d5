"""One daemon a root directory, and what the service manager hears."""

from __future__ import annotations

import os
import socket

import pytest

from nixsnap.errors import FailedPreconditionError
from nixsnap.notify import notify
from nixsnap.rootlock import hold_root


def test_second_holder_is_refused_and_names_the_first(tmp_path):
    """flock belongs to the open file, so a second one in the same process is refused just as another process is."""
    lock = tmp_path / "lock"
    with hold_root(lock):
        with (
            pytest.raises(
                FailedPreconditionError, match=f"in use by another nixsnap .pid {os.getpid()}."
            ) as raised,
            hold_root(lock),
        ):
            pytest.fail("held twice")
        assert "--root" in raised.value.hint
    with hold_root(lock):
        pass


def test_a_lock_file_left_behind_does_not_matter(tmp_path):
    """What a killed daemon wrote there is no lock."""
    lock = tmp_path / "lock"
    lock.write_text("1\n")
    with hold_root(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_notify_sends_one_datagram(tmp_path, monkeypatch):
    """sd_notify(3): the state, as one datagram."""
    path = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_notify_abstract_socket(monkeypatch):
    """A leading @ is an abstract address."""
    name = f"nixsnap-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notify("STOPPING=1")
        assert listener.recv(100) == b"STOPPING=1"


def test_nobody_listens(tmp_path, monkeypatch, caplog):
    """A service manager that has gone is no reason to stop."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert "cannot notify" in caplog.text
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
