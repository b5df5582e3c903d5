"""Tests of `nixsnap.image.closure`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imagekit import FakeStore

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.closure import AnnotationForm, Closure, read_closure
from nixsnap.nix.storepath import StorePath

PATHS = tuple(StorePath(name=f"{number:032}-{'n' * 211}") for number in range(12))
INFO = StorePath(name=f"{99:032}-closure-info")


@pytest.fixture
def info(store: FakeStore) -> str:
    return store.add_closure_info([store.add("one", {}), store.add("two", "file")])


def test_closure_info_in_the_store_is_known(store: FakeStore, info: str, tmp_path: Path) -> None:
    """Named as a directory, as the list in it, or by way of a link such as nix-build's `result`."""
    (tmp_path / "result").symlink_to(info)
    for source in (
        info,
        f"{info}/",
        f"{info}/store-paths",
        str(tmp_path / "result"),
        f"{tmp_path}/result/store-paths",
    ):
        closure = read_closure(source, store_dir=store.dir)
        assert [path.name[33:] for path in closure.paths] == ["one", "two"]
        assert str(closure.info) == info


def test_a_store_that_is_a_link(store: FakeStore, info: str, tmp_path: Path) -> None:
    """The store's own name counts, not where a link of that name leads."""
    (tmp_path / "alias").symlink_to(store.dir)
    alias = str(tmp_path / "alias")
    name = Path(info).name
    Path(info, "store-paths").write_text(f"{alias}/{name}\n")

    assert str(read_closure(f"{alias}/{name}", store_dir=alias).info) == f"{alias}/{name}"


def test_a_list_elsewhere_is_a_mere_list(store: FakeStore, info: str, tmp_path: Path) -> None:
    """A file of another name or place names no closureInfo, whatever it lists."""
    text = Path(info, "store-paths").read_text()
    (tmp_path / "store-paths").write_text(text)
    beside = store.add("lists", {"other": text})
    for source in (
        str(tmp_path / "store-paths"),
        str(tmp_path),
        store.add("runtime-deps", text),
        f"{beside}/other",
    ):
        closure = read_closure(source, store_dir=store.dir)
        assert len(closure.paths) == 2
        assert closure.info is None


def test_a_list_from_a_pipe(store: FakeStore, info: str) -> None:
    """As a shell's <(...) gives it: its path leads to something that has no other."""
    reader, writer = os.pipe()
    os.write(writer, Path(info, "store-paths").read_bytes())
    os.close(writer)
    try:
        closure = read_closure(f"/dev/fd/{reader}", store_dir=store.dir)
    finally:
        os.close(reader)
    assert len(closure.paths) == 2
    assert closure.info is None


def test_bad_sources_are_named(store: FakeStore, tmp_path: Path) -> None:
    """A missing file, a directory without the list, and a line that is no store path, with its number."""
    with pytest.raises(NotFoundError, match="absent' does not exist"):
        read_closure(str(tmp_path / "absent"), store_dir=store.dir)
    with pytest.raises(NotFoundError, match="store-paths' does not exist"):
        read_closure(store.dir, store_dir=store.dir)
    bad = tmp_path / "list"
    bad.write_bytes(f"{store.add('x', {})}\n/etc/\xff\n".encode("latin-1"))
    with pytest.raises(
        InvalidArgumentError, match=r"^closure '.*list', line 2: '/etc/\\udcff' is not a store path"
    ):
        read_closure(str(bad), store_dir=store.dir)


def test_annotations_of_the_closure_form() -> None:
    """One annotation, the closureInfo output."""
    closure = Closure(paths=PATHS, info=INFO)

    assert closure.annotations(AnnotationForm.CLOSURE) == {"containerd.io/snapshot/nix-closure": str(INFO)}


def test_annotations_of_the_legacy_form() -> None:
    """A mark, and each path under its number."""
    annotations = Closure(paths=PATHS).annotations(AnnotationForm.LEGACY)

    assert annotations.pop("containerd.io/snapshot/nix-layer") == "true"
    assert annotations == {
        f"containerd.io/snapshot/nix-store-path.{i}": str(path) for i, path in enumerate(PATHS)
    }


def test_both_forms_together() -> None:
    """For nodes of either kind."""
    closure = Closure(paths=PATHS, info=INFO)
    both = closure.annotations(AnnotationForm.BOTH)

    assert both == closure.annotations(AnnotationForm.CLOSURE) | closure.annotations(AnnotationForm.LEGACY)


@pytest.mark.parametrize("form", [AnnotationForm.CLOSURE, AnnotationForm.BOTH])
def test_the_closure_form_needs_closure_info(form: AnnotationForm) -> None:
    """A mere list cannot be named in an annotation."""
    with pytest.raises(
        InvalidArgumentError, match=f"of the form {form} need a closure that a closureInfo output"
    ):
        Closure(paths=PATHS).annotations(form)


def test_annotations_fit_into_labels() -> None:
    """containerd refuses a label of more than 4096 bytes, key and value together (pkg/labels/validate.go)."""
    annotations = Closure(paths=PATHS, info=INFO).annotations(AnnotationForm.BOTH)

    assert max(len(key) + len(value) for key, value in annotations.items()) < 4096


def test_without_drops_a_path_and_the_info() -> None:
    """closureInfo would still list it."""
    closure = Closure(paths=PATHS, info=INFO).without(str(PATHS[3]))

    assert closure == Closure(paths=PATHS[:3] + PATHS[4:])
