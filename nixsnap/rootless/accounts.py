"""The user's ids: ranges of subordinate ones, and the programs that put them into a user namespace."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nixsnap.rootless.findings import Finding, missing, note, ok
from nixsnap.rootless.machine import Machine

_WANTED_IDS: Final = 65536  # what images use: nobody is 65534
_CAPABILITIES: Final = {"newuidmap": ("cap_setuid", 7), "newgidmap": ("cap_setgid", 6)}  # linux/capability.h


def check(machine: Machine) -> Iterator[Finding]:
    """Look at ranges and programs."""
    for table, flag in (("subuid", "--add-subuids"), ("subgid", "--add-subgids")):
        yield _ranges(machine, table, flag)
    for name in _CAPABILITIES:
        yield _mapper(machine, name)


def _ranges(machine: Machine, table: str, flag: str) -> Finding:
    if source := re.search(r"^subid:\s*(\S.*)$", machine.text("/etc/nsswitch.conf"), re.MULTILINE):
        return ok(table, f"ranges come from {source[1].strip()!r} (/etc/nsswitch.conf)")
    count = sum(_counts(machine, machine.text(f"/etc/{table}")))
    remedy = f"as root: usermod {flag} 100000-165535 {machine.user}   (a range that no line of /etc/{table} has yet)"
    if count == 0:
        return missing(table, f"/etc/{table} has no range for {machine.user}", remedy)
    if count < _WANTED_IDS:
        return note(
            table, f"{machine.user} has {count} ids in /etc/{table}, and images use {_WANTED_IDS}", remedy
        )
    return ok(table, f"{machine.user} has {count} ids in /etc/{table}")


def _counts(machine: Machine, text: str) -> Iterator[int]:
    for line in text.splitlines():
        match line.split(":"):
            case [owner, first, count] if owner in {machine.user, str(machine.uid)} and first.isdecimal():
                yield int(count) if count.strip().isdecimal() else 0


def _mapper(machine: Machine, name: str) -> Finding:
    capability, number = _CAPABILITIES[name]
    program = machine.program(name)
    if program is None:
        return missing(name, f"{name} is not on PATH", "install the package uidmap (Debian) or shadow-utils")
    status = program.stat()
    if status.st_uid == 0 and status.st_mode & stat.S_ISUID:
        return ok(name, f"{program} is setuid root")
    if _file_capabilities(program) >> number & 1:
        return ok(name, f"{program} has {capability}")
    return missing(
        name,
        f"{program} is neither setuid root nor has {capability}",
        f"as root: chmod u+s {program}, or setcap {capability}=ep {program}; a nosuid mount lets neither count",
    )


def _file_capabilities(program: Path) -> int:
    """The permitted capabilities that a program file has, as a mask: struct vfs_cap_data of linux/capability.h."""
    try:
        data = os.getxattr(program, "security.capability")
        _, low, _, high, _ = struct.unpack_from("<5I", data)
    except (OSError, struct.error):
        return 0
    return int(low | high << 32)
