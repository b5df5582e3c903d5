"""Finding the derivation that makes a store path, by its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixsnap.nix.derivations import find_derivations
from nixsnap.nix.storepath import StorePath

OUT, DEV = (
    StorePath.parse(f"/nix/store/{letter * 32}-{name}")
    for letter, name in (("a", "x-1.0"), ("b", "x-1.0-dev"))
)
DERIVATION = (
    f'Derive([("dev","{DEV}","",""),("out","{OUT}","","")],[("{OUT}",["out"])],[],"x86_64-linux","/b",[],[])'
)


@pytest.fixture
def store(tmp_path):
    """A store directory with one derivation in it."""
    (tmp_path / f"{'c' * 32}-x-1.0.drv").write_text(DERIVATION)
    return tmp_path


def found(store, *paths):
    return {
        path: [(derivation.name, output) for derivation, output in candidates]
        for path, candidates in find_derivations(store, paths).items()
    }


def test_outputs_by_name(store):
    """`out` is called as its derivation is, another output has its name added; names may hold hyphens anyway."""
    name = f"{'c' * 32}-x-1.0.drv"
    assert found(store, OUT, DEV) == {OUT: [(name, "out")], DEV: [(name, "dev")]}


def test_another_of_the_same_name(store):
    """Only the whole path counts."""
    assert found(store, StorePath(name=f"{'d' * 32}-x-1.0")) == {}


def test_two_derivations_of_one_output(store):
    """Derivations that differ in what does not change the output (its sources' addresses) are told both."""
    (store / f"{'d' * 32}-x-1.0.drv").write_text(DERIVATION)
    assert len(found(store, OUT)[OUT]) == 2


def test_what_is_no_derivation(store):
    """Whatever lies there under such a name is not followed, not waited for and not believed."""
    name = "-x-1.0.drv"
    (store / f"{'d' * 32}{name}").symlink_to(store / f"{'c' * 32}{name}")
    os.mkfifo(store / f"{'f' * 32}{name}")
    (store / f"{'g' * 32}{name}").mkdir()
    (store / f"{'h' * 32}{name}").write_bytes(b"\xff" * 100)
    (store / f"short{name}").write_text(DERIVATION)
    assert len(found(store, OUT)[OUT]) == 1


def test_a_directory_of_such_a_name_leaves_no_descriptor_open(store):
    """Any store path may be called so, and a daemon looks often."""
    (store / f"{'d' * 32}-x-1.0.drv").mkdir()
    before = sorted(Path("/proc/self/fd").iterdir())
    assert found(store, OUT) == {OUT: [(f"{'c' * 32}-x-1.0.drv", "out")]}
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_no_store(tmp_path):
    """A store that is not there yet knows nothing; nothing wanted is nothing found."""
    assert found(tmp_path / "none", OUT) == {}
    assert found(tmp_path) == {}
