"""Who is at the other end, by kernels that give its descriptor and by those that do not."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nixsnap.errors import PermissionDeniedError, UnavailableError
from nixsnap.mounts.values import OwnedFd
from nixsnap.storedoor import peer
from nixsnap.storedoor.policy import Peer, SubRange, parse_id_map

UNKNOWN_OPTION = 0x7FFF


@pytest.fixture(params=["SO_PEERPIDFD", "pidfd_open"])
def _kernel(request, monkeypatch):
    """Both ways to hold on to a process; the kernel says ENOPROTOOPT to the one that it does not know."""
    if request.param == "pidfd_open":
        monkeypatch.setattr(peer, "_SO_PEERPIDFD", UNKNOWN_OPTION)


@pytest.fixture
def ends():
    """Two ends of a connection of our own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_kernel_names_the_peer(ends):
    """Its process, user and group."""
    assert peer.identify(ends) == Peer(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())


@pytest.mark.usefixtures("_kernel")
def test_its_id_maps(ends):
    """As /proc has them; nothing stays open."""
    before = open_descriptors()
    maps = peer.read_id_maps(ends, peer.identify(ends))
    assert maps == tuple(
        parse_id_map(Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map")
    )
    assert open_descriptors() == before


@pytest.mark.usefixtures("_kernel")
def test_a_process_that_has_gone(tmp_path):
    """Connected, and ended before it was looked at; its number may be another's any time."""
    address = tmp_path / "s"
    program = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen()
        subprocess.run([sys.executable, "-c", program, address], check=True)
        connection, _address = listener.accept()
    before = open_descriptors()
    with connection, pytest.raises(UnavailableError, match="has gone, or cannot be seen from here"):
        peer.read_id_maps(connection, peer.identify(connection))
    assert open_descriptors() < before


def test_a_process_that_ends_meanwhile(ends, monkeypatch):
    """Its maps were read, but they may be those of the next one with its number."""
    monkeypatch.setattr(peer, "_has_ended", lambda _process: True)
    with pytest.raises(UnavailableError, match="has gone"):
        peer.read_id_maps(ends, peer.identify(ends))


def test_a_process_of_another_pid_namespace(ends):
    """It has no number here."""
    with pytest.raises(UnavailableError, match="process 0 has gone, or cannot be seen"):
        peer.read_id_maps(ends, Peer(pid=0, uid=1000, gid=1000))


@pytest.mark.parametrize("number", [errno.ESRCH, errno.ENODATA])
def test_a_kernel_that_has_forgotten_the_process(number):
    """Some say so when they are asked for its descriptor."""

    class Forgetful:
        def getsockopt(self, *_arguments):
            raise OSError(number, os.strerror(number))

    with pytest.raises(UnavailableError, match="has gone"):
        peer.read_id_maps(Forgetful(), Peer(pid=os.getpid(), uid=0, gid=0))


def test_any_other_error_is_one():
    """It is not taken for an old kernel."""

    class Broken:
        def getsockopt(self, *_arguments):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(OSError, match="Too many open files"):
        peer.read_id_maps(Broken(), Peer(pid=os.getpid(), uid=0, gid=0))


def test_a_running_process_has_not_ended():
    """Nor has it when it is asked again."""
    with OwnedFd(os.pidfd_open(os.getpid())) as process:
        assert not peer._has_ended(process)


def test_what_root_gave_a_user(tmp_path):
    """By name and number, users and groups apart."""
    me = Peer(pid=1, uid=os.getuid(), gid=os.getgid())
    name = pwd.getpwuid(me.uid).pw_name
    (tmp_path / "subuid").write_text(f"{name}:100000:10\nother:5:5\n")
    (tmp_path / "subgid").write_text(f"{me.uid}:200000:10\n")
    authority = peer.look_up(me, subuid=tmp_path / "subuid", subgid=tmp_path / "subgid")
    assert authority.peer == me
    assert authority.subuids == (SubRange(100_000, 10),)
    assert authority.subgids == (SubRange(200_000, 10),)


def test_a_machine_without_ranges(tmp_path):
    """The files need not be there."""
    me = Peer(pid=1, uid=os.getuid(), gid=os.getgid())
    authority = peer.look_up(me, subuid=tmp_path / "none", subgid=tmp_path / "none")
    assert (authority.subuids, authority.subgids) == ((), ())


def test_a_user_without_an_account(tmp_path):
    """An id of somebody's container."""
    stranger = Peer(pid=1, uid=4_000_000_001, gid=1)
    with pytest.raises(PermissionDeniedError, match="user id 4000000001 has no account on this machine"):
        peer.look_up(stranger, subuid=tmp_path / "none", subgid=tmp_path / "none")
