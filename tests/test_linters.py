"""The checks that need no machine: formatters, linters and type checkers, each an ordinary test.

They read the files that git tracks or would track, and write nothing into the checkout.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAB = Path(__file__).parent / "system"
SHEBANGS = (b"#!/bin/sh", b"#!/usr/bin/env bash", b"#!/bin/bash", b"# shellcheck shell=")


def tool(name: str) -> str:
    """The program of the development environment, beside the interpreter or on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"this environment lacks {name}; pip install '.[dev]' brings the linters")
    return found


def check(*argv: str | Path, **variables: str):
    """Run a checker from the top of the checkout and fail with what it says."""
    result = subprocess.run(
        argv,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **variables},
    )
    assert result.returncode == 0, f"{argv[0]} {argv[1]} …\n{result.stdout}{result.stderr}"


def files(*patterns: str) -> list[str]:
    """The files of the checkout that match, tracked or to be tracked, relative to it; at least one."""
    # Under sudo the checkout belongs to someone else; git then wants to be told that this is all right.
    command = [
        tool("git"),
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run([*command, "--", *patterns], cwd=REPOSITORY, capture_output=True, check=True)
    found = sorted({name for name in listed.stdout.decode().split("\0") if (REPOSITORY / name).is_file()})
    assert found, f"no file matches {patterns}"
    return found


def shell_scripts() -> list[str]:
    """Every shell script, whatever its name."""
    return [name for name in files() if (REPOSITORY / name).read_bytes().startswith(SHEBANGS)]


def test_ruff_check():
    """Ruff finds nothing, with every rule on that pyproject.toml does not explain away."""
    check(tool("ruff"), "check", "--no-cache", ".")


def test_ruff_format():
    """Python is formatted."""
    check(tool("ruff"), "format", "--no-cache", "--check", ".")


def test_mypy_package():
    """The installed package is type-correct, strictly; it has the generated modules, which a checkout lacks."""
    assert find_spec("nixsnap") is not None
    config = REPOSITORY / "pyproject.toml"
    command = [sys.executable, "-P", "-m", "mypy", "--config-file", config, "--cache-dir", "/dev/null"]
    result = subprocess.run(
        [*command, "--package", "nixsnap"], cwd="/", capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--package", "lab"), ("tests/conftest.py",), ("packaging/lib/demo.py",)],
    ids=lambda arguments: arguments[-1],
)
def test_mypy_harness(arguments: tuple[str, ...]):
    """The harness and the demo are type-correct too, strictly."""
    check(tool("mypy"), "--cache-dir", "/dev/null", *arguments, MYPYPATH=str(LAB))


def test_clang_format():
    """C is formatted."""
    check(tool("clang-format"), "--dry-run", "-Werror", *files("*.c", "*.h"))


def test_shellcheck():
    """Shellcheck finds nothing in any shell script."""
    scripts = shell_scripts()
    assert "packaging/test" in scripts
    check(tool("shellcheck"), "--external-sources", *scripts)


def test_codespell():
    """Common misspellings occur nowhere."""
    check(tool("codespell"), "--toml", "pyproject.toml", *files())


def test_nix_parses():
    """Every Nix file parses."""
    check(tool("nix-instantiate"), "--parse", *files("*.nix"), NIX_REMOTE="dummy://")


def test_pre_commit_runs_the_same_tools():
    """The commit hooks are local and call programs of the development environment, so versions cannot part ways."""
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    assert "repo: local" in hooks
    assert "repo: http" not in hooks
