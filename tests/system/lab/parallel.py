"""A run in several processes at once: which tests stay together."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_ROOTLESSKIT = re.compile(r"\[(rootlesskit-.+)-node/")
_CONTAINERD = re.compile(r"[\[-](containerd-[0-9.]+)")


def togetherness(node_id: str) -> str:
    """The name of those tests that one process runs, one after the other: the module, and what its tests run on.

    What is made once for a module, or for a rootlesskit, is then made once; and a test may look at the processes of the
    whole machine for something that its module alone starts. Tests on another release of containerd differ in nothing
    else, and have nothing in common with these, so another process may run them.
    """
    module, _, test = node_id.partition("::")
    found = _ROOTLESSKIT.search(test) or _CONTAINERD.search(test)
    return f"{module} {found[1]}" if found else module


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # it has types, but does not say so
    """Hands out tests that stay together in pytest's own order: the tiers that take long before the quick ones."""

    def _split_scope(self, nodeid: str) -> str:
        return togetherness(nodeid)
