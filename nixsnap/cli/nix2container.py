"""The `nix2container` command: global flags, and a module for each subcommand.

A subcommand's module has `add_parser`, which adds its flags and sets `run`, and `run`, which takes the
parsed flags and returns an exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from nixsnap import __version__
from nixsnap.cli import build, load, logs, push
from nixsnap.cli.errors import reported
from nixsnap.cli.parser import Parser
from nixsnap.places import default_places

PROGRAM: Final = "nix2container"

_SUBCOMMANDS: Final = (build, load, push)


def make_parser() -> Parser:
    """Make the parser, subcommands included."""
    description = "Make and load container images of Nix closures."
    parser = Parser(prog=PROGRAM, description=description)
    parser.add_argument("-v", "--version", action="version", version=f"{PROGRAM} (nixsnap) {__version__}")
    logs.add_level_flag(parser)
    parser.add_argument(
        "-a",
        "--address",
        default=os.environ.get("CONTAINERD_ADDRESS") or str(default_places().containerd_address),
        help="containerd's socket (default: $CONTAINERD_ADDRESS or %(default)s)",
    )
    parser.add_argument(
        "-n",
        "--namespace",
        default=os.environ.get("CONTAINERD_NAMESPACE") or "default",
        help="containerd's namespace (default: $CONTAINERD_NAMESPACE or %(default)s)",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for subcommand in _SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, and run the subcommand."""
    parser = make_parser()
    arguments = parser.parse_args(_respelt(parser, sys.argv[1:] if argv is None else argv))
    logs.set_up(arguments.log_level)
    return reported(PROGRAM, lambda: arguments.run(arguments))


def _respelt(parser: argparse.ArgumentParser, argv: Iterable[str]) -> list[str]:
    """Spell flags in argparse's way: the Go original takes `-from-image X` and `-a=X` too."""
    known = _flags(parser)
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    for position, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name.startswith("-") and f"-{name}" in known:
            words[position] = f"-{word}"
        elif equals and name in known and not name.startswith("--"):
            words[position] = f"{name}{value}"
    return words


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of its subcommands, dashes included."""
    flags = set(parser._option_string_actions)  # noqa: SLF001
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            flags |= set().union(*map(_flags, action.choices.values()))
    return flags


if __name__ == "__main__":
    sys.exit(main())
