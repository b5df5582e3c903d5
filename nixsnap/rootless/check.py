"""Everything that is looked at, in the order in which one would set it up."""

from __future__ import annotations

from collections.abc import Iterator

from nixsnap.config import Config
from nixsnap.rootless import accounts, kernel, programs, session, store
from nixsnap.rootless.findings import Finding
from nixsnap.rootless.machine import Machine


def check(machine: Machine, config: Config) -> Iterator[Finding]:
    """Look at a machine.

    Args:
        machine: Where, and for whom.
        config: The daemon's configuration, which says where the store lies.
    """
    yield from accounts.check(machine)
    yield from programs.check(machine)
    yield from kernel.check(machine, config.host_store)
    yield from session.check(machine)
    yield from store.check(machine, config)
