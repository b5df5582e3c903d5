"""The parser of every command's arguments."""

from __future__ import annotations

import argparse
from typing import Any, Final, NoReturn

_USAGE_ERROR: Final = 2


class Parser(argparse.ArgumentParser):
    """Takes flags by their full names only, and reports a wrong one in one line as every other error."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviated flag would change its meaning the day that another one begins the same.
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End with the message, and whose help to read."""
        program = self.prog.partition(" ")[0]
        self.exit(_USAGE_ERROR, f"{program}: {message}; see {self.prog} --help\n")
