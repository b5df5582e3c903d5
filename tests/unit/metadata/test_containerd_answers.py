"""containerd's own answers, recorded, to the questions that its clients may ask of us.

The files beside this one were made by a Go program that called containerd 2.2.0 (`pkg/filters`, and
`core/snapshots/storage` over bbolt) and Go 1.26 (`regexp`) with random input.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import pytest

from nixsnap.errors import InvalidArgumentError, NixsnapError
from nixsnap.metadata import Info, Kind, Store, Usage, parse_filters
from nixsnap.metadata.regexp import RegexpSyntaxError, compile_regexp

ANSWERS = Path(__file__).parent / "containerd_answers"


def recorded(name):
    return json.loads((ANSWERS / name).read_text(encoding="utf-8"))


def bits(verdicts):
    return "".join("01"[verdict] for verdict in verdicts)


def test_filters():
    """Every filter is refused if containerd refuses it, and else passes the same snapshots."""
    answers = recorded("filters.json")
    infos = [Info(**{**info, "kind": Kind(info["kind"])}) for info in answers["infos"]]
    for texts, expected in answers["cases"]:
        try:
            verdict = bits(map(parse_filters(texts).matches, infos))
        except InvalidArgumentError:
            verdict = None
        assert verdict == expected, texts


def test_regexps():
    """Every regular expression is refused if Go refuses it, and else matches the same texts."""
    answers = recorded("regexps.json")
    for pattern, expected in answers["cases"]:
        try:
            verdict = bits(map(compile_regexp(pattern).search, answers["texts"]))
        except RegexpSyntaxError:
            verdict = None
        assert verdict == expected, pattern


@pytest.mark.parametrize("run", [0, 1, 2, 3])
def test_operations(tmp_path, run):
    """A history of operations has containerd's results, errors, ids and walks."""
    cases = [case for case in recorded("operations.json")["cases"] if case[0] == run]
    with contextlib.closing(Store.open(tmp_path / "m.sqlite")) as store:
        for number, (_, operation, expected) in zip(itertools.count(), cases, strict=False):
            assert outcome(store, operation) == translated(expected), f"operation {number}: {operation}"
    assert number == 149


def translated(expected):
    """bbolt's own errors reach containerd's clients as UNKNOWN; ours say what the client did wrong."""
    if expected.get("error") == "bbolt: bucket name required":
        return {"error": "InvalidArgument"}
    return expected


def outcome(store, operation):
    arguments = dict(operation)
    try:
        result = OPERATIONS[arguments.pop("op")](store, **arguments)
    except NixsnapError as error:
        return {"error": type(error).__name__.removesuffix("Error")}
    return {"result": result}


def snapshot_answer(snapshot):
    return [str(snapshot.id), snapshot.kind, [str(parent_id) for parent_id in snapshot.parent_ids] or None]


def info_answer(info):
    # Go tells a map that is empty from one that is not there; clients cannot, so both were recorded as null.
    return [info.name, info.parent, info.kind, info.labels or None]


def create(store, *, kind, key, parent="", labels=None):
    return snapshot_answer(store.write(lambda writer: writer.create(Kind(kind), key, parent, labels)))


def commit(store, *, key, name, parent, labels, size, inodes):
    usage = Usage(inodes=inodes, size_bytes=size)
    return str(store.write(lambda writer: writer.commit_active(key, name, usage, labels, parent)))


def remove(store, *, key):
    snapshot_id, kind = store.write(lambda writer: writer.remove(key))
    return [str(snapshot_id), kind]


def update(store, *, key, labels, paths):
    info = Info(name=key, kind=Kind.UNKNOWN, labels=labels)
    return info_answer(store.write(lambda writer: writer.update(info, paths)))


def get(store, *, key):
    with store.read() as reader:
        snapshot_id, info, usage = reader.get(key)
    return [str(snapshot_id), *info_answer(info), usage.inodes, usage.size_bytes]


def get_snapshot(store, *, key):
    with store.read() as reader:
        return snapshot_answer(reader.get_snapshot(key))


def walk(store):
    return [info_answer(info) for block in store.walk_blocks() for info in block]


OPERATIONS = {
    "create": create,
    "commit": commit,
    "remove": remove,
    "update": update,
    "get": get,
    "snapshot": get_snapshot,
    "walk": walk,
}
