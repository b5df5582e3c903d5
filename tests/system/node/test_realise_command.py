"""`nixsnap realise` on a store of the test's own."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from lab import (
    Containerd,
    NixsnapDaemon,
    PrivateStore,
    build_image,
    build_plain_image,
    installed_program,
    newest_containerd,
    nix_closure,
    run,
)
from lab.binarycache import BinaryCache
from lab.nix import nix_store

NOWHERE = f"/nix/store/{'0' * 32}-nowhere"


@pytest.fixture
def store(directory: Path) -> PrivateStore:
    """An empty store, and a cache."""
    return PrivateStore.below(directory)


@pytest.fixture
def closure(store):
    """A closure that the cache has and the store does not."""
    closure = nix_closure(3, salt="realise")
    store.publish(closure)
    return closure


@pytest.fixture
def realise(store, directory):
    """Runs the command with that store."""
    config = directory / "config.toml"
    config.write_text(store.config)

    def realise(*arguments: str | Path, check: bool = True):
        return run(
            installed_program("nixsnap"), "realise", "--config", config, *arguments,
            check=check, environment=store.environment,
        )  # fmt: skip

    return realise


def test_an_archive_is_kept_by_its_roots(realise, store, closure, directory):
    """All that its layers name is there, and stays until the directory of roots goes."""
    archive = build_image(closure, directory / "image.tar", reference="lab.invalid/app:1")
    said = json.loads(realise("--json", "--root", directory / "kept", archive).stdout)
    assert said["store_paths"] == sorted({*closure.paths, closure.info})
    assert said["root"] == str(directory / "kept")
    assert said["fetched_paths"] > 0
    store.collect_garbage()
    assert all(map(store.has, closure.paths))
    shutil.rmtree(directory / "kept")
    store.collect_garbage()
    assert not any(map(store.has, closure.paths))


def test_a_second_run_with_the_same_roots(realise, store, closure, directory):
    """It keeps what it is told in place of what the first kept; one that fails changes nothing."""
    other = nix_closure(2, salt="realise again")
    store.publish(other)
    kept = directory / "kept"
    assert f"kept until {kept} is removed" in realise("--root", kept, closure.info).stdout
    before = sorted(kept.rglob("*"))
    assert realise("--root", kept, other.top, NOWHERE, check=False).returncode == 3
    assert sorted(kept.rglob("*")) == before
    realise("--root", kept, other.top)
    store.collect_garbage()
    assert all(map(store.has, other.paths))
    assert not store.has(closure.top)


def test_roots_of_a_run_that_fails(realise, directory):
    """Nothing is left of them, nor of their directory."""
    assert realise("--root", directory / "a/kept", NOWHERE, check=False).returncode == 3
    assert not (directory / "a/kept").exists()


def test_a_directory_that_is_not_of_roots(realise, closure, directory):
    """It is named, with what it holds, and left alone."""
    kept = directory / "kept"
    kept.mkdir()
    (kept / "letters").touch()
    for root, word in (
        (kept, "'letters'"),
        (kept / "letters", "File exists"),
        (kept / "letters/x", "Not a dir"),
    ):
        result = realise("--root", root, closure.top, check=False)
        assert result.returncode == 2
        assert str(root) in result.stderr
        assert word in result.stderr
        assert "not there yet" in result.stderr
    assert list(kept.iterdir()) == [kept / "letters"]


@pytest.mark.parametrize("form", ["closure-info", "store-path", "symlink"])
def test_what_else_it_takes(realise, store, closure, directory, form):
    """A closureInfo stands for what it lists; a store path for itself and what it refers to, however it is named."""
    (directory / "result").symlink_to(closure.info)
    what = {"closure-info": closure.info, "store-path": closure.top, "symlink": directory / "result"}[form]
    result = realise(what)
    count = 1 if form == "store-path" else len(closure.paths) + 1
    assert result.stdout.startswith(f"{count} store paths are here: fetched ")
    assert "--root" in result.stdout
    assert "fetching: " in result.stderr
    assert all(map(store.has, closure.paths))
    again = realise(what)
    assert "nothing had to be fetched" in again.stdout
    assert again.stderr == ""


def test_an_archive_in_the_store(realise, store, closure, directory):
    """As kubelet names it, it is fetched first, and then what it names."""
    archive = build_image(closure, directory / "image.tar", reference="lab.invalid/app:1")
    added = nix_store("--add", str(archive))[0]
    run("nix", "copy", "--to", f"file://{store.cache}", added, environment=store.environment)
    said = json.loads(realise("--json", f"nix:0{added}:latest").stdout)
    assert said["store_paths"] == sorted({*closure.paths, closure.info, added})
    assert all(map(store.has, (added, *closure.paths)))


def test_on_a_terminal(store, closure, directory):
    """A bar is drawn, with what is done of all and what is being fetched, and it is gone in the end."""
    config = directory / "config.toml"
    config.write_text(store.config)
    status, printed, shown = on_terminal(
        "nixsnap", "realise", "--config", config, closure.info, environment=store.environment
    )
    assert status == 0, shown
    assert printed.startswith(f"{len(closure.paths) + 1} store paths are here")
    assert "fetching [" in shown
    assert " paths" in shown
    assert shown.endswith("\x1b[J")


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (lambda directory: directory / "no.tar", 3, "neither a store path nor a file"),
        (
            lambda directory: build_plain_image(directory / "p.tar", reference="x:1"),
            2,
            "names no store paths",
        ),
        (lambda _: NOWHERE, 3, NOWHERE),
        (lambda _: NOWHERE + ".drv", 2, "derivation"),
        (lambda _: NOWHERE + "/bin/sh", 2, "not a store path"),
        (lambda _: "nix:0/etc/passwd", 2, "not a store path"),
    ],
)
def test_errors(realise, directory, make, status, words):
    """One line that names the thing, and the status that says what kind of error it is."""
    result = realise(make(directory), check=False)
    assert (result.returncode, words in result.stderr) == (status, True), result.stderr
    assert "Traceback" not in result.stderr


def on_terminal(
    program: str, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program whose standard error is a terminal; its status, its output, and what the terminal got."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [installed_program(program), *arguments], stdout=subprocess.PIPE, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200", **(environment or {})},
    ) as process:  # fmt: skip
        os.close(theirs)
        assert process.stdout is not None
        printed = process.stdout.read().decode()
        shown = _read(ours)
    return process.returncode, printed, shown


def _read(fd: int) -> str:
    """What was written to a terminal, now that nobody has it open any more."""
    text = b""
    try:
        while block := os.read(fd, 65536):
            text += block
    except OSError:  # EIO is a terminal's end of file
        pass
    os.close(fd)
    return text.decode()


def test_a_load_shows_what_its_layers_wait_for(directory, store, closure):
    """`nix2container load` on a terminal asks the daemon, which containerd names, how the fetch goes on."""
    for name in ("n", "c"):
        (directory / name).mkdir()
    archive = build_image(closure, directory / "image.tar", reference="lab.invalid/app:1")
    cache = BinaryCache(directory=store.cache, delay_seconds=0.3)
    with cache:
        config = store.environment["NIX_CONFIG"].replace(f"file://{store.cache}", cache.url)
        daemon = NixsnapDaemon.start(directory / "n", config=store.config, environment={"NIX_CONFIG": config})
        containerd = Containerd.start(newest_containerd(), directory / "c", snapshotter=daemon.address)
        load = ("--address", containerd.address, "--namespace", "lab", "load", archive)
        status, printed, shown = on_terminal("nix2container", *load)
        containerd.stop()
        daemon.destroy()
    assert (status, printed) == (0, "lab.invalid/app:1\n"), shown
    assert "unpacking: 0 of 1 layers; fetching [" in shown
    assert f" of {len(closure.paths) + 1} paths" in shown
    assert shown.endswith("\r\x1b[K")
