"""Store paths made by real Nix, without nixpkgs and without a network."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lab.cache import static_busybox
from lab.processes import run

HERE = Path(__file__).parent
_KINDS = ("directory", "file", "executable")


@attrs.frozen(kw_only=True)
class Closure:
    """A store path with everything it refers to."""

    top: str
    """The application: bin/ holds every busybox applet, `dependencies` lists what it refers to."""
    paths: tuple[str, ...]
    """The whole closure, `top` and busybox included, sorted."""
    info: str
    """A closureInfo of it: a store path with a `store-paths` file."""

    @property
    def store_paths_file(self) -> Path:
        """The file that lists the closure, a line each."""
        return Path(self.info) / "store-paths"


def nix_environment() -> dict[str, str]:
    """What Nix needs in its environment to be a single-user store that asks nobody: no sandbox, no caches."""
    return {"NIX_CONFIG": "sandbox = false\nsubstituters =\nbuild-users-group =\n"}


def nix_build(expression: Path, /, **arguments: str | int | Path) -> str:
    """Build a Nix file's one derivation, its arguments given by name, and return the store path.

    Strings and numbers become Nix strings and integers; a Path becomes a Nix path.
    """
    words: list[str] = []
    for name, value in arguments.items():
        words += ["--argstr", name, value] if isinstance(value, str) else ["--arg", name, str(value)]
    built = run("nix-build", "--no-out-link", expression, *words, environment=nix_environment())
    return built.stdout.strip()


@functools.cache
def _busybox() -> tuple[Path, tuple[str, ...]]:
    """The program and its applets' names."""
    busybox = static_busybox()
    if busybox is None:
        raise FileNotFoundError("this machine lacks a statically linked busybox")
    return busybox, tuple(applet for applet in run(busybox, "--list").stdout.split() if applet != "busybox")


def write_busybox_tree(directory: Path) -> None:
    """Write bin/busybox and, since it goes by the name it is called, a symlink for each applet."""
    busybox, applets = _busybox()
    (directory / "bin").mkdir(parents=True)
    shutil.copyfile(busybox, directory / "bin/busybox")
    (directory / "bin/busybox").chmod(0o755)
    for applet in applets:
        (directory / "bin" / applet).symlink_to("busybox")


def _write_dependency(path: Path, *, kind: str, text: str) -> None:
    if kind == "directory":
        (path / "share").mkdir(parents=True)
        path = path / "share/f"
    path.write_text(text)
    path.chmod(0o755 if kind == "executable" else 0o644)


@functools.cache
def nix_closure(
    count: int, *, salt: str = "", kinds: tuple[str, ...] = ("directory",), name: str = "", script: str = ""
) -> Closure:
    """Make a closure of `count` dependencies beside busybox and the application; cached for the session.

    Dependency i holds a line of i and `salt` in share/f: closures of different salts share nothing but
    busybox. `kinds` are taken in turn and may be "directory", "file" and "executable" (single-file store
    paths). `script` is shell run at the end of the application's build, with $out set.
    """
    if unknown := set(kinds) - set(_KINDS):
        raise ValueError(f"kinds are {_KINDS}, not {unknown}")
    with tempfile.TemporaryDirectory(prefix="nixsnap-closure.") as scratch:
        tree = Path(scratch)
        write_busybox_tree(tree / "busybox")
        (tree / "deps").mkdir()
        for index in range(count):
            dependency = tree / "deps" / f"dep-{index}"
            _write_dependency(dependency, kind=kinds[index % len(kinds)], text=f"{index} {salt}\n")
        top = nix_build(HERE / "closure.nix", tree=tree, name=name or f"app-{count}", script=script)
    info = closure_info(top)
    paths = tuple((Path(info) / "store-paths").read_text().split())
    return Closure(top=top, paths=paths, info=info)


def closure_info(path: str) -> str:
    """Build what nixpkgs' closureInfo makes for `path` and return that store path."""
    with tempfile.TemporaryDirectory(prefix="nixsnap-closure.") as scratch:
        write_busybox_tree(Path(scratch) / "busybox")
        return nix_build(HERE / "closure-info.nix", tree=Path(scratch), path=path)


def nix_store(
    *arguments: str, environment: Mapping[str, str] | None = None, check: bool = True
) -> Sequence[str]:
    """Run nix-store and return the lines it prints."""
    result = run(
        "nix-store", *arguments, environment={**nix_environment(), **(environment or {})}, check=check
    )
    return result.stdout.splitlines()


def delete_closure(closure: Closure) -> None:
    """Take a closure out of the store with all that refers to it; the busybox that all share stays."""
    own = [path for path in (closure.info, *closure.paths) if not path.endswith("-busybox-static")]
    # The derivations refer to the dependencies; Nix deletes no path before its referrers.
    doomed = nix_store("--query", "--referrers-closure", *own)
    nix_store("--delete", "--ignore-liveness", *doomed)


def missing_for_nix() -> list[str]:
    """What this machine lacks for building closures."""
    missing = []
    if shutil.which("nix-build") is None:
        missing.append("nix-build on PATH")
    if static_busybox() is None:
        missing.append("a statically linked busybox")
    return missing
