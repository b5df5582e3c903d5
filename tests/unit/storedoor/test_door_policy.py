"""Whom the store's files may seem to belong to."""

from __future__ import annotations

import pytest

from nixsnap.errors import PermissionDeniedError
from nixsnap.mounts.values import ID_END, IdRange
from nixsnap.storedoor.policy import (
    Authority,
    Grant,
    Peer,
    SubRange,
    decide,
    host_id,
    parse_id_map,
    parse_sub_ids,
)

ALICE = Peer(pid=77, uid=1000, gid=1001)
NIXBLD = 30_000


def ids(*runs: tuple[int, int, int]) -> tuple[IdRange, ...]:
    """An id map, as /proc/PID/uid_map has it."""
    return tuple(
        IdRange(container_id=inside, host_id=outside, length=length) for inside, outside, length in runs
    )


def authority(*, subuids: tuple[SubRange, ...] = (), subgids: tuple[SubRange, ...] = ()) -> Authority:
    """What Alice may map to."""
    return Authority(peer=ALICE, subuids=subuids, subgids=subgids)


OWN_UIDS = ids((0, 1000, 1), (1, 100_000, 65_536))
OWN_GIDS = ids((0, 1001, 1), (1, 100_000, 65_536))
RANGES = (SubRange(100_000, 65_536),)


def test_a_rootless_namespace():
    """As rootlesskit makes it: root is the user, the others are his ranges; the store's group keeps its number."""
    grant = decide(
        authority(subuids=RANGES, subgids=RANGES), uid_map=OWN_UIDS, gid_map=OWN_GIDS, store_gid=NIXBLD
    )
    assert grant == Grant(uid_map=ids((0, 1000, 1)), gid_map=ids((0, 1001, 1), (NIXBLD, 129_999, 1)))
    assert str(grant) == "uids=0:1000:1 gids=0:1001:1,30000:129999:1"


def test_builders_are_not_mapped():
    """No more than the owners of what is finished, whatever the namespace could take."""
    grant = decide(
        authority(subuids=RANGES, subgids=RANGES), uid_map=OWN_UIDS, gid_map=OWN_GIDS, store_gid=NIXBLD
    )
    assert [host_id(grant.uid_map, uid) for uid in (1, 1000, NIXBLD + 1)] == [None, None, None]


@pytest.mark.parametrize("store_gid", [0, NIXBLD])
def test_without_ranges(store_gid):
    """A namespace of one id, as unshare --map-root-user makes it, needs none; the store's group is then nobody's."""
    grant = decide(authority(), uid_map=ids((0, 1000, 1)), gid_map=ids((0, 1001, 1)), store_gid=store_gid)
    assert grant == Grant(uid_map=ids((0, 1000, 1)), gid_map=ids((0, 1001, 1)))


def test_a_store_group_in_a_range_that_is_not_his_is_left_out():
    """The group is a nicety; the rest is granted."""
    grant = decide(authority(), uid_map=OWN_UIDS, gid_map=OWN_GIDS, store_gid=NIXBLD)
    assert grant.gid_map == ids((0, 1001, 1))


def test_root_inside_may_be_one_of_his_ranges():
    """A container of his, in a namespace below."""
    grant = decide(
        authority(subuids=RANGES, subgids=RANGES),
        uid_map=ids((0, 165_535, 1)),
        gid_map=ids((0, 100_000, 1)),
        store_gid=0,
    )
    assert grant == Grant(uid_map=ids((0, 165_535, 1)), gid_map=ids((0, 100_000, 1)))


@pytest.mark.parametrize(
    ("uids", "gids", "words"),
    [
        (ids((0, 1002, 1)), OWN_GIDS, "user 0 of its user namespace is user 1002, which is not user 1000's"),
        (ids((0, 165_536, 1)), OWN_GIDS, "is user 165536, which is not user 1000's"),
        (ids((0, 99_999, 2)), OWN_GIDS, "is user 99999, which is not user 1000's"),
        (
            OWN_UIDS,
            ids((0, 1000, 1)),
            "group 0 of its user namespace is group 1000, which is not user 1000's",
        ),
        (ids((0, 0, 4_294_967_295)), OWN_GIDS, "user 0 .* is the machine's user 0, which is never mapped to"),
        (OWN_UIDS, ids((0, 0, 4_294_967_295)), "the machine's group 0"),
        ((), OWN_GIDS, "has no user 0"),
        (ids((1, 1000, 1)), OWN_GIDS, "has no user 0"),
        (OWN_UIDS, (), "has no group 0"),
    ],
)
def test_what_is_not_his_is_refused(uids, gids, words):
    """Another's id or range, the ids around his range, root's, none at all."""
    with pytest.raises(PermissionDeniedError, match=words):
        decide(authority(subuids=RANGES, subgids=RANGES), uid_map=uids, gid_map=gids, store_gid=0)


def test_roots_own_ids_are_never_mapped_to():
    """Not even for root, nor where /etc/subuid gives them away."""
    root = Authority(peer=Peer(pid=1, uid=0, gid=0), subuids=(SubRange(0, 10),), subgids=(SubRange(0, 10),))
    with pytest.raises(PermissionDeniedError, match="never mapped to"):
        decide(root, uid_map=ids((0, 0, 1)), gid_map=ids((0, 5, 1)), store_gid=0)


def test_the_subid_files():
    """By name and by number; of others, and what does not read as a line, nothing (subuid(5))."""
    text = (
        "bob:300000:65536\nalice:100000:65536\n1000:200000:10\n\n# a remark\nalice:1:2:3\nalice:x:1\n"
        "alice:-5:10\nalice:5:0\nalice:4294967290:10\n alice:400000:1 \nalice2:500000:1\nalice:²:1\n"
    )
    assert parse_sub_ids(text, name="alice", uid=1000) == (
        SubRange(100_000, 65_536),
        SubRange(200_000, 10),
        SubRange(400_000, 1),
    )
    assert parse_sub_ids("", name="alice", uid=1000) == ()


def test_the_kernels_maps():
    """Padded with spaces; the initial namespace's has every id there is."""
    assert parse_id_map("         0       1000          1\n         1     100000      65536\n") == OWN_UIDS
    assert parse_id_map("") == ()
    (whole,) = parse_id_map("         0          0 4294967295\n")
    assert (whole.container_id, whole.host_id, whole.length) == (0, 0, ID_END)


@pytest.mark.parametrize("text", ["0 0\n", "a b c\n", "0 0 1 2\n", "0 0 0\n", "-1 0 1\n"])
def test_what_no_kernel_writes(text):
    """It is no map, and nothing is made of it."""
    with pytest.raises(ValueError, match=r"unpack|invalid literal|must be >"):
        parse_id_map(text)
