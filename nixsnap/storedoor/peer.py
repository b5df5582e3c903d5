"""Who is at the other end of a connection, and what root and the kernel say of him."""

from __future__ import annotations

import errno
import os
import pwd
import select
import socket
import struct
from pathlib import Path
from typing import Final

from nixsnap.errors import PermissionDeniedError, UnavailableError
from nixsnap.mounts.values import IdRange, OwnedFd
from nixsnap.storedoor.policy import Authority, Peer, parse_id_map, parse_sub_ids

_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h, Linux 6.5; the socket module does not have it
_UCRED: Final = struct.Struct("3i")  # struct ucred, unix(7)

SUBUID: Final = Path("/etc/subuid")
SUBGID: Final = Path("/etc/subgid")


def identify(connection: socket.socket) -> Peer:
    """The process that connected. The kernel noted it then, in the words of the namespaces that we are in."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid=pid, uid=uid % 2**32, gid=gid % 2**32)


def look_up(peer: Peer, *, subuid: Path = SUBUID, subgid: Path = SUBGID) -> Authority:
    """What root lets the peer's user map to. The user database may be far away, and then this takes its time.

    Raises:
        PermissionDeniedError: He is no user of this machine: an id of somebody's container, for instance.
    """
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError as exc:
        raise PermissionDeniedError(f"user id {peer.uid} has no account on this machine") from exc
    return Authority(
        peer=peer,
        subuids=parse_sub_ids(_read(subuid), name=name, uid=peer.uid),
        # Groups are given to users, by their user id (subgid(5)).
        subgids=parse_sub_ids(_read(subgid), name=name, uid=peer.uid),
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def read_id_maps(connection: socket.socket, peer: Peer) -> tuple[tuple[IdRange, ...], tuple[IdRange, ...]]:
    """The user and the group map of the peer's user namespace, their outer ids as our namespace knows them.

    Raises:
        UnavailableError: The process has gone, or is hidden from us.
    """
    gone = UnavailableError(f"process {peer.pid} has gone, or cannot be seen from here")
    if peer.pid <= 0:
        raise gone
    try:
        with _open_process(connection, peer) as process:
            maps = tuple(
                parse_id_map(Path(f"/proc/{peer.pid}/{name}").read_text(encoding="ascii"))
                for name in ("uid_map", "gid_map")
            )
            # Only while the process is there is its number no other's; so the maps that were read are its own.
            if _has_ended(process):
                raise gone
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise gone from exc
    uid_map, gid_map = maps
    return uid_map, gid_map


def _open_process(connection: socket.socket, peer: Peer) -> OwnedFd:
    """A descriptor of the process that connected.

    Before Linux 6.5 it is looked up by its number. Should that be another's by now, its map is read, and `policy`
    grants nothing that is not the peer's own.
    """
    try:
        return OwnedFd(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError as exc:
        if exc.errno in {errno.ENODATA, errno.ESRCH}:  # it ended, and was waited for
            raise ProcessLookupError(exc.errno, os.strerror(errno.ESRCH)) from exc
        if exc.errno != errno.ENOPROTOOPT:
            raise
    return OwnedFd(os.pidfd_open(peer.pid))


def _has_ended(process: OwnedFd) -> bool:
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    return bool(poll.poll(0))
