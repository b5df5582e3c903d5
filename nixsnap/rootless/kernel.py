"""The kernel: user namespaces for plain users, and what may be mounted in them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nixsnap.config import StoreView
from nixsnap.rootless.findings import Finding, missing, note, ok
from nixsnap.rootless.machine import Machine
from nixsnap.rootless.probe import VIEW

_APPARMOR: Final = (
    "give rootlesskit an AppArmor profile with the line `userns,` (docs/rootless.md has one),"
    " or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
)
_SWITCHES: Final = {
    "/proc/sys/user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=28633"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", _APPARMOR),
}


def check(machine: Machine, store: Path) -> Iterator[Finding]:
    """Look at the switches, and try the rest in a namespace of the user's."""
    switched_off = list(_switched_off(machine))
    if switched_off:
        yield from switched_off
        return
    probed = _probe(machine, store)
    if probed is None:
        yield missing(
            "user namespaces",
            f"{machine.user} cannot make one with mounts of its own (unshare --user --map-root-user --mount)",
            "a security module or a container's seccomp filter forbids it: allow unshare(2) and mount(2)",
        )
        return
    yield ok("user namespaces", f"{machine.user} can make one")
    yield _overlay(machine, probed)
    yield _view(probed)


def _switched_off(machine: Machine) -> Iterator[Finding]:
    for switch, (off, remedy) in _SWITCHES.items():
        if machine.text(switch).strip() == off:
            yield missing("user namespaces", f"{switch} is {off}", f"as root: {remedy}")


def _probe(machine: Machine, store: Path) -> dict[str, str | None] | None:
    unshare = machine.program("unshare")
    if unshare is None:
        return None
    with tempfile.TemporaryDirectory(prefix="nixsnap-check.", dir=_scratch(machine)) as directory:
        # -P: not the current directory's modules, whoever wrote those.
        own = (sys.executable, "-P", "-m", "nixsnap.rootless.probe", directory, str(store))
        said = machine.ask(unshare, "--user", "--map-root-user", "--mount", *own)
    return json.loads(said) if said else None


def _scratch(machine: Machine) -> Path | None:
    """The home's file system is the one that will count."""
    home = machine.path(machine.environment.get("HOME", "/nonexistent"))
    return home if os.access(home, os.W_OK | os.X_OK) else None


def _overlay(machine: Machine, probed: dict[str, str | None]) -> Finding:
    """What ordinary images are mounted with."""
    if (lacking := probed["overlay"]) is None:
        return ok("overlay", "overlayfs works in a user namespace, with user.* attributes")
    fuse = machine.program("fuse-overlayfs")
    remedy = "Linux 5.11 or newer, and a home on ext4, xfs or btrfs (tmpfs from Linux 6.6)"
    if fuse is not None and machine.may("/dev/fuse", os.R_OK | os.W_OK):
        return note(
            "overlay", f"the kernel refuses overlayfs ({lacking}); {fuse} takes its place, slowly", remedy
        )
    return missing(
        "overlay",
        f"the kernel refuses overlayfs: {lacking}",
        f"{remedy}; or install fuse-overlayfs, with /dev/fuse open to {machine.user}",
    )


def _view(probed: dict[str, str | None]) -> Finding:
    """What Nix images are shown with: the first kind that works, which the daemon will take."""
    views = {name.removeprefix(VIEW): lacking for name, lacking in probed.items() if name.startswith(VIEW)}
    works = next((kind for kind, lacking in views.items() if lacking is None), None)
    reasons = "; ".join(f"{kind}: {lacking}" for kind, lacking in views.items() if lacking is not None)
    if works is None:
        return missing("store view", f"no kind of rootfs view works: {reasons}", "see `overlay` above")
    if works != StoreView.DATA_ONLY.value:
        return note(
            "store view",
            f"{works}; the better kinds do not work: {reasons}",
            "Linux 6.16, with a home on ext4, xfs or btrfs, has one mount a container whatever its closure",
        )
    return ok("store view", f"{works}: one mount a container, whatever its closure")
