"""Tests of `nixsnap.image.roots`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from imagekit import DIGEST, FakeStore

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.roots import merge_roots, read_roots


def targets(store: FakeStore, *roots: str) -> dict[str, str | None]:
    """What the roots make together: links to their target, directories to None."""
    return {path: node.target for path, node in merge_roots(roots, store_dir=store.dir).items()}


def test_files_become_links_and_directories_directories(store: FakeStore) -> None:
    """A link in the store is linked to as it is, to whatever it leads; an empty directory is one."""
    content = {
        "bin": {"sh": "x", "away": Path("/etc/passwd"), "up": Path("..")},
        "empty": {},
        "dir": Path("bin"),
    }
    root = store.add("root", content)

    assert targets(store, root) == {
        "bin": None,
        "bin/sh": f"{root}/bin/sh",
        "bin/away": f"{root}/bin/away",
        "bin/up": f"{root}/bin/up",
        "empty": None,
        "dir": f"{root}/dir",
    }


def test_directories_of_roots_are_merged(store: FakeStore) -> None:
    """What stands in one only comes from that one."""
    one = store.add("one", {"bin": {"a": "1"}, "etc": {}})
    two = store.add("two", {"bin": {"b": "2"}})

    assert targets(store, one, two) == {
        "bin": None,
        "etc": None,
        "bin/a": f"{one}/bin/a",
        "bin/b": f"{two}/bin/b",
    }


def test_a_directory_stands_before_its_content(store: FakeStore) -> None:
    """Whoever goes through the nodes in order can make them in order."""
    root = store.add("root", {"a": {"b": {"c": "x"}}})

    assert list(targets(store, root)) == ["a", "a/b", "a/b/c"]


def test_a_root_that_is_a_link_is_followed(store: FakeStore) -> None:
    """Links name what the root leads to, by way of another link too."""
    real = store.add("real", {"sub": {"f": "x"}})
    link = store.add("link", Path(real))
    other = store.add("other", Path(link, "sub"))

    assert targets(store, link) == {"sub": None, "sub/f": f"{real}/sub/f"}
    assert targets(store, other) == {"f": f"{real}/sub/f"}


def test_a_path_within_a_store_path_is_a_root_too(store: FakeStore) -> None:
    """`"${package}/share"` in Nix; slashes at the end say nothing."""
    root = store.add("root", {"share": {"f": "x"}})

    assert targets(store, f"{root}/share") == {"f": f"{root}/share/f"}


def test_a_single_file_gets_its_name(store: FakeStore) -> None:
    """As `COPY file /` has it: the name less the digest, or the last part of a path within a store path."""
    file = store.add("motd.txt", "hello")
    root = store.add("root", {"bin": {"tool": "x"}})
    link = store.add("greeting", Path(file))

    assert targets(store, file) == {"motd.txt": file}
    assert targets(store, f"{root}/bin/tool") == {"tool": f"{root}/bin/tool"}
    assert targets(store, link) == {"greeting": file}


def test_the_same_file_twice_is_no_conflict(store: FakeStore) -> None:
    """One root listed twice, and two roots whose links lead to one file, as two buildEnvs share a program."""
    program = store.add("program", {"sh": "x"})
    one = store.add("one", {"bin": {"sh": Path(program, "sh")}})
    two = store.add("two", {"bin": {"sh": Path(one, "bin/sh")}})

    assert targets(store, one, two, one) == {"bin": None, "bin/sh": f"{one}/bin/sh"}


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        ({"f": "1"}, {"f": "1"}, "/f"),
        ({"d": {"f": "1"}}, {"d": {"f": "2"}}, "/d/f"),
        ({"d": {}}, {"d": "x"}, "/d"),
        ({"d": "x"}, {"d": {}}, "/d"),
        ({"d": Path("e"), "e": {}}, {"d": {}}, "/d"),
        ({"f": Path("absent")}, {"f": Path("absent")}, "/f"),
    ],
)
def test_conflicts_name_both_roots(store: FakeStore, first, second, where: str) -> None:
    """Two different files, or a file or link and a directory, at one path."""
    one, two = store.add("one", first), store.add("two", second)
    with pytest.raises(InvalidArgumentError) as caught:
        targets(store, one, two)

    assert str(caught.value) == f"copy-to-root: {one!r} and {two!r} have different things at {where!r}"


@pytest.mark.parametrize("leads_to", ["/etc", "/etc/passwd", "/", "{store}", "{store}/..", "{outside}"])
def test_a_root_that_leads_out_of_the_store_is_refused(
    store: FakeStore, tmp_path: Path, leads_to: str
) -> None:
    """Nothing of the building machine gets into an image by a link."""
    outside = tmp_path / f"{DIGEST}-outside"
    outside.mkdir()
    link = store.add("link", Path(leads_to.format(store=store.dir, outside=outside)))
    with pytest.raises(InvalidArgumentError, match="link' leads out of the store: "):
        targets(store, link)


def test_roots_that_lead_nowhere_are_named(store: FakeStore) -> None:
    """A missing root, a link to nothing, and one in a circle."""
    circle = store.add("circle", {})
    Path(circle).rmdir()
    Path(circle).symlink_to(circle)
    with pytest.raises(NotFoundError, match="absent' does not exist"):
        targets(store, f"{store.dir}/{DIGEST}-absent")
    with pytest.raises(NotFoundError, match="broken' does not exist"):
        targets(store, store.add("broken", Path("/absent")))
    with pytest.raises(InvalidArgumentError, match="circle' leads nowhere"):
        targets(store, circle)


def test_whiteouts_are_refused(store: FakeStore) -> None:
    """A file of such a name in a layer deletes one of the layers below."""
    root = store.add("root", {"etc": {".wh.passwd": "x"}})
    with pytest.raises(InvalidArgumentError, match=r"etc/\.wh\.passwd' would not show but hide"):
        targets(store, root)


def test_names_of_any_bytes(store: FakeStore) -> None:
    """A name that is not UTF-8 is kept as it is."""
    root = store.add("root", {"caf\udce9": "x"})

    assert targets(store, root) == {"caf\udce9": f"{root}/caf\udce9"}


def test_read_roots(store: FakeStore, tmp_path: Path) -> None:
    """An array of paths; `null` and an empty one are none; slashes at the end say nothing."""
    root = store.add("root", {})
    file = tmp_path / "roots.json"
    for value, expected in (([f"{root}/"], [root]), ([f"{root}/a/b"], [f"{root}/a/b"]), ([], []), (None, [])):
        file.write_text(json.dumps(value))
        assert read_roots(str(file), store_dir=store.dir) == expected


@pytest.mark.parametrize(
    "root",
    [
        "",
        "/",
        "/etc",
        "relative",
        "{store}",
        "{store}/",
        "{store}/x",
        "{store}/../etc",
        "{store}/{name}/../../etc",
        "{store}/{name}/./x",
        "{store}/{name}//x",
        "{store}/{name}\n",
        "{store}2/{name}",
    ],
)
def test_read_roots_refuses_other_paths(store: FakeStore, tmp_path: Path, root: str) -> None:
    """Only a store path, or a plain path within one, is a root."""
    file = tmp_path / "roots.json"
    file.write_text(json.dumps([root.format(store=store.dir, name=f"{DIGEST}-x")]))
    with pytest.raises(InvalidArgumentError, match=r"is not a (store path|path) in"):
        read_roots(str(file), store_dir=store.dir)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1}', 'is {"a": 1}, not an array'),
        ("{}", "is {}, not an array"),
        ('""', 'is "", not an array'),
        ("[1]", r"\[0\] is 1, not a string"),
        ("x", "is not valid JSON"),
    ],
)
def test_read_roots_refuses_other_json(tmp_path: Path, text: str, reason: str) -> None:
    """The file is named."""
    file = tmp_path / "roots.json"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=rf"^copy-to-root '.*roots\.json'.*{reason}"):
        read_roots(str(file))


def test_a_name_with_a_nul_is_refused(store: FakeStore) -> None:
    """No file can have it."""
    root = store.add("root", {})
    with pytest.raises(InvalidArgumentError, match="leads nowhere"):
        targets(store, f"{root}/a\0b")
