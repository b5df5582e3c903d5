"""Labels that ask for mapped ids."""

from __future__ import annotations

import pytest
from uglymappings import taken_by_the_rules, ugly_mappings

from nixsnap.errors import InvalidArgumentError
from nixsnap.mounts.values import IdMapping, IdRange
from nixsnap.snapshots.idmapping import GID_MAPPING, UID_MAPPING, mount_options, parse_mapping, same_mapping

GOOD = "0:100000:65536"


def test_without_labels_nothing_is_mapped():
    """An empty value is a label that is not there, as everywhere in containerd."""
    assert parse_mapping({}) is None
    assert parse_mapping({UID_MAPPING: "", GID_MAPPING: "", "other": "x"}) is None


def test_one_range():
    """As CRI and ctr of 1.7 send it."""
    run = IdRange(container_id=0, host_id=100_000, length=65_536)
    mapping = parse_mapping({UID_MAPPING: GOOD, GID_MAPPING: "0:200000:65536"})
    assert mapping == IdMapping(uids=(run,), gids=(IdRange(container_id=0, host_id=200_000, length=65_536),))
    assert mapping.root == (100_000, 200_000)


def test_several_ranges():
    """As ctr of 2.x sends them, in any order; root need not come first."""
    mapping = parse_mapping({UID_MAPPING: "1:6666:64536,0:666:1", GID_MAPPING: GOOD})
    assert [(run.container_id, run.host_id, run.length) for run in mapping.uids] == [
        (1, 6666, 64536),
        (0, 666, 1),
    ]
    assert mapping.root == (666, 100_000)


@pytest.mark.parametrize("value", ["0:0:4294967295", "0:4294967294:1", "0:5:1,1:4:1"])
def test_the_ends_of_what_is_allowed(value):
    """Every id that there is; the last one; ranges that touch."""
    assert parse_mapping({UID_MAPPING: value, GID_MAPPING: value}) is not None


def test_the_most_ranges():
    """What the kernel takes in one write."""
    most = ",".join(f"{n}:{n}:1" for n in range(340))
    assert len(parse_mapping({UID_MAPPING: most, GID_MAPPING: GOOD}).uids) == 340


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("root", "'root' is not container-id:host-id:length"),
        ("0:100000", "is not container-id"),
        ("0:100000:1:1", "is not container-id"),
        ("0:100000:65536,", "'' is not container-id"),
        ("0:-1:10", "is not container-id"),
        ("0:+1:10", "is not container-id"),
        (" 0:1:10", "is not container-id"),
        ("0:1:10\n", "is not container-id"),
        ("0:1:\u0661", "is not container-id"),
        ("0x0:1:10", "is not container-id"),
        ("0:1:0", "0:1:0"),
        ("0:4294967295:1", "lie beyond 4294967294"),
        ("0:4294967290:10", "lie beyond 4294967294"),
        ("0:0:4294967296", "lie beyond 4294967294"),
        ("0:1:99999999999", "is not container-id"),
        ("0:100:10,9:200:10", "overlap at container id 9"),
        ("9:200:10,0:100:10", "overlap at container id 9"),
        ("0:100:10,10:109:10", "overlap at host id 109"),
        ("1:100:10", "maps no container id 0"),
        (",".join(f"{n}:{n}:1" for n in range(341)), "has 341 ranges"),
        (",".join(f"{n}:{n + 1_000_000_000}:1" for n in range(300)), "in 4989 bytes"),
    ],
)
@pytest.mark.parametrize("label", [UID_MAPPING, GID_MAPPING])
def test_what_is_refused_by_name(label, value, words):
    """Malformed, overlapping, beyond the last id, without root, or more than the kernel takes."""
    with pytest.raises(InvalidArgumentError) as raised:
        parse_mapping({UID_MAPPING: GOOD, GID_MAPPING: GOOD, label: value})
    assert f"label {label}" in str(raised.value)
    assert words in str(raised.value)


def test_ugly_mappings():
    """Whatever a label says, it is a mapping that keeps the rules, or refused by the label's name; nothing else."""
    counts = {True: 0, False: 0}
    for value in ugly_mappings(20_000):
        labels = {UID_MAPPING: value, GID_MAPPING: GOOD}
        taken = taken_by_the_rules(value)
        if taken:
            assert parse_mapping(labels) is not None
        else:
            with pytest.raises(InvalidArgumentError, match=f"label {UID_MAPPING}"):
                parse_mapping(labels)
        counts[taken] += 1
    assert min(counts.values()) > 500, counts


@pytest.mark.parametrize(("given", "missing"), [(UID_MAPPING, GID_MAPPING), (GID_MAPPING, UID_MAPPING)])
def test_one_label_without_the_other(given, missing):
    """containerd's mount package would map nothing then, without a word."""
    with pytest.raises(InvalidArgumentError, match=f"label {missing} is missing"):
        parse_mapping({given: GOOD})


def test_a_long_value_is_cut_in_the_message():
    """It reaches logs and clients."""
    with pytest.raises(InvalidArgumentError) as raised:
        parse_mapping({UID_MAPPING: "x" * 4000, GID_MAPPING: GOOD})
    assert "(4000 characters)" in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_options_for_containerd():
    """The labels' own words, as its overlayfs snapshotter passes them."""
    assert mount_options({"x": "y"}) == ()
    assert mount_options({UID_MAPPING: GOOD, GID_MAPPING: "0:1:1"}) == (f"uidmap={GOOD}", "gidmap=0:1:1")


def test_same_mapping():
    """Other labels may change."""
    assert same_mapping({UID_MAPPING: "a", "x": "y"}, {UID_MAPPING: "a"})
    assert not same_mapping({UID_MAPPING: "a"}, {})
    assert not same_mapping({GID_MAPPING: "a"}, {GID_MAPPING: "b"})
