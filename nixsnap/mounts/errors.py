"""What a failed system call of the C core raises."""

from __future__ import annotations

import os


class StepError(OSError):
    """A system call failed.

    An ordinary `OSError`, with errno, strerror and filename, that also knows the step of a longer sequence.

    Attributes:
        step: The call and what it was to do, such as "fsconfig lowerdir+".
        detail: What the kernel, or the C core, had to add; may be empty.
    """

    def __init__(self, number: int, step: str, filename: str | None = None, detail: str = "") -> None:
        super().__init__(number, os.strerror(number), filename)
        self.step = step
        self.detail = detail

    def __str__(self) -> str:
        text = f"{self.step}: {self.strerror}"
        if self.filename is not None:
            text += f": {self.filename!r}"
        return f"{text} ({self.detail})" if self.detail else text
