"""What all tests of Nix files share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from expressions import Expressions
from lab.requirements import need_nix

# A registry, and a Kubernetes node, of the neighbours' tests.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("push", "node")]


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Expressions:
    """Nix with a nixpkgs of our own."""
    need_nix()
    return Expressions.make(tmp_path_factory.mktemp("nixexpr"))
