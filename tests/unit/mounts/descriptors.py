"""What is open in this process: the tests of mounts are all tests that no descriptor leaks."""

from __future__ import annotations

from pathlib import Path


def open_descriptors() -> dict[str, str]:
    """Return what is open in this process, by number."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found[descriptor.name] = str(descriptor.readlink())
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found
