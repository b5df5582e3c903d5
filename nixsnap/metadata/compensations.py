"""What undoes the file operations that go with rows, should the rows not come to be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import attrs

_log: Final = logging.getLogger(__name__)


@attrs.define
class Compensations:
    """The steps that undo files if the transaction, or one operation of it, is rolled back."""

    _steps: list[Callable[[], object]] = attrs.field(factory=list, init=False)

    def add(self, compensate: Callable[[], object]) -> None:
        """Note a step that undoes something."""
        self._steps.append(compensate)

    def mark(self) -> int:
        """A place to undo back to."""
        return len(self._steps)

    def run(self, mark: int = 0) -> None:
        """Run those noted since the mark, last first.

        One that fails is logged, for the error that led here is the one to tell.
        """
        while len(self._steps) > mark:
            try:
                self._steps.pop()()
            except Exception:  # noqa: BLE001 - see above
                _log.exception("undoing the files of a failed operation failed")

    def clear(self) -> None:
        """Forget everything: the transaction has been committed."""
        self._steps.clear()
