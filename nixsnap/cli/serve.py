"""`nixsnap serve`, also installed as `nix-snapshotter`: run the daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nixsnap import __version__
from nixsnap.cli import logs
from nixsnap.cli.errors import reported
from nixsnap.cli.parser import Parser
from nixsnap.config import load
from nixsnap.places import default_places
from nixsnap.serving.poller import prefer_older_poller


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to those of `nixsnap`."""
    parser = subparsers.add_parser(
        "serve",
        help="run the snapshotter",
        description="Run the snapshotter that containerd calls as a proxy plug-in.",
    )
    _add_flags(parser)
    parser.set_defaults(run=run)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--config", type=Path, help=f"configuration file (default: {default_places().config})"
    )
    parser.add_argument("-a", "--address", help="Unix socket to serve on")
    parser.add_argument("--root", help="directory of snapshots and metadata")
    logs.add_level_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal says stop."""
    prefer_older_poller()
    # grpc and all that needs it load here, so that `--help` and a wrong flag answer at once.
    from nixsnap.daemon import serve  # noqa: PLC0415

    logs.set_up(arguments.log_level)
    config = load(
        arguments.config or default_places().config,
        required=arguments.config is not None,
        overrides={
            name: value for name in ("address", "root") if (value := getattr(arguments, name)) is not None
        },
    )
    serve(config)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The `nix-snapshotter` command, with the flags of the Go original."""
    parser = Parser(
        prog="nix-snapshotter", description="A containerd snapshotter that understands the Nix store."
    )
    parser.add_argument(
        "-v", "--version", action="version", version=f"nix-snapshotter (nixsnap) {__version__}"
    )
    _add_flags(parser)
    return reported("nix-snapshotter", lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
