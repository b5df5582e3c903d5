"""`nixsnap rootless check`: what a plain user's machine lacks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import attrs

from nixsnap.config import load
from nixsnap.errors import InvalidArgumentError
from nixsnap.places import default_places
from nixsnap.rootless.check import check
from nixsnap.rootless.findings import Finding, State
from nixsnap.rootless.machine import Machine

_SOMETHING_MISSING = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to those of `nixsnap`."""
    parser = subparsers.add_parser("rootless", help="what rootless containers need")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "check",
        help="say what this machine lacks, and how to get it",
        description="Say what this machine lacks for rootless containers with Nix images, and how to get it."
        " Run it as the user whose containers they will be. Ends with status 1 if something is missing.",
    )
    command.add_argument("--json", action="store_true", help="one JSON array of findings")
    command.add_argument("-c", "--config", type=Path, help="the daemon's configuration file")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, and print what was found."""
    machine = Machine.this()
    if machine.uid == 0:
        raise InvalidArgumentError(
            "this is about a plain user, and you are root",
            hint="run it as the user whose containers they will be; root needs none of it",
        )
    path = arguments.config or default_places().config
    config = load(path, required=arguments.config is not None, overrides={})
    findings = list(check(machine, config))
    print(_as_json(findings) if arguments.json else "\n".join(_as_text(findings)))
    return _SOMETHING_MISSING if any(finding.state is State.MISSING for finding in findings) else 0


def _as_json(findings: Iterable[Finding]) -> str:
    return json.dumps([attrs.asdict(finding) for finding in findings], indent=2)


def _as_text(findings: Iterable[Finding]) -> Iterable[str]:
    for finding in findings:
        yield f"{finding.state.value:8}{finding.name}: {finding.detail}"
        if finding.remedy is not None:
            yield f"{'':8}  -> {finding.remedy}"
