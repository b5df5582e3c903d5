"""Whose the store's files may seem to be: pure functions of who asks and of what root has set down.

A grant maps the few ids that own what is finished in a store: user 0, group 0, and the group of the store directory
itself. Everything else, such as the builders' users and what they are building, stays nobody's. The ids that they are
mapped to are those by which the asking process's own user namespace knows them, so that a number is the same inside as
outside; and each must be the user's own, or lie in a range that root gave him in /etc/subuid and /etc/subgid. Root's
ids are never mapped to.

The mapping is taken from the process's namespace and not from its message, since a message could ask for more than the
process can use. But nothing rests on that: whatever the map says, and whosever it is (the process could have died, and
its number now be another's), its ids are checked against the user that the kernel named when the socket was connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from nixsnap.errors import PermissionDeniedError
from nixsnap.mounts.values import ID_END, IdRange

_FIELDS: Final = 3


@attrs.frozen(kw_only=True)
class Peer:
    """The process at the other end of a connection, as the kernel names it."""

    pid: int
    uid: int
    gid: int


@attrs.frozen
class SubRange:
    """A run of ids that root gave to a user."""

    start: int
    count: int

    def __contains__(self, number: int) -> bool:
        return self.start <= number < self.start + self.count


@attrs.frozen(kw_only=True)
class Authority:
    """What a user may map to.

    Attributes:
        peer: His own user and group.
        subuids: His ranges of users.
        subgids: His ranges of groups.
    """

    peer: Peer
    subuids: Sequence[SubRange] = ()
    subgids: Sequence[SubRange] = ()


@attrs.frozen(kw_only=True)
class Grant:
    """Id maps for a mount of the store; `container_id` is an id on disk."""

    uid_map: tuple[IdRange, ...]
    gid_map: tuple[IdRange, ...]

    def __str__(self) -> str:
        return f"uids={_show(self.uid_map)} gids={_show(self.gid_map)}"


def _show(ranges: Iterable[IdRange]) -> str:
    return ",".join(f"{run.container_id}:{run.host_id}:{run.length}" for run in ranges)


def decide(
    authority: Authority, *, uid_map: Sequence[IdRange], gid_map: Sequence[IdRange], store_gid: int
) -> Grant:
    """Return the maps that a user gets.

    Args:
        authority: What he may map to.
        uid_map: The user map of the process's namespace, its outer ids as the initial namespace knows them.
        gid_map: Its group map.
        store_gid: The group of the store directory. It is left out where the namespace does not have it.

    Raises:
        PermissionDeniedError: The namespace's root is not his own.
    """
    peer = authority.peer
    uid = host_id(uid_map, 0)
    if uid is None or not _may(uid, peer.uid, authority.subuids):
        raise _not_yours("user", uid, peer)
    gid = host_id(gid_map, 0)
    if gid is None or not _may(gid, peer.gid, authority.subgids):
        raise _not_yours("group", gid, peer)
    groups = [IdRange(container_id=0, host_id=gid, length=1)]
    if store_gid != 0:
        group = host_id(gid_map, store_gid)
        if group is not None and _may(group, peer.gid, authority.subgids):
            groups.append(IdRange(container_id=store_gid, host_id=group, length=1))
    return Grant(uid_map=(IdRange(container_id=0, host_id=uid, length=1),), gid_map=tuple(groups))


def _may(number: int, own: int, ranges: Iterable[SubRange]) -> bool:
    return number != 0 and (number == own or any(number in given for given in ranges))


def _not_yours(kind: str, number: int | None, peer: Peer) -> PermissionDeniedError:
    if number is None:
        return PermissionDeniedError(f"process {peer.pid}: its user namespace has no {kind} 0")
    if number == 0:
        return PermissionDeniedError(
            f"process {peer.pid}: {kind} 0 of its user namespace is the machine's {kind} 0, which is never mapped to"
        )
    return PermissionDeniedError(
        f"process {peer.pid}: {kind} 0 of its user namespace is {kind} {number}, which is not user {peer.uid}'s"
    )


def host_id(id_map: Iterable[IdRange], number: int) -> int | None:
    """What an id of a namespace is outside; None if it has no such id."""
    for run in id_map:
        if run.container_id <= number < run.container_id + run.length:
            return run.host_id + number - run.container_id
    return None


def parse_id_map(text: str) -> tuple[IdRange, ...]:
    """Parse /proc/PID/uid_map; an empty one is that of a namespace whose map has not been written.

    Raises:
        ValueError: It is nothing that a kernel writes.
    """
    ranges = []
    for line in text.splitlines():
        inside, outside, length = (int(field) for field in line.split())
        ranges.append(IdRange(container_id=inside, host_id=outside, length=length))
    return tuple(ranges)


def parse_sub_ids(text: str, *, name: str, uid: int) -> tuple[SubRange, ...]:
    """The ranges that /etc/subuid or /etc/subgid gives to a user, by name or by number (subuid(5)).

    A line that does not read as one gives nothing, as with newuidmap(1).
    """
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) != _FIELDS or fields[0] not in {name, str(uid)}:
            continue
        start, count = fields[1:]
        if start.isascii() and start.isdigit() and count.isascii() and count.isdigit():
            run = SubRange(int(start), int(count))
            if run.count > 0 and run.start + run.count <= ID_END:
                found.append(run)
    return tuple(found)
