"""A network namespace as rootlesskit leaves it: a file, and a loopback interface of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs

from lab.processes import run
from nixsnap.netns import enter

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class DetachedNetwork:
    """A network that nothing is in but what the test puts there.

    Attributes:
        environment: What tells a program of it.
    """

    environment: dict[str, str]
    _inside: ThreadPoolExecutor

    @classmethod
    @contextmanager
    def made(cls, state_directory: Path) -> Iterator[DetachedNetwork]:
        """Make `state_directory`/netns, for as long as the block lasts."""
        path = state_directory / "netns"
        path.touch()
        run("unshare", f"--net={path}", "ip", "link", "set", "lo", "up")
        try:
            with ThreadPoolExecutor(1, initializer=enter, initargs=(path,)) as inside:
                yield cls(environment={"ROOTLESSKIT_STATE_DIR": str(state_directory)}, inside=inside)
        finally:
            run("umount", path)

    def call(self, function: Callable[[], T]) -> T:
        """Call something on a thread that is in it, and stays until the end."""
        return self._inside.submit(function).result()
