"""What each operation on snapshots does and refuses.

Expected outcomes are those of containerd's bbolt metastore (core/snapshots/storage/bolt.go);
test_containerd_answers.py replays recorded ones.
"""

from __future__ import annotations

import sqlite3
import time

import pytest

from nixsnap.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from nixsnap.metadata import MAX_KEY_BYTES, Closure, Info, Kind, Snapshot, Usage

PATHS = ("/nix/store/00000000000000000000000000000000-a", "/nix/store/11111111111111111111111111111111-b")

# A name from a client may be anything that is UTF-8: separators, control characters, NUL, the ends of planes.
ODD_KEYS = [
    "a/b/../c",
    "line\nbreak",
    "nul\0byte",
    "\U0010ffff\ud7ff",
    " ",
    "'; DROP TABLE snapshot; --",
    "%s\\",
    "k" * 4096,
]


def create(store, key, parent="", labels=None, *, kind=Kind.ACTIVE):
    return store.write(lambda writer: writer.create(kind, key, parent, labels))


def commit(store, key, name, parent="", labels=None):
    usage = Usage(inodes=1, size_bytes=2)
    return store.write(lambda writer: writer.commit_active(key, name, usage, labels, parent))


def remove(store, key):
    return store.write(lambda writer: writer.remove(key))


def update(store, name, labels, *fieldpaths):
    info = Info(name=name, kind=Kind.UNKNOWN, labels=labels)
    return store.write(lambda writer: writer.update(info, fieldpaths))


def get(store, key):
    with store.read() as reader:
        return reader.get(key)


def info(store, key):
    return get(store, key)[1]


def snapshot(store, key):
    with store.read() as reader:
        return reader.get_snapshot(key)


def chain(store, key):
    with store.read() as reader:
        return reader.chain(key)


def closures_of(store, *snapshot_ids):
    with store.read() as reader:
        return reader.closures_of(snapshot_ids)


class TestGet:
    def test_all_fields(self, store):
        """What was created is described with parent, kind, labels, both times and no usage."""
        before = time.time_ns()
        create(store, "a")
        commit(store, "a", "base")
        made = create(store, "b", "base", {"x": "1", "empty": ""}, kind=Kind.VIEW)
        snapshot_id, found, usage = get(store, "b")
        assert (snapshot_id, usage) == (made.id, Usage())
        assert (found.name, found.parent, found.kind, found.labels) == ("b", "base", Kind.VIEW, {"x": "1"})
        assert before <= found.created_ns == found.updated_ns <= time.time_ns()

    @pytest.mark.parametrize("key", ["missing", "", "\udc80"])
    def test_missing(self, populated, key):
        """An unknown key is not found; so are the empty one and one that is no UTF-8."""
        with pytest.raises(NotFoundError, match="does not exist"):
            get(populated, key)

    def test_kinds_are_numbered_as_in_containerd(self):
        """The numbers are stored in bbolt and given to clients."""
        assert [kind.value for kind in (Kind.UNKNOWN, Kind.VIEW, Kind.ACTIVE, Kind.COMMITTED)] == [0, 1, 2, 3]


class TestGetSnapshot:
    def test_chain_nearest_first(self, populated):
        """An active snapshot comes with the ids of its ancestors, nearest first."""
        ids = {key: get(populated, key)[0] for key in ("base", "top", "on-top", "view")}
        expected = {"parent_ids": (ids["top"], ids["base"])}
        assert snapshot(populated, "on-top") == Snapshot(id=ids["on-top"], kind=Kind.ACTIVE, **expected)
        assert snapshot(populated, "view") == Snapshot(id=ids["view"], kind=Kind.VIEW, **expected)
        assert snapshot(populated, "alone").parent_ids == ()

    def test_committed(self, populated):
        """A committed snapshot has no mounts, so it is refused."""
        with pytest.raises(FailedPreconditionError, match="'top' is committed"):
            snapshot(populated, "top")

    def test_chain_of_any_kind_begins_with_itself(self, populated):
        """A chain is a snapshot and its ancestors, committed ones too."""
        base, top = get(populated, "base")[0], get(populated, "top")[0]
        assert chain(populated, "top") == (top, base)
        assert chain(populated, "view") == (get(populated, "view")[0], top, base)

    def test_long_chain(self, store):
        """A chain longer than any stack of layers comes whole and in order."""

        def stack(writer):
            for number in range(500):
                writer.create(Kind.ACTIVE, "next", str(number - 1) if number else "")
                writer.commit_active("next", str(number), Usage())
            return writer.create(Kind.VIEW, "view", "499")

        made = store.write(stack)
        assert made.parent_ids == tuple(range(500, 0, -1))


class TestCreate:
    @pytest.mark.parametrize("kind", [Kind.COMMITTED, Kind.UNKNOWN])
    def test_kind(self, store, kind):
        """Only active and view snapshots are created."""
        with pytest.raises(InvalidArgumentError, match=kind.name):
            create(store, "a", kind=kind)

    @pytest.mark.parametrize("key", ["on-base", "base"])
    def test_taken(self, populated, key):
        """Keys and names are one name space."""
        with pytest.raises(AlreadyExistsError, match=key):
            create(populated, key)

    def test_missing_parent_comes_before_a_taken_key(self, populated):
        """The parent is looked up first, as in containerd."""
        with pytest.raises(NotFoundError, match="'nowhere'"):
            create(populated, "on-base", "nowhere")

    @pytest.mark.parametrize("parent", ["on-base", "view"])
    def test_parent_not_committed(self, populated, parent):
        """A parent must be committed."""
        with pytest.raises(InvalidArgumentError, match=f"'{parent}' is not committed"):
            create(populated, "new", parent)

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys(self, store, key):
        """Keys are any text; they and odd parents and labels come back as they were."""
        create(store, key, labels={key: key})
        commit(store, key, key + "!", labels={key: key})
        create(store, key, key + "!")
        assert info(store, key).parent == key + "!"
        assert info(store, key + "!").labels == {key: key}

    @pytest.mark.parametrize(
        "key", ["", "\ud800", "k" * (MAX_KEY_BYTES + 1), "é" * (MAX_KEY_BYTES // 2) + "k"]
    )
    def test_refused_keys(self, store, key):
        """An empty, an overlong key and one that is no UTF-8 are refused."""
        with pytest.raises(InvalidArgumentError, match="snapshot key"):
            create(store, key)

    def test_longest_key(self, store):
        """The limit counts bytes, and is bbolt's."""
        create(store, "é" * 16384)
        assert info(store, "é" * 16384).kind is Kind.ACTIVE

    @pytest.mark.parametrize(
        "labels", [{"": "x"}, {"k" * (MAX_KEY_BYTES + 1): "x"}, {"\ud800": "x"}, {"x": "\ud800"}]
    )
    def test_refused_labels(self, store, labels):
        """A label without a name, with an overlong one, or of no UTF-8 is refused, and nothing is made."""
        with pytest.raises(InvalidArgumentError, match="label"):
            create(store, "a", labels=labels)
        with pytest.raises(NotFoundError):
            get(store, "a")

    def test_failure_spends_no_id(self, store):
        """An operation that fails leaves the sequence of ids as it was, as bbolt does."""
        create(store, "a")
        with pytest.raises(AlreadyExistsError):
            create(store, "a")
        assert create(store, "b").id == 2


class TestIds:
    def test_never_reused(self, path, store):
        """The id of a removed snapshot is not given again, not even after the store was closed."""
        first = create(store, "a").id
        remove(store, "a")
        store.close()
        with_reopened = type(store).open(path)
        try:
            assert create(with_reopened, "a").id > first
        finally:
            with_reopened.close()

    def test_allocated_id(self, store):
        """An allocated id is given to nobody else, and to the snapshot that asks for it."""
        reserved = store.write(lambda writer: writer.allocate_id())
        other = create(store, "a")
        wanted = store.write(lambda writer: writer.create(Kind.ACTIVE, "b", id=reserved))
        assert (reserved, other.id, wanted.id) == (1, 2, 1)
        assert create(store, "c").id == 3

    def test_taken_id(self, store):
        """Asking for an id that a snapshot has is a bug of the caller's, and not taken for a taken key."""
        create(store, "a")
        with pytest.raises(sqlite3.IntegrityError):
            store.write(lambda writer: writer.create(Kind.ACTIVE, "b", id=1))

    def test_unused_allocation_stays_spent(self, path, store):
        """An id that was allocated and never used is not given again after a restart."""
        reserved = store.write(lambda writer: writer.allocate_id())
        store.close()
        reopened = type(store).open(path)
        try:
            assert create(reopened, "a").id == reserved + 1
        finally:
            reopened.close()

    def test_all(self, populated):
        """`ids` are the ids of all rows, for the sweep of directories."""
        remove(populated, "alone")
        with populated.read() as reader:
            assert reader.ids() == {1, 2, 4, 5, 6}


class TestCommit:
    def test_result(self, store):
        """A commit keeps the id, takes new labels and times, keeps usage and parent, and frees the key."""
        made = create(store, "a", labels={"old": "1"})
        created_ns = info(store, "a").created_ns
        assert commit(store, "a", "base", labels={"new": "1", "gone": ""}) == made.id
        snapshot_id, found, usage = get(store, "base")
        assert (snapshot_id, usage) == (made.id, Usage(inodes=1, size_bytes=2))
        assert (found.kind, found.labels, found.parent) == (Kind.COMMITTED, {"new": "1"}, "")
        assert created_ns < found.created_ns == found.updated_ns
        with pytest.raises(NotFoundError):
            get(store, "a")

    def test_children_of_a_commit(self, populated):
        """What was committed on a parent holds the parent."""
        commit(populated, "on-top", "newest")
        assert info(populated, "newest").parent == "top"
        with pytest.raises(FailedPreconditionError):
            remove(populated, "top")

    @pytest.mark.parametrize("key", ["on-base", "missing"])
    def test_taken_name_comes_first(self, populated, key):
        """A name that exists is said before a key that does not, as in containerd."""
        with pytest.raises(AlreadyExistsError, match="'view'"):
            commit(populated, key, "view")

    def test_own_key_as_name(self, populated):
        """A snapshot cannot be committed under its own key."""
        with pytest.raises(AlreadyExistsError):
            commit(populated, "alone", "alone")

    def test_missing_key(self, populated):
        """An unknown key is not found."""
        with pytest.raises(NotFoundError, match="'missing'"):
            commit(populated, "missing", "new")

    @pytest.mark.parametrize("key", ["view", "top"])
    def test_not_active(self, populated, key):
        """Neither a view nor a committed snapshot can be committed."""
        with pytest.raises(FailedPreconditionError, match="not active"):
            commit(populated, key, "new")

    @pytest.mark.parametrize("name", ["", "n" * (MAX_KEY_BYTES + 1)])
    def test_refused_names(self, populated, name):
        """Names have the limits of keys."""
        with pytest.raises(InvalidArgumentError, match="snapshot name"):
            commit(populated, "alone", name)

    def test_rebase(self, populated):
        """A snapshot that was created without a parent may be given one at commit."""
        snapshot_id = commit(populated, "alone", "rebased", "top")
        assert info(populated, "rebased").parent == "top"
        made = create(populated, "new", "rebased")
        assert made.parent_ids == (snapshot_id, get(populated, "top")[0], get(populated, "base")[0])

    @pytest.mark.parametrize("parent", ["", "base"])
    def test_parent_kept(self, populated, parent):
        """Naming the parent that it has, or none, keeps the parent."""
        commit(populated, "on-base", "new", parent)
        assert info(populated, "new").parent == "base"

    @pytest.mark.parametrize("parent", ["top", "missing", "view"])
    def test_other_parent(self, populated, parent):
        """A parent cannot be changed, whatever the other one is."""
        with pytest.raises(InvalidArgumentError, match=f"'{parent}'"):
            commit(populated, "on-base", "new", parent)

    @pytest.mark.parametrize(
        ("parent", "error"),
        [
            ("missing", NotFoundError),
            ("view", FailedPreconditionError),
            ("alone", NotFoundError),
            ("new", NotFoundError),
        ],
    )
    def test_refused_rebase(self, populated, parent, error):
        """A new parent must exist, be committed, and be neither the snapshot's key nor its name to be."""
        with pytest.raises(error, match=parent):
            commit(populated, "alone", "new", parent)
        assert info(populated, "alone").kind is Kind.ACTIVE


class TestRemove:
    @pytest.mark.parametrize(("key", "kind"), [("alone", Kind.ACTIVE), ("view", Kind.VIEW)])
    def test_result(self, populated, key, kind):
        """Removal tells id and kind, and the key is gone."""
        snapshot_id = get(populated, key)[0]
        assert remove(populated, key) == (snapshot_id, kind)
        with pytest.raises(NotFoundError):
            get(populated, key)

    def test_top_down(self, populated):
        """A committed snapshot goes once nothing lies upon it."""
        for key in ("on-top", "view", "top", "on-base", "base"):
            remove(populated, key)
        with populated.read() as reader:
            assert [found.name for found in reader.walk()] == ["alone"]

    @pytest.mark.parametrize("key", ["base", "top"])
    def test_parent(self, populated, key):
        """A snapshot with children stays, with all its fields."""
        before = get(populated, key)
        with pytest.raises(FailedPreconditionError, match=f"'{key}' cannot be removed: it has children"):
            remove(populated, key)
        assert get(populated, key) == before

    def test_missing(self, populated):
        """An unknown key is not found."""
        with pytest.raises(NotFoundError, match="'missing'"):
            remove(populated, "missing")


class TestUpdate:
    @pytest.mark.parametrize(
        ("labels", "fieldpaths", "expected"),
        [
            ({"c": "3"}, (), {"c": "3"}),
            ({"c": "3"}, ("labels",), {"c": "3"}),
            ({}, (), {}),
            ({"a": "9", "b": "9"}, ("labels.a",), {"a": "9", "b.x/y": "2"}),
            ({"b.x/y": "9"}, ("labels.b.x/y",), {"a": "1", "b.x/y": "9"}),
            ({"a": ""}, ("labels.a",), {"b.x/y": "2"}),
            ({}, ("labels.a", "labels.b.x/y"), {}),
            ({"a": "9", "z": ""}, ("labels.q", "labels"), {"a": "9"}),
            ({"a": "9", "q": "1"}, ("labels", "labels.nothing"), {"a": "9", "q": "1"}),
        ],
    )
    def test_labels(self, store, labels, fieldpaths, expected):
        """All labels are replaced, or those that are named; one with an empty value goes."""
        create(store, "k", labels={"a": "1", "b.x/y": "2"})
        returned = update(store, "k", labels, *fieldpaths)
        assert returned.labels == expected
        assert returned == info(store, "k")

    def test_times(self, populated):
        """An update sets the time of the update and leaves everything else."""
        before = info(populated, "view")
        after = update(populated, "view", {"a": "1"})
        assert (after.name, after.parent, after.kind) == ("view", "top", Kind.VIEW)
        assert after.created_ns == before.created_ns < after.updated_ns

    @pytest.mark.parametrize("fieldpath", ["name", "kind", "parent", "", "label", "labelsx", "Labels"])
    def test_other_fields(self, populated, fieldpath):
        """Nothing but labels can be changed, and nothing is when one path is wrong."""
        with pytest.raises(InvalidArgumentError, match=f"field '{fieldpath}' of snapshot 'view'"):
            update(populated, "view", {"a": "1"}, "labels.a", fieldpath)
        assert info(populated, "view").labels == {}

    def test_missing(self, populated):
        """The snapshot is looked up before the paths are looked at."""
        with pytest.raises(NotFoundError):
            update(populated, "missing", {}, "name")


class TestClosures:
    def test_kept_and_dropped_with_the_snapshot(self, store):
        """A closure stays with the id through Commit, and goes at removal."""
        made = create(store, "a")
        closure = Closure(snapshot_id=made.id, closure_info="/nix/store/x", store_paths=PATHS)
        store.write(lambda writer: writer.put_closure(closure))
        commit(store, "a", "layer")
        assert closures_of(store, made.id, 99) == {made.id: closure}
        remove(store, "layer")
        assert closures_of(store, made.id) == {}

    def test_sorted_and_unique(self, store):
        """Store paths come back sorted and each once."""
        made = create(store, "a")
        given = Closure(snapshot_id=made.id, store_paths=[PATHS[1], PATHS[0], PATHS[1]], inferred=True)
        store.write(lambda writer: writer.put_closure(given))
        assert closures_of(store, made.id)[made.id] == Closure(
            snapshot_id=made.id, store_paths=PATHS, inferred=True
        )

    def test_replaced(self, store):
        """A second closure takes the place of the first."""
        made = create(store, "a")
        for closure_info in ("/nix/store/x", None):
            closure = Closure(snapshot_id=made.id, closure_info=closure_info, store_paths=PATHS)
            store.write(lambda writer, closure=closure: writer.put_closure(closure))
        assert closures_of(store, made.id) == {made.id: closure}

    def test_ten_thousand_paths(self, store):
        """A closure of ten thousand paths comes back whole."""
        made = create(store, "a")
        paths = [f"/nix/store/{number:032d}-package-{number}" for number in range(10_000)]
        store.write(lambda writer: writer.put_closure(Closure(snapshot_id=made.id, store_paths=paths)))
        assert closures_of(store, made.id)[made.id].store_paths == tuple(paths)

    def test_nix_layers(self, store):
        """Which snapshots are nix layers can be asked without their closures."""
        ids = [create(store, key).id for key in "abc"]
        store.write(lambda writer: writer.put_closure(Closure(snapshot_id=ids[1], store_paths=PATHS)))
        with store.read() as reader:
            assert reader.nix_layers(ids) == {ids[1]}
            assert reader.nix_layers([]) == set()

    @pytest.mark.parametrize("paths", [(), ("",), ("", "/nix/store/a"), ("/nix/store/a\n/etc",)])
    def test_refused(self, store, paths):
        """A closure without paths, or with a path that would read back as two, is refused."""
        made = create(store, "a")
        with pytest.raises(InvalidArgumentError, match=f"closure of snapshot {made.id}"):
            store.write(lambda writer: writer.put_closure(Closure(snapshot_id=made.id, store_paths=paths)))

    def test_without_snapshot(self, store):
        """There is no closure without its snapshot."""
        with pytest.raises(NotFoundError, match="snapshot 7 "):
            store.write(lambda writer: writer.put_closure(Closure(snapshot_id=7, store_paths=PATHS)))
