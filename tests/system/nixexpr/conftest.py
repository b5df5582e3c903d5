"""What all tests of Nix files share."""

from __future__ import annotations

import pytest
from expressions import Expressions
from lab.requirements import need_nix


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Expressions:
    """Nix with a nixpkgs of our own."""
    need_nix()
    return Expressions.make(tmp_path_factory.mktemp("nixexpr"))
