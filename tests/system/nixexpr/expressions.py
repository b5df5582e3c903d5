"""Evaluating and building the checkout's Nix files with the nixpkgs of our own beside this file."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import attrs
from lab import installed_program, nix_environment, run
from lab.nix import write_busybox_tree

REPOSITORY = Path(__file__).parents[3]
REAL_LIB = "NIXSNAP_NIXPKGS_LIB"
"""May name the lib directory of a nixpkgs, for a run with the real thing in place of our stand-in."""


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def names_of(requirements: list[str]) -> set[str]:
    """The packages that requirements are of."""
    return {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}


@attrs.frozen(kw_only=True)
class Expressions:
    """Nix, with `<nixpkgs>` in NIX_PATH and the overlay applied."""

    nixpkgs: Path

    @classmethod
    def make(cls, directory: Path) -> Expressions:
        """Write the nixpkgs to `directory`, with this machine's busybox and the nixsnap under test."""
        nixpkgs = directory / "nixpkgs"
        shutil.copytree(Path(__file__).parent / "nixpkgs", nixpkgs)
        write_busybox_tree(nixpkgs / "busybox")
        if real_lib := os.environ.get(REAL_LIB):
            shutil.copytree(real_lib, nixpkgs / "lib")
        python_packages = names_of(
            project()["build-system"]["requires"] + project()["project"]["dependencies"]
        )
        settings = {
            "programs": str(installed_program("nix2container").parent),
            "pythonPackages": sorted(python_packages),
        }
        (nixpkgs / "settings.json").write_text(json.dumps(settings))
        return cls(nixpkgs=nixpkgs)

    @property
    def environment(self) -> dict[str, str]:
        """Of every Nix command."""
        return nix_environment() | {"NIX_PATH": f"nixpkgs={self.nixpkgs}"}

    def _bound(self, expression: str) -> str:
        overlay = f"(import {REPOSITORY}).overlays.default"
        return (
            f"let repository = {REPOSITORY}; pkgs = import <nixpkgs> {{ overlays = [ {overlay} ]; }};"
            f" inherit (pkgs) lib; inherit (pkgs.nix-snapshotter) buildImage; in {expression}"
        )

    def build(self, expression: str) -> Path:
        """Build an expression, in which `pkgs`, `lib`, `buildImage` and `repository` are bound; return the store path.

        Raises CommandError with what Nix and the builder said.
        """
        built = run(
            "nix-build", "--no-out-link", "--expr", self._bound(expression), environment=self.environment
        )
        return Path(built.stdout.strip())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as JSON has it: of a derivation it is the output's path."""
        argv = ("nix-instantiate", "--eval", "--strict", "--json", "--expr", self._bound(expression))
        return json.loads(run(*argv, environment=self.environment).stdout)

    def build_file(self, file: Path, *arguments: str) -> Path:
        """Build a Nix file as its users do, with their arguments."""
        built = run("nix-build", "--no-out-link", file, *arguments, environment=self.environment)
        return Path(built.stdout.strip())
