"""The user's session: where sockets go, whether it outlives a logout, and cgroups."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from nixsnap.places import user_places
from nixsnap.rootless.findings import Finding, missing, note, ok
from nixsnap.rootless.machine import Machine

_WANTED_CONTROLLERS: Final = ("cpu", "cpuset", "io", "memory", "pids")
_DELEGATE: Final = (
    "as root, into /etc/systemd/system/user@.service.d/delegate.conf: [Service] and, on a line of its own,"
    " Delegate=cpu cpuset io memory pids; then systemctl daemon-reload, and log in anew"
)


def check(machine: Machine) -> Iterator[Finding]:
    """Look at the session's directory, lingering, cgroups, and at what runs."""
    yield _runtime_directory(machine)
    yield _lingering(machine)
    yield _cgroups(machine)
    yield _containerd(machine)
    yield _plugin(machine)


def _runtime_directory(machine: Machine) -> Finding:
    name = "XDG_RUNTIME_DIR"
    remedy = f"log in by login or ssh, not by su or sudo; or as root: loginctl enable-linger {machine.user}"
    value = machine.environment.get(name, "")
    if not value.startswith("/"):
        return missing(name, f"{name} is not set", f"{remedy}; then export {name}=/run/user/{machine.uid}")
    try:
        status = machine.path(value).stat()
    except OSError as error:
        return missing(name, f"{value}: {error.strerror}", remedy)
    if not stat.S_ISDIR(status.st_mode) or not machine.may(value, os.W_OK | os.X_OK):
        return missing(name, f"{value} is no directory that {machine.user} may write in", remedy)
    if status.st_mode & 0o077:
        return note(name, f"{value} is open to others", f"chmod 0700 {value}")
    return ok(name, value)


def _lingering(machine: Machine) -> Finding:
    if not machine.path("/run/systemd/system").is_dir():
        return ok("lingering", "no systemd here that would end what runs at a logout")
    if machine.path(f"/var/lib/systemd/linger/{machine.user}").exists():
        return ok("lingering", "what runs goes on after a logout, and starts with the machine")
    return note(
        "lingering", "what runs ends when the user logs out", f"loginctl enable-linger {machine.user}"
    )


def _cgroups(machine: Machine) -> Finding:
    if not machine.path("/sys/fs/cgroup/cgroup.controllers").exists():
        return _cgroups_v1(machine)
    slice_ = f"/sys/fs/cgroup/user.slice/user-{machine.uid}.slice/user@{machine.uid}.service"
    if not machine.path(slice_).is_dir():
        return note(
            "cgroups",
            f"no cgroup is delegated to {machine.user}: {slice_} is not there",
            "log in under systemd; without, run containers with --cgroup-manager=none, which have no limits then",
        )
    delegated = machine.text(f"{slice_}/cgroup.controllers").split()
    lacking = [controller for controller in _WANTED_CONTROLLERS if controller not in delegated]
    if lacking:
        return note("cgroups", f"v2, without {', '.join(lacking)}: no limits of these kinds", _DELEGATE)
    return ok("cgroups", f"v2, delegated: {' '.join(delegated)}")


def _cgroups_v1(machine: Machine) -> Finding:
    top = machine.path("/sys/fs/cgroup")
    hierarchies = sorted(
        entry.name for entry in (top.iterdir() if top.is_dir() else ()) if (entry / "cgroup.procs").exists()
    )
    closed = [name for name in hierarchies if not machine.may(f"/sys/fs/cgroup/{name}/default", os.W_OK)]
    if hierarchies and not closed:
        return ok("cgroups", "v1, a directory in each hierarchy for the containerd namespace `default`")
    return note(
        "cgroups",
        "v1, of which nothing is delegated to plain users: no limits",
        "boot with systemd.unified_cgroup_hierarchy=1; or, for each hierarchy, as root:"
        f" mkdir /sys/fs/cgroup/HIERARCHY/default && chown -R {machine.user} /sys/fs/cgroup/HIERARCHY/default"
        " (`default` is containerd's namespace)",
    )


def _containerd(machine: Machine) -> Finding:
    name = "containerd-rootless"
    runtime = machine.environment.get("XDG_RUNTIME_DIR", f"/run/user/{machine.uid}")
    state = machine.environment.get(
        "CONTAINERD_ROOTLESS_ROOTLESSKIT_STATE_DIR", f"{runtime}/containerd-rootless"
    )
    pid = machine.text(f"{state}/child_pid").strip()
    if pid.isdecimal() and machine.path(f"/proc/{pid}").exists():
        return ok(name, f"it runs; its namespaces are those of process {pid}")
    return note(
        name,
        f"it does not run: {state}/child_pid names no process",
        "packaging/rootless/nixsnap-rootless start, or systemctl --user start containerd",
    )


def _plugin(machine: Machine) -> Finding:
    config = user_places(machine.environment).config.parents[1] / "containerd/config.toml"
    if "proxy_plugins" in machine.text(config) and "nix" in machine.text(config):
        return ok("proxy plugin", f"{config} has it")
    return note(
        "proxy plugin",
        f"containerd does not know the snapshotter nix: {config}",
        "packaging/rootless/nixsnap-rootless install",
    )
