"""What the documents say that users type: settings, flags, files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from nixsnap.cli import main, nix2container, serve
from nixsnap.config import Config, ImageServiceConfig, NixConfig

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
DOCUMENTS = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
TABLES = {"": Config, "nix": NixConfig, "image_service": ImageServiceConfig}


def documented_keys() -> Iterator[str]:
    """The keys of README's table, each with its own table's name before it."""
    (table,) = re.findall(r"^\| key \| default \|.*\n((?:\|.*\n)+)", README.read_text(), re.MULTILINE)
    for row in table.splitlines()[1:]:
        cell = row.split("|")[1].replace("`", "").strip()
        name, keys = re.fullmatch(r"(?:\[(\w+)\] )?(.*)", cell).groups()
        yield from (f"{name or ''}.{key}" for key in keys.split(", "))


def test_settings():
    """README has each of them, and none that does not exist."""
    known = {
        f"{table}.{field.name}"
        for table, cls in TABLES.items()
        for field in attrs.fields(cls)
        if table or field.name not in TABLES
    }
    assert sorted(documented_keys()) == sorted(known)


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from flags_of(subparser)


@pytest.mark.parametrize("command", [main, nix2container, serve], ids=["nixsnap", "nix2container", "serve"])
def test_flags(command, monkeypatch):
    """Each long flag of each command is told of somewhere."""
    parsers: list[argparse.ArgumentParser] = []

    def parse_args(parser, *_arguments):
        parsers.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(SystemExit):
        command.main([])
    words = set(re.findall(r"(?<![\w-])--[a-z-]+", "\n".join(path.read_text() for path in DOCUMENTS)))
    flags = set(flags_of(parsers[0])) - {"--help", "--version"}
    assert flags - words == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links(document):
    """Links within the repository lead somewhere, to a heading too."""
    for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", document.read_text()):
        path = (document.parent / target) if target else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs
