"""`nix2container push`: image archives to a registry."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nixsnap import netns
from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.reference import Reference
from nixsnap.nix.storepath import shorten

if TYPE_CHECKING:
    from nixsnap.image.archive import ImageArchive

_TERMINATED = 143  # 128 + SIGTERM, as shells have it


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to those of `nix2container`."""
    parser = subparsers.add_parser(
        "push",
        help="push image archives to a registry",
        description="Verify OCI or Docker image archives, push them to a registry as one image, and print its name and "
        "digest. Archives for several platforms become one index.",
    )
    parser.add_argument("archives", metavar="ARCHIVE", nargs="+", help="an archive; - is standard input")
    parser.add_argument("--ref", required=True, metavar="NAME", help="where to push to: [HOST/]NAME[:TAG]")
    parser.add_argument(
        "--plain-http", action="store_true", help="speak HTTP without TLS, unless hosts.toml says otherwise"
    )
    parser.add_argument(
        "--hosts-dir",
        action="append",
        type=Path,
        metavar="DIR",
        help="where registries are configured, HOST/hosts.toml each; may be repeated "
        "(default: /etc/containerd/certs.d and /etc/docker/certs.d)",
    )
    parser.add_argument(
        "--mount-from",
        action="append",
        default=[],
        metavar="NAME",
        help="a repository of the same registry that may have some of the layers; may be repeated",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Push the archives and print what the registry has now."""
    # urllib3 and ssl load here, so that `--help` and a wrong flag answer at once.
    from nixsnap.cli.pushprogress import progress_on  # noqa: PLC0415
    from nixsnap.registry.hosts import default_hosts_dirs  # noqa: PLC0415
    from nixsnap.registry.push import push  # noqa: PLC0415

    if (namespace := netns.detached()) is not None:
        netns.enter(namespace)  # before there is another thread, so that all of them are in it
    reference = Reference.parse(arguments.ref)
    mount_from = [_repository(name, reference) for name in arguments.mount_from]
    for directory in arguments.hosts_dir or ():
        if not directory.is_dir():
            raise NotFoundError(f"--hosts-dir {shorten(str(directory))} is no directory")
    signal.signal(signal.SIGTERM, _terminate)
    # It would write down whole URLs, and whoever has one of those that a registry signs may write to its blob store.
    logging.getLogger("urllib3").setLevel(logging.INFO)
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(_open(path)) for path in arguments.archives]
        progress = stack.enter_context(progress_on(sys.stderr))
        pushed = push(
            archives,
            reference,
            hosts_dirs=arguments.hosts_dir or default_hosts_dirs(),
            plain_http=arguments.plain_http,
            mount_from=mount_from,
            progress=progress,
        )
    print(pushed)
    return 0


def _repository(name: str, reference: Reference) -> str:
    """Take the name of a repository, with or without the registry's."""
    other = Reference.parse(f"{reference.domain}/{name.removeprefix(f'{reference.domain}/')}")
    if other.digest or name.rpartition("/")[2].count(":"):
        raise InvalidArgumentError(f"--mount-from {shorten(name)} is no repository: it has a tag or a digest")
    return other.path


def _open(path: str) -> ImageArchive:
    from nixsnap.image.archive import ImageArchive  # noqa: PLC0415

    return ImageArchive.from_stream(sys.stdin.buffer) if path == "-" else ImageArchive.open(path)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    """End on SIGTERM as on SIGINT: with uploads cancelled at the registry."""
    raise SystemExit(_TERMINATED)
