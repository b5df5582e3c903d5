"""Whether roots still hold, by what is on disk."""

from __future__ import annotations

import pytest

from nixsnap.nix.roots import RootInspector, StoreState, prune, seal

NAME = "0" * 32 + "-name"
OTHER = "1" * 32 + "-other"


@pytest.fixture
def directory(tmp_path):
    """A directory with two sealed roots, in a chroot store that holds both."""
    for name in (NAME, OTHER):
        (tmp_path / "nix/store" / name).mkdir(parents=True)
    auto = tmp_path / "nix/var/nix/gcroots/auto"
    auto.mkdir(parents=True)
    directory = tmp_path / "roots"
    directory.mkdir()
    for link, name in (("path-0", NAME), ("path-0-2", OTHER)):
        (directory / link).symlink_to(f"/nix/store/{name}")
        (auto / link).symlink_to(directory / link)
    seal(directory)
    return directory


@pytest.fixture
def inspector(tmp_path):
    return RootInspector.of(tmp_path / "nix/store", store_root=tmp_path, external=False)


def fault(inspector, directory):
    return inspector.fault(directory, inspector.look())


def test_what_was_sealed_holds(inspector, directory):
    """Nothing is wrong, however the root is spelled."""
    assert fault(inspector, directory) is None
    assert fault(inspector, directory / ".." / "roots") is None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / ".sealed").unlink(), "not sealed"),
        (lambda d: (d / ".sealed").write_text("{"), "not sealed"),
        (lambda d: (d / ".sealed").write_text(""), "not sealed"),
        (lambda d: (d / "path-0-2").unlink(), "path-0-2 is gone"),
        (lambda d: _relink(d / "path-0", "/nix/store/" + OTHER), "path-0 is gone"),
        (lambda d: (d.parent / "nix/store" / OTHER).rmdir(), f"/nix/store/{OTHER}, which is gone"),
        (lambda d: (d.parent / "nix/var/nix/gcroots/auto/path-0").unlink(), "Nix does not know root path-0"),
        (lambda d: (d / "path-0").unlink() or d.rename(d.parent / "moved"), "not sealed"),
    ],
)
def test_what_is_off_is_named(inspector, directory, harm, words):
    """Each thing that may be lost behind our back is seen."""
    harm(directory)
    assert words in fault(inspector, directory)


def test_a_directory_that_was_moved(inspector, directory):
    """Nix knows roots by where they were."""
    moved = directory.rename(directory.with_name("moved"))
    assert "Nix does not know" in fault(inspector, moved)


def test_where_nix_may_not_be_looked_at(inspector, directory, tmp_path):
    """Its links are its own affair then; what can be seen still is."""
    (tmp_path / "nix/var/nix/gcroots/auto").rename(tmp_path / "elsewhere")
    assert inspector.look().registered is None
    assert fault(inspector, directory) is None


def test_an_external_builders_roots(directory, tmp_path):
    """It need not be Nix, and may put its out-links' targets anywhere."""
    inspector = RootInspector.of(tmp_path / "nix/store", store_root=tmp_path, external=True)
    (directory / "out").symlink_to("/somewhere/else")
    seal(directory)
    (tmp_path / "nix/var/nix/gcroots/auto/path-0").unlink()
    assert fault(inspector, directory) is None


def test_the_state_directory_of_the_environment(tmp_path, monkeypatch):
    """As Nix itself has it; a chroot store has its own."""
    monkeypatch.setenv("NIX_STATE_DIR", "/state")
    plain = RootInspector.of(tmp_path, store_root=None, external=False)
    assert str(plain.auto) == "/state/gcroots/auto"
    chroot = RootInspector.of(tmp_path, store_root=tmp_path, external=False)
    assert chroot.auto == tmp_path / "nix/var/nix/gcroots/auto"


def test_pruning_takes_what_keeps_nothing(inspector, directory):
    """A root that leads to a path which is gone goes; others stay, and are then sealed as whole."""
    (inspector.store / OTHER).rmdir()
    (directory / "note").touch()
    prune(directory, store=inspector.store)
    assert sorted(path.name for path in directory.iterdir()) == [".sealed", "note", "path-0"]
    seal(directory)
    assert fault(inspector, directory) is None


@pytest.mark.usefixtures("directory")
def test_missing(inspector):
    """The same answer from the disk and from what was read of it; a dangling symlink is there."""
    (inspector.store / "dangling").symlink_to("nowhere")
    names = [NAME, "dangling", "gone"]
    assert inspector.missing(names) == inspector.missing(names, inspector.look()) == ["gone"]
    assert inspector.missing(names, StoreState(frozenset(), None)) == names


def test_a_store_that_is_not_there(tmp_path):
    """Nothing is in it, and that is no error: Nix makes it."""
    inspector = RootInspector.of(tmp_path / "none", store_root=tmp_path, external=False)
    assert inspector.look().names == frozenset()
    assert inspector.changed_ns() == 0


def _relink(link, target):
    link.unlink()
    link.symlink_to(target)
