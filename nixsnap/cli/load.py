"""`nix2container load`: an image archive into containerd."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nixsnap.containerd.load import LoadedImage
    from nixsnap.containerd.plan import Plan
    from nixsnap.image.archive import ImageArchive

_TERMINATED = 143  # 128 + SIGTERM, as shells have it


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to those of `nix2container`."""
    parser = subparsers.add_parser(
        "load",
        help="load an image archive into containerd",
        description="Verify an OCI or Docker image archive, store it in containerd, unpack it, and print its name.",
    )
    parser.add_argument("archive", metavar="ARCHIVE", help="the archive; - is standard input")
    parser.add_argument(
        "--snapshotter",
        default="nix",
        help="containerd's name of the snapshotter to unpack with (default: nix)",
    )
    parser.add_argument(
        "--platform", help="os/arch[/variant] of the image to unpack (default: this machine's)"
    )
    parser.add_argument("--ref", help="name for the image, instead of what the archive says")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the archive and print the names of its images, a line each."""
    # grpc and protobuf load here, so that `--help` and a wrong flag answer at once.
    from nixsnap.containerd.client import probe  # noqa: PLC0415
    from nixsnap.containerd.plan import plan  # noqa: PLC0415
    from nixsnap.image.platform import Platform  # noqa: PLC0415

    platform = Platform.parse(arguments.platform) if arguments.platform else Platform.host()
    probe(arguments.address)
    # Reading the archive may take long. It happens before the event loop takes the signals over, so that they end it.
    with _open(arguments.archive) as archive:
        planned = plan(archive, platform=platform, ref=arguments.ref, prefix=_prefix(arguments.archive))
        try:
            images = asyncio.run(_load(arguments, planned))
        except asyncio.CancelledError:
            return _TERMINATED
    for image in images:
        if image.was_loaded:
            print(f"{image.name} is loaded already", file=sys.stderr)
        print(image.name)
    return 0


async def _load(arguments: argparse.Namespace, planned: Plan) -> tuple[LoadedImage, ...]:
    from nixsnap.cli.progress import progress_on  # noqa: PLC0415
    from nixsnap.cli.terminal import is_live  # noqa: PLC0415
    from nixsnap.containerd.client import connect  # noqa: PLC0415
    from nixsnap.containerd.load import load_plan  # noqa: PLC0415
    from nixsnap.containerd.watch import watch_fetches  # noqa: PLC0415

    _cancel_on_sigterm()
    async with connect(arguments.address, namespace=arguments.namespace) as client:
        with progress_on(sys.stderr) as progress:
            loading = load_plan(client, planned, snapshotter=arguments.snapshotter, progress=progress)
            if not is_live(sys.stderr):
                return await loading
            chain_ids = [layer.chain_id for image in planned.images for layer in image.layers]
            watching = asyncio.create_task(
                watch_fetches(client, arguments.snapshotter, chain_ids, progress.fetching)
            )
            try:
                return await loading
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


def _cancel_on_sigterm() -> None:
    """Let SIGTERM end the load as SIGINT does: with nothing half made left in containerd."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _open(path: str) -> ImageArchive:
    from nixsnap.image.archive import ImageArchive  # noqa: PLC0415

    return ImageArchive.from_stream(sys.stdin.buffer) if path == "-" else ImageArchive.open(path)


def _prefix(path: str) -> str:
    """What an image is called of which the archive gives no more than a tag; as the Go original calls it."""
    return "" if path == "-" else f"import-{os.path.basename(path)}"  # noqa: PTH119 - a name, not a file
