"""Store paths: the only file names that nixsnap takes from an image.

A store path is `<store directory>/<digest>-<name>`: 32 characters of Nix's base 32 (no `e`, `o`, `t`, `u`),
a hyphen and 1 to 211 of the characters `0-9 a-z A-Z + - . _ ? =`. These are the rules of Nix's own
`checkName` (`src/libstore/path.cc`). Its releases differ in one point, a name that starts with a dot: 2.4
to 2.18 take any, 2.19 and 2.20 none, later ones all but `.`, `..` and those two followed by a hyphen. We do
as the latter.

No such string can climb out of the store: it has no slash after the store directory, and it begins with the
digest. Nor has it a character that means something in a mount option string (`,`, `:`, a backslash).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError

STORE_DIR: Final = "/nix/store"

_STORE_NAME: Final = re.compile(r"[0-9a-df-np-sv-z]{32}-(?!\.\.?(?:-|\Z))[0-9A-Za-z+\-._?=]{1,211}", re.ASCII)
_DIGEST_LENGTH: Final = 32
_SHOWN_LENGTH: Final = 300  # more than the longest store path has


def is_store_name(name: str) -> bool:
    """Whether `name` is `<digest>-<name>`, the last component of a store path."""
    return _STORE_NAME.fullmatch(name) is not None


def _check_name(_instance: StorePath, _attribute: attrs.Attribute[str], value: str) -> None:
    if not is_store_name(value):
        raise InvalidArgumentError(f"{shorten(value)} is not the name of a store path")


@attrs.frozen(kw_only=True, order=True)
class StorePath:
    """One store path; a value that exists is well formed, whether or not the store has it.

    Args:
        store_dir: The store directory as containers see it, absolute and without a trailing slash.
        name: `<digest>-<name>`.

    Raises:
        InvalidArgumentError: `name` is not the name of a store path.
    """

    store_dir: str = STORE_DIR
    name: str = attrs.field(validator=_check_name)

    @classmethod
    def parse(cls, text: str, *, store_dir: str = STORE_DIR) -> StorePath:
        """Take `text` as a store path, exactly: nothing is stripped, normalised or looked up.

        Raises:
            InvalidArgumentError: `text` is anything else; the message shows it.
        """
        directory, _, name = text.rpartition("/")
        try:
            if directory == store_dir:
                return cls(store_dir=store_dir, name=name)
        except InvalidArgumentError:
            pass  # the message below shows the whole text
        raise InvalidArgumentError(f"{shorten(text)} is not a store path in {store_dir}")

    @property
    def digest(self) -> str:
        """The 32 base-32 characters by which binary caches know the path."""
        return self.name[:_DIGEST_LENGTH]

    def __str__(self) -> str:
        return f"{self.store_dir}/{self.name}"

    def __fspath__(self) -> str:
        return str(self)


def parse_closure(text: str, *, store_dir: str = STORE_DIR) -> list[StorePath]:
    """Take a closure as `closureInfo` writes it to `store-paths`: one store path a line.

    Empty lines are passed over and a repeated path counts once.

    Returns:
        The paths in the order of the text.

    Raises:
        InvalidArgumentError: A line is not a store path; the message has the line's number and shows it.
    """
    seen: dict[str, StorePath] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line in seen:
            continue
        try:
            seen[line] = StorePath.parse(line, store_dir=store_dir)
        except InvalidArgumentError as exc:
            raise InvalidArgumentError(f"line {number}: {exc.message}") from exc
    return list(seen.values())


def refuse_derivations(paths: Iterable[StorePath]) -> None:
    """Make sure that realising `paths` runs no build that an image chose.

    Nix builds a derivation that it is asked to realise: on the host, and as root where there are no build users.

    Raises:
        InvalidArgumentError: One of `paths` is a derivation.
    """
    for path in paths:
        if path.name.endswith(".drv"):
            raise InvalidArgumentError(f"{path} is a derivation, not something that a container can use")


def shorten(text: str) -> str:
    """Show a hostile string: quoted, escaped, and cut where it is long (its true length is said then)."""
    if len(text) <= _SHOWN_LENGTH:
        return ascii(text)
    return f"{text[:_SHOWN_LENGTH]!a}… ({len(text)} characters)"
