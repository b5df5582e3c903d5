"""Walking all snapshots: order, filters, pages, and what other calls do meanwhile."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.metadata import Info, Kind, Usage


def fill(store, *keys):
    def create(writer):
        for key in keys:
            writer.create(Kind.ACTIVE, key)

    store.write(create)


def walk(store, *filters):
    with store.read() as reader:
        return [info.name for info in reader.walk(filters)]


def blocks(store, *filters, block_size=100):
    return [[info.name for info in block] for block in store.walk_blocks(filters, block_size=block_size)]


def test_bytewise_order(store):
    """Keys come in the order of their UTF-8 bytes, which is bbolt's, not of any language."""
    keys = ["b", "a", "B", "a/b", "a\0", "é", "z", "\uffff", "\U00010000", "10", "9", "a "]
    fill(store, *keys)
    expected = sorted(keys, key=str.encode)
    assert walk(store) == expected
    assert blocks(store) == [expected]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 250])
def test_all_once_whatever_the_page(store, count):
    """Each snapshot comes once, also where pages and blocks end."""
    keys = [f"{number:04d}" for number in range(count)]
    fill(store, *keys)
    assert walk(store) == keys
    assert blocks(store) == [keys[start : start + 100] for start in range(0, count, 100)]


def test_infos_are_whole(populated):
    """A walk describes a snapshot as `get` does."""
    with populated.read() as reader:
        assert [reader.get(info.name)[1] for info in reader.walk()] == list(reader.walk())
        assert [info for block in populated.walk_blocks() for info in block] == list(reader.walk())


def test_filters(populated):
    """A snapshot passes if any filter does."""
    assert walk(populated, "kind==view", "name==base") == ["base", "view"]
    assert walk(populated, "parent==top,kind==active") == ["on-top"]
    assert blocks(populated, "kind==committed") == [["base", "top"]]


def test_blocks_without_a_match_are_left_out(store):
    """Blocks are cut before filtering, and empty ones are not sent."""
    fill(store, *(f"{number:02d}" for number in range(30)))
    assert blocks(store, "name~=/[05]$/", "name==29", block_size=5) == [
        ["00"], ["05"], ["10"], ["15"], ["20"], ["25", "29"],
    ]  # fmt: skip
    assert blocks(store, "name==nothing") == []


@pytest.mark.parametrize("call", [walk, lambda store, text: store.walk_blocks([text])])
def test_malformed_filter_is_refused_at_once(store, call):
    """A malformed filter is an error before anything is streamed, even from an empty store."""
    with pytest.raises(InvalidArgumentError, match="filter 'name==', character 7"):
        call(store, "name==")


def test_walk_sees_one_moment(store):
    """A reader's walk is not disturbed by writes, whatever they change."""
    keys = [f"{number:04d}" for number in range(300)]
    fill(store, *keys)
    with store.read() as reader:
        names = (info.name for info in reader.walk())
        assert next(names) == "0000"
        store.write(lambda writer: [writer.remove(key) for key in keys])
        fill(store, "9999")
        assert list(names) == keys[1:]
    assert walk(store) == ["9999"]


def test_blocks_follow_what_happens_meanwhile(store):
    """Between blocks snapshots may go, be renamed by a commit, or change; none is seen twice or missed."""
    fill(store, *(f"{number:02d}" for number in range(10)))
    stream = store.walk_blocks(block_size=5)
    assert [info.name for info in next(stream)] == ["00", "01", "02", "03", "04"]

    def meanwhile(writer):
        writer.remove("05")
        writer.commit_active("06", "00-committed", Usage())  # to where the walk has been
        writer.commit_active("01", "99-committed", Usage())  # from there to where it will be
        writer.update(Info(name="07", kind=Kind.ACTIVE, labels={"x": "1"}))
        writer.create(Kind.ACTIVE, "08a")

    store.write(meanwhile)
    rest = next(stream)
    assert [info.name for info in rest] == ["00-committed", "07", "08", "09"]
    assert rest[1].labels == {"x": "1"}
    assert next(stream, None) is None


def test_waiting_stream_does_not_hold_the_log(store, path):
    """A client that stops reading keeps no transaction open, so the log can be restarted; a reader does."""
    fill(store, *(f"{number:03d}" for number in range(200)))
    stream = store.walk_blocks()
    next(stream)
    assert truncate_log(path) == "done"
    with store.read() as reader:
        next(reader.walk())
        fill(store, "new")
        assert truncate_log(path) == "busy"


def truncate_log(path):
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as database:
        busy, _, _ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return "busy" if busy else "done"
