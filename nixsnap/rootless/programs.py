"""The programs that rootless containers are made with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from nixsnap.rootless.findings import Finding, missing, note, ok
from nixsnap.rootless.machine import Machine

_NETWORKS: Final = ("slirp4netns", "pasta", "vpnkit", "lxc-user-nic")
_RUNTIMES: Final = ("runc", "crun")
_VERSION: Final = re.compile(r"version (\d+)\.(\d+)")
_TUN: Final = "/dev/net/tun"


def check(machine: Machine) -> Iterator[Finding]:
    """Look at programs and the device they need."""
    yield _rootlesskit(machine)
    yield _one_of(machine, "network", _NETWORKS, "install slirp4netns, or pasta (package passt)")
    yield _tun(machine)
    yield _one_of(machine, "containerd", ("containerd",), "install containerd, 1.6 or newer")
    yield _one_of(machine, "runtime", _RUNTIMES, "install runc or crun")
    yield _one_of(machine, "nsenter", ("nsenter",), "install util-linux")


def _rootlesskit(machine: Machine) -> Finding:
    program = machine.program("rootlesskit")
    install = "install rootlesskit, 1.1 or newer (Debian: rootlesskit)"
    if program is None:
        return missing("rootlesskit", "rootlesskit is not on PATH", install)
    version = _VERSION.search(machine.ask(program, "--version"))
    if version is None:
        return missing("rootlesskit", f"{program} --version does not say a version", install)
    if (int(version[1]), int(version[2])) < (1, 1):
        return note(
            "rootlesskit", f"{program} is {version[1]}.{version[2]}, which nobody tries any more", install
        )
    detach = "knows" if int(version[1]) > 1 else "does not know"
    return ok("rootlesskit", f"{program} {version[1]}.{version[2]} ({detach} --detach-netns)")


def _one_of(machine: Machine, name: str, programs: tuple[str, ...], remedy: str) -> Finding:
    found = next(filter(None, map(machine.program, programs)), None)
    if found is None:
        return missing(name, f"not on PATH: {' or '.join(programs)}", remedy)
    return ok(name, str(found))


def _tun(machine: Machine) -> Finding:
    if not machine.path(_TUN).exists():
        return missing(
            "tun", f"{_TUN} is not there", "as root: modprobe tun (and add it to /etc/modules-load.d)"
        )
    if not machine.may(_TUN, os.R_OK | os.W_OK):
        return missing(
            "tun", f"{machine.user} may not open {_TUN}", f"as root: chmod 0666 {_TUN}, as udev has it"
        )
    return ok("tun", f"{_TUN} can be opened")
