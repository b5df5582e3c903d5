"""`nixsnap realise`: fetch what images need before anyone pulls them."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from nixsnap.cli import logs
from nixsnap.cli.keptroots import kept_roots
from nixsnap.config import Config, load
from nixsnap.places import default_places

if TYPE_CHECKING:
    from nixsnap.nix.progress import Progress, ProgressSink
    from nixsnap.nix.storepath import StorePath

_TERMINATED: Final = 143  # 128 + SIGTERM, as shells have it


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to those of `nixsnap`."""
    parser = subparsers.add_parser(
        "realise",
        help="fetch what images need, before anyone pulls them",
        description="Fetch the store paths that image archives name, closures, or single store paths, with the "
        "daemon's configuration. Nothing is done for what is there already.",
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="+",
        help="an image archive, inside the store (also as nix:0/nix/store/...) or not; a closureInfo; a store path; "
        "or a symlink to one of these",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIRECTORY",
        help="keep all of it: make this directory, with subdirectories of GC roots (symlinks to store paths), in place "
        "of what an earlier run with the same --root kept. They hold until it is removed (rm -r DIRECTORY) or moved. "
        "Without --root, Nix's garbage collector may take what no image that was pulled keeps",
    )
    parser.add_argument(
        "--platform", help="os/arch[/variant] of an archive's image (default: this machine's)"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as a JSON object")
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        help=f"the daemon's configuration file (default: {default_places().config})",
    )
    logs.add_level_flag(parser, default="warning")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Realise all of it, and say what was done."""
    from nixsnap.cli.fetchprogress import progress_on  # noqa: PLC0415
    from nixsnap.image.platform import Platform  # noqa: PLC0415
    from nixsnap.nix.choice import make_realiser  # noqa: PLC0415
    from nixsnap.prewarm import Prewarmer  # noqa: PLC0415

    logs.set_up(arguments.log_level)
    signal.signal(signal.SIGTERM, _terminate)
    config = load(
        arguments.config or default_places().config, required=arguments.config is not None, overrides={}
    )
    report = _Report()
    realiser = make_realiser(config)
    try:
        with _gcroots(arguments.root) as (gcroots, first_number), progress_on(sys.stderr) as shown:
            present = Prewarmer(
                realiser=realiser,
                store=config.host_store,
                store_dir=str(config.store_dir),
                gcroots=gcroots,
                first_number=first_number,
                platform=Platform.parse(arguments.platform) if arguments.platform else Platform.host(),
                progress=report.noting(shown),
            ).realise([_plain(what, config) for what in arguments.what])
    finally:
        realiser.close()
    print(report.json(present, arguments.root) if arguments.json else report.text(present, arguments.root))
    return 0


class _Report:
    """What was done."""

    def __init__(self) -> None:
        self._began_seconds = time.monotonic()
        self._fetched: Progress | None = None

    def noting(self, sink: ProgressSink) -> ProgressSink:
        """A sink that remembers how far it came, and passes it on."""

        def note(progress: Progress) -> None:
            self._fetched = progress
            sink(progress)

        return note

    def text(self, present: set[StorePath], root: Path | None) -> str:
        """For people."""
        from nixsnap.cli.terminal import size  # noqa: PLC0415

        fetched = "nothing had to be fetched"
        if self._fetched is not None:
            seconds = time.monotonic() - self._began_seconds
            amount = f"{self._fetched.paths_done} paths, {size(self._fetched.bytes_done)}"
            fetched = f"fetched {amount} in {seconds:.1f} s"
        keeper = (
            f"kept until {root} is removed"
            if root
            else "kept only by images that are pulled; --root keeps them"
        )
        return f"{len(present)} store paths are here: {fetched}; {keeper}"

    def json(self, present: set[StorePath], root: Path | None) -> str:
        """For programs."""
        document = {
            "store_paths": sorted(map(str, present)),
            "fetched_paths": 0 if self._fetched is None else self._fetched.paths_done,
            "fetched_bytes": 0 if self._fetched is None else self._fetched.bytes_done,
            "seconds": round(time.monotonic() - self._began_seconds, 3),
            "root": None if root is None else str(root),
        }
        return json.dumps(document)


def _plain(what: str, config: Config) -> str:
    """The archive that a `nix:0` reference names; all else as it is."""
    from nixsnap.services.pulls import PREFIX, NixReference  # noqa: PLC0415

    if not what.startswith(f"{PREFIX}/"):
        return what
    return str(NixReference.parse(what, store_dir=str(config.store_dir)).archive)


@contextlib.contextmanager
def _gcroots(root: Path | None) -> Iterator[tuple[Path, int]]:
    """Where roots go, and the first number there: they hold while this goes on, at the least."""
    if root is not None:
        directory = root.absolute()
        with kept_roots(directory) as first:
            yield directory, first
        return
    with tempfile.TemporaryDirectory(prefix="nixsnap-roots.") as temporary:
        yield Path(temporary), 1


def _terminate(_signal: int, _frame: object) -> NoReturn:
    """End on SIGTERM as on SIGINT: with Nix ended too."""
    raise SystemExit(_TERMINATED)
