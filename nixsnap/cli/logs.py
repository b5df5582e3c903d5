"""Log lines: one an event, to standard error."""

from __future__ import annotations

import argparse
import logging
from typing import Final

# The names that logrus has, since they are what users of the Go original pass to --log-level.
LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}


def add_level_flag(parser: argparse.ArgumentParser, *, default: str = "info") -> None:
    """Add `--log-level`."""
    parser.add_argument(
        "-l",
        "--log-level",
        default=default,
        choices=LEVELS,
        metavar="LEVEL",
        help="trace, debug, info, warn, error, fatal or panic (default: %(default)s)",
    )


def set_up(level: str) -> None:
    """Log at `level`, a key of `LEVELS`, and above."""
    # What our lines do not have need not be found out for each of them (Python's "Logging HOWTO", "Optimization").
    logging._srcfile = None  # noqa: SLF001 - as that document has it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(
        level=LEVELS[level],
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # Lines about their own insides, of use to nobody here.
    for name in ("grpc", "asyncio"):
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.INFO))
