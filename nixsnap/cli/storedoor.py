"""`nixsnap store-door`: show root's store to the users of this machine, as if it were theirs, read-only."""

from __future__ import annotations

import argparse
from pathlib import Path

from nixsnap.cli import logs
from nixsnap.storedoor.protocol import DEFAULT_ADDRESS


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to those of `nixsnap`."""
    parser = subparsers.add_parser(
        "store-door",
        help="hand users' daemons a mount of the store",
        description="Hand the daemons of this machine's users a read-only mount of the store that shows root's files "
        "as theirs. Runs as root, by socket activation or on a socket of its own.",
    )
    parser.add_argument(
        "--store", type=Path, default=Path("/nix/store"), help="the store (default: %(default)s)"
    )
    parser.add_argument(
        "-a",
        "--address",
        type=Path,
        help=f"Unix socket to serve on (default: the one that systemd passes, else {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--group", help="only this group may ask (with a socket of its own; default: every user)"
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        help="end when nobody has come for so long (default: never)",
    )
    logs.add_level_flag(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal says stop, or nobody comes any more."""
    from nixsnap.storedoor.service import serve  # noqa: PLC0415 - it loads the C core

    logs.set_up(arguments.log_level)
    serve(
        arguments.store,
        address=arguments.address,
        group=arguments.group,
        idle_seconds=arguments.idle_seconds,
    )
    return 0
