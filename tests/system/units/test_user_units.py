"""The user units, as `nixsnap-rootless install` writes them, in a lingering user's session on cgroups v2.

Real systemd for machine and user, D-Bus, rootlesskit, containerd, runc and Nix; runc has scopes of systemd.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Closure, Workspace, build_image, installed_program
from lab.containerd import lingering
from lab.login import HOME, Login
from lab.nix import nix_environment
from lab.processes import wait_until
from lab.requirements import need_containerd, need_rootless, need_systemd
from lab.systemd import REPOSITORY, SEES_INTERPRETER, Systemd

REFERENCE = "lab.invalid/app:1"
UNIT, CONTAINERD = "nix-snapshotter.service", "containerd.service"
DOOR = "nixsnap-store-door"
NIX_DAEMON = "/run/nix-daemon.sock"


@pytest.fixture(scope="module")
def user(workspace: Workspace) -> Iterator[Login]:
    """The user, with the programs and a multi-user Nix, in a systemd that has cgroups v2 alone."""
    need_systemd()
    need_rootless()
    containerd = need_containerd("2").directory
    with Systemd.boot(workspace.subdirectory(), unified=True) as machine:
        for program in ("nixsnap", "nix2container"):
            machine.install_program(installed_program(program))
        for program in ("containerd", "containerd-shim-runc-v2", "ctr"):
            machine.install_program(containerd / program)
        for name in ("rootless", "systemd"):
            shutil.copytree(REPOSITORY / "packaging" / name, machine.path("/opt/nixsnap") / name)
        machine.run("ln", "-s", "/opt/nixsnap/rootless/nixsnap-rootless", "/usr/local/bin")
        settings = {"NIX_DAEMON_SOCKET_PATH": NIX_DAEMON, **nix_environment()}
        set_ = (f"--setenv={name}={value}" for name, value in settings.items())
        machine.run("systemd-run", "--unit=nix-daemon", *set_, "nix-daemon")
        wait_until(machine.path(NIX_DAEMON).exists, what="start Nix's daemon")
        yield Login.open(machine, NIX_REMOTE=f"unix://{NIX_DAEMON}")


def is_active(user: Login, *units: str) -> bool:
    return all(user.show(unit, "ActiveState") == "active" for unit in units)


def ctr(user: Login, *arguments: str, check: bool = True) -> str:
    return user.run("nixsnap-rootless", "exec", "ctr", *arguments, check=check).stdout


def run_container(user: Login, name: str, *argv: str, flags: tuple[str, ...] = ("--rm",)) -> str:
    """Run a container in a scope of the user's systemd, without a share of the CPU, whose controller v1 has."""
    scope = ("--runc-systemd-cgroup", "--cgroup", f"user.slice:nixsnap:{name}", "--cpu-shares", "0")
    return ctr(user, "run", *flags, *scope, "--snapshotter", "nix", REFERENCE, name, *argv)


def runs(user: Login, name: str, closure: Closure) -> bool:
    """Whether a container of the Nix image runs, and sees its closure."""
    listed = run_container(user, name, f"{closure.top}/bin/ls", "/nix/store")
    return listed.split() == [path.removeprefix("/nix/store/") for path in closure.paths]


def first_processes(user: Login) -> list[str]:
    """The pids of containers' first processes."""
    found = user.machine.run("pgrep", "--full", "/bin/sleep 1000000$", check=False).stdout
    return found.split()


def test_installation(user):
    """Both units are written and enabled, containerd's too since nobody has made one; systemd finds no fault."""
    said = user.run("nixsnap-rootless", "install").stderr
    assert "start both with: systemctl --user start containerd nix-snapshotter" in said
    assert "enable-linger" not in said  # it is
    for unit in (CONTAINERD, UNIT):
        assert user.systemctl("is-enabled", unit).stdout == "enabled\n"
    files = [f"{HOME}/.config/systemd/user/{unit}" for unit in (CONTAINERD, UNIT)]
    verified = user.run("systemd-analyze", "--user", "verify", "--man=no", *files)
    assert "nixsnap" not in verified.stderr
    assert "containerd" not in verified.stderr


def test_a_container_of_a_nix_image(user, closure, workspace):
    """When systemctl returns both serve; the container is in a cgroup v2 of the user's own."""
    user.systemctl("start", CONTAINERD, UNIT)
    assert is_active(user, CONTAINERD, UNIT)
    archive = build_image(closure, workspace.subdirectory() / "app.tar", reference=REFERENCE)
    Path(shutil.copy(archive, user.machine.path(HOME))).chmod(0o644)
    assert user.run("nix2container", "load", f"{HOME}/app.tar").stdout == f"{REFERENCE}\n"
    assert runs(user, "one", closure)
    listed = run_container(user, "two", f"{closure.top}/bin/cat", "/proc/self/cgroup").splitlines()
    own = f"user.slice/user-{user.uid}.slice/user@{user.uid}.service"
    assert f"0::/{own}/user.slice/nixsnap-two.scope" in listed


def test_check_on_cgroups_v2(user):
    """It reads what systemd delegates: nothing, where v1 has kept the controllers to itself."""
    result = user.run("nixsnap", "rootless", "check", "--json", check=False)
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert [name for name, finding in findings.items() if finding["state"] == "missing"] == []
    service = f"user.slice/user-{user.uid}.slice/user@{user.uid}.service"
    delegated = user.machine.path(f"/sys/fs/cgroup/{service}/cgroup.controllers").read_text().split()
    lacking = sorted({"cpu", "cpuset", "io", "memory", "pids"} - set(delegated))
    said = findings["cgroups"]
    assert said["detail"].startswith("v2, ")
    assert (said["state"] == "ok") == (not lacking)
    assert all(name in said["detail"] for name in lacking or delegated)
    for name in ("lingering", "XDG_RUNTIME_DIR", "containerd-rootless", "proxy plugin", "store access"):
        assert findings[name]["state"] == "ok", findings[name]


def test_the_store_door(user):
    """The check knocks at the door that the machine's root opens, which systemd starts for it."""

    def door() -> dict[str, str | None]:
        result = user.run("nixsnap", "rootless", "check", "--json", check=False)
        return next(finding for finding in json.loads(result.stdout) if finding["name"] == "store door")

    machine = user.machine
    assert door()["detail"] == "/run/nixsnap-store-door/door.sock is not there"
    machine.install_units(f"{DOOR}.socket", f"{DOOR}.service")
    machine.drop_in(f"{DOOR}.service", SEES_INTERPRETER)
    machine.systemctl("enable", "--now", f"{DOOR}.socket")
    assert door()["state"] == "ok", machine.journal("--unit", DOOR)
    assert f"granted uid={user.uid}" in machine.journal("--unit", DOOR)
    machine.systemctl("disable", "--now", f"{DOOR}.socket", f"{DOOR}.service")


def test_a_restart_leaves_containers_alone(user, closure):
    """They see their store afterwards, and new ones start."""
    run_container(user, "long", f"{closure.top}/bin/sleep", "1000000", flags=("--detach",))
    before = user.show(UNIT, "MainPID")
    user.systemctl("restart", UNIT)
    assert user.show(UNIT, "MainPID") not in {"0", before}
    assert user.show(UNIT, "Result") == "success"
    ls = lingering(f"{closure.top}/bin/ls", "/nix/store")
    listed = ctr(user, "task", "exec", "--exec-id", "x", "long", *ls)
    assert len(listed.split()) == len(closure.paths)
    assert len(first_processes(user)) == 1
    assert runs(user, "three", closure)


def test_containerd_dies(user, closure):
    """Its container ends with it, though in a scope; both units start again, the service in the new namespaces."""
    before = {user.show(unit, "MainPID") for unit in (CONTAINERD, UNIT)}
    user.systemctl("kill", "--signal=KILL", "--kill-who=main", CONTAINERD)

    def are_anew() -> bool:
        pids = {user.show(unit, "MainPID") for unit in (CONTAINERD, UNIT)}
        return not pids & {*before, "0"} and is_active(user, CONTAINERD, UNIT)

    wait_until(are_anew, what="start again")
    wait_until(lambda: first_processes(user) == [], what="end the container")
    ctr(user, "container", "rm", "long")
    assert runs(user, "four", closure)


def test_stop(user, closure):
    """`PartOf`: the service goes with containerd, which leaves no container and no process."""
    run_container(user, "last", f"{closure.top}/bin/sleep", "1000000", flags=("--detach",))
    assert len(first_processes(user)) == 1
    user.systemctl("stop", CONTAINERD)
    wait_until(lambda: first_processes(user) == [], what="end the container")
    for unit in (CONTAINERD, UNIT):
        assert user.show(unit, "ActiveState") == "inactive"
        assert user.show(unit, "Result") == "success"
    left = user.machine.run("pgrep", "--euid", str(user.uid), "--full", "nixsnap|containerd", check=False)
    assert left.stdout == ""


def test_a_session_that_begins_anew(user, closure):
    """Lingering: what is enabled starts with the user's service manager, with nobody logged in."""
    user.machine.systemctl("restart", f"user@{user.uid}.service")
    wait_until(lambda: user.is_in() and is_active(user, CONTAINERD, UNIT), what="start with the session")
    ctr(user, "container", "rm", "last")
    assert runs(user, "five", closure)


def test_uninstallation(user):
    """Both units stop and go; configuration and images stay."""
    user.run("nixsnap-rootless", "uninstall")
    for unit in (CONTAINERD, UNIT):
        assert user.show(unit, "LoadState") == "not-found"
        assert user.show(unit, "ActiveState") == "inactive"
    assert user.machine.path(HOME / ".config/nix-snapshotter/config.toml").exists()
    assert user.machine.path(HOME / ".local/share/nix-snapshotter").is_dir()
