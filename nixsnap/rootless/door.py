"""The store door: whether it is there, and opens for the user."""

from __future__ import annotations

import grp
import json
import os
import sys
from pathlib import Path
from typing import Final

from nixsnap.config import Config
from nixsnap.rootless.findings import Finding, note, ok
from nixsnap.rootless.machine import Machine

_NAME: Final = "store door"
_OPEN: Final = (
    "as root: cp packaging/systemd/nixsnap-store-door.* /etc/systemd/system/"
    " && systemctl enable --now nixsnap-store-door.socket"
)


def check(machine: Machine, config: Config) -> Finding:
    """Look at the door that a configuration names, as the daemon will; it is needed by nobody, and good for many."""
    store = machine.path(config.host_store)
    if store.exists() and store.stat().st_uid == machine.uid:
        return ok(_NAME, f"not needed: {config.host_store} is yours")
    door = config.store_door
    if door is None:
        return note(
            _NAME, "store_door is empty, so none is asked", "take store_door out of the configuration"
        )
    if not machine.path(door).exists():
        return note(_NAME, f"{door} is not there", _OPEN)
    if not machine.may(door, os.W_OK):
        return note(_NAME, f"{machine.user} may not connect to {door}", _let_in(machine, door))
    reason = _knock(machine, door, config.host_store)
    if reason is not None:
        return note(_NAME, reason, "as root: journalctl --unit nixsnap-store-door; see docs/security.md")
    return ok(_NAME, f"{door} opens for {machine.user}: containers see the store as root's")


def _knock(machine: Machine, door: Path, store: Path) -> str | None:
    """Why the door stays closed: it opens to user namespaces alone, so it is asked from one."""
    unshare = machine.program("unshare")
    if unshare is None:
        return "it cannot be tried without unshare on PATH"
    # -P: not the current directory's modules, whoever wrote those.
    own = (sys.executable, "-P", "-m", "nixsnap.rootless.knock", str(door), str(store))
    said = machine.ask(unshare, "--user", "--map-root-user", "--mount", *own)
    if not said:
        return "it cannot be tried, for want of a user namespace"
    reason = json.loads(said)
    return None if reason is None else str(reason)


def _let_in(machine: Machine, door: Path) -> str:
    """How the user gets in where a drop-in of the socket unit leaves it to a group."""
    gid = machine.path(door).stat().st_gid
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return f"as root: usermod --append --groups {group} {machine.user}; then log in anew"
