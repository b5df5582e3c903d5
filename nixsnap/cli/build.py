"""`nix2container build`: make an image archive of a Nix closure."""

from __future__ import annotations

import argparse
import posixpath

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.closure import AnnotationForm
from nixsnap.image.platform import Platform
from nixsnap.image.reference import NIX_PREFIX, Reference


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand, with the flags of the Go original and ours."""
    parser = subparsers.add_parser(
        "build",
        help="build an image archive",
        description="Build an image whose content is a Nix closure, as an OCI archive that docker can load too.",
    )
    parser.add_argument("out", metavar="OUT", help="the archive to write")
    parser.add_argument("--from-image", metavar="FILE", help="archive of the base image (docker or OCI)")
    parser.add_argument(
        "--config", metavar="FILE", help="JSON file with the image's config (Entrypoint, Env, …)"
    )
    parser.add_argument(
        "--closure",
        metavar="FILE",
        help="closureInfo output, or a file with a store path a line: what the image has",
    )
    parser.add_argument(
        "--copy-to-root", metavar="FILE", help="JSON file with a list of store paths whose content shows at /"
    )
    parser.add_argument("--ref", metavar="NAME", help=f"the image's name (default: {NIX_PREFIX}OUT:latest)")
    parser.add_argument(
        "--annotations",
        type=AnnotationForm,
        choices=list(AnnotationForm),
        metavar="FORM",
        help="how the layer names its closure: closure (default with closureInfo), legacy or both",
    )
    parser.add_argument(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="what the image runs on (default: this host)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Build, and say what was built in the log."""
    from nixsnap.image.build import Request, build  # noqa: PLC0415 - of no use to the other subcommands

    build(
        Request(
            out=arguments.out,
            reference=_reference(arguments),
            platform=Platform.host() if arguments.platform is None else Platform.parse(arguments.platform),
            config=arguments.config,
            closure=arguments.closure,
            copy_to_root=arguments.copy_to_root,
            from_image=arguments.from_image or None,
            annotations=arguments.annotations,
        )
    )
    return 0


def _reference(arguments: argparse.Namespace) -> Reference:
    """The image's name; by default the one under which CRI finds an archive in the store."""
    if arguments.ref is None:
        path = posixpath.abspath(arguments.out)
        try:
            return Reference.parse(f"{NIX_PREFIX}{path}:latest")
        except InvalidArgumentError as exc:
            raise InvalidArgumentError(exc.message, hint="give the image a name with --ref") from exc
    reference = Reference.parse(arguments.ref)
    if reference.digest:
        raise InvalidArgumentError(
            f"--ref {arguments.ref} has a digest, which only the image itself can have"
        )
    return reference
