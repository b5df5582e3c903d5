"""Store paths that no cache has and that a store knows how to build: their derivations are in it, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from lab.nix import write_busybox_tree
from lab.processes import run

EXPRESSION = Path(__file__).with_name("recipe.nix")


@attrs.frozen(kw_only=True)
class Recipe:
    """A derivation in a store, and what it makes.

    Attributes:
        derivation: Its store path.
        output: What it makes, not there yet.
        needs: What has to be built before, which the output refers to.
        needs_derivation: The derivation of that.
    """

    derivation: str
    output: str
    needs: str
    needs_derivation: str


def add_recipe(
    store_root: Path,
    *,
    name: str = "made",
    script: str = "",
    before: str = "",
    environment: Mapping[str, str] | None = None,
) -> Recipe:
    """Put a derivation, with the one of what it needs, into a chroot store.

    Args:
        store_root: The store's root.
        name: The derivation's name.
        script: Shell that its builder runs, with every busybox applet on PATH and `$out` set.
        before: Shell that the builder of what it needs runs.
        environment: For Nix.
    """

    def ask(program: str, *arguments: str | Path) -> list[str]:
        return run(program, "--store", store_root, *arguments, environment=environment).stdout.split()

    with tempfile.TemporaryDirectory(prefix="nixsnap-recipe.") as scratch:
        write_busybox_tree(Path(scratch) / "busybox")
        strings = {"name": name, "script": script, "before": before}
        words = [word for key, text in strings.items() for word in ("--argstr", key, text)]
        (derivation,) = ask("nix-instantiate", EXPRESSION, "--arg", "busybox", f"{scratch}/busybox", *words)
    (needs_derivation,) = (
        path for path in ask("nix-store", "--query", "--references", derivation) if path.endswith(".drv")
    )
    output, needs = (
        ask("nix-store", "--query", "--binding", "out", path)[0] for path in (derivation, needs_derivation)
    )
    return Recipe(derivation=derivation, output=output, needs=needs, needs_derivation=needs_derivation)
