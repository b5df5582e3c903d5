"""The `nixsnap` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nixsnap import __version__
from nixsnap.cli import realise, rootless, serve, storedoor
from nixsnap.cli.errors import reported
from nixsnap.cli.parser import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, and run the subcommand."""
    parser: argparse.ArgumentParser = Parser(prog="nixsnap", description="Nix images for containerd.")
    parser.add_argument("--version", action="version", version=f"nixsnap {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    serve.add_parser(subparsers)
    realise.add_parser(subparsers)
    rootless.add_parser(subparsers)
    storedoor.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    return reported("nixsnap", lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
