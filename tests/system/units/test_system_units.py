"""Our units under a systemd that runs: real containerd, runc and Nix, as services, configured as packaging/ has it."""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Closure, Workspace, build_image, installed_program
from lab.containerd import lingering
from lab.processes import wait_until
from lab.requirements import need_containerd, need_systemd
from lab.session import as_user
from lab.systemd import REPOSITORY, SEES_INTERPRETER, Systemd

REFERENCE = "lab.invalid/app:1"
UNIT, DOOR = "nix-snapshotter.service", "nixsnap-store-door"
ADDRESS = "/run/nix-snapshotter/nix-snapshotter.sock"
ASK = """
import sys
from pathlib import Path
from nixsnap.mounts import kernel
from nixsnap.storedoor import client

with client.ask(Path("/run/nixsnap-store-door/door.sock")) as tree:
    kernel.attach(tree, Path(sys.argv[1]))
shown = Path(sys.argv[1], sys.argv[2]).stat()
print(shown.st_uid, shown.st_gid)
"""
DOOR_ADDRESS = "/run/nixsnap-store-door/door.sock"
ROOT = "/var/lib/containerd/io.containerd.snapshotter.v1.nix"


@pytest.fixture(scope="module")
def machine(workspace: Workspace) -> Iterator[Systemd]:
    """One for all tests, with our units and containerd's."""
    need_systemd()
    containerd = need_containerd("1.7").directory
    with Systemd.boot(workspace.subdirectory()) as machine:
        for program in ("nixsnap", "nix2container"):
            machine.install_program(installed_program(program))
        for program in ("containerd", "containerd-shim-runc-v2", "ctr"):
            machine.install_program(containerd / program)
        machine.path("/etc/containerd").mkdir(exist_ok=True)
        shutil.copy(
            REPOSITORY / "packaging/containerd/config-1.x.toml", machine.path("/etc/containerd/config.toml")
        )
        settings = machine.path("/etc/systemd/system/containerd.service.d/lab.conf")
        settings.parent.mkdir()
        settings.write_text("[Service]\nExecStart=\nExecStart=/usr/local/bin/containerd\n")
        (unit,) = containerd.parents[1].rglob("containerd.service")
        machine.install_units(unit, UNIT, f"{DOOR}.socket", f"{DOOR}.service")
        # As the machine's store belongs to root alone: no build users (docs/testing.md).
        machine.path("/etc/nix").mkdir(exist_ok=True)
        machine.path("/etc/nix/nix.conf").write_text("sandbox = false\nsubstituters =\nbuild-users-group =\n")
        yield machine


@pytest.fixture(scope="module")
def container(machine: Systemd, workspace: Workspace, closure: Closure) -> Callable[..., str]:
    """A container of a Nix image that runs until the end; gives what runs commands in it."""
    machine.systemctl("enable", "--now", UNIT, "containerd.service")
    archive = build_image(closure, workspace.subdirectory() / "app.tar", reference=REFERENCE)
    shutil.copy(archive, machine.path("/root/app.tar"))
    machine.run("nix2container", "load", "/root/app.tar")
    sleep = f"{closure.top}/bin/sleep"
    machine.run("ctr", "run", "--detach", "--snapshotter", "nix", REFERENCE, "long", sleep, "1000000")
    numbers = iter(range(1000))

    def execute(*argv: str) -> str:
        return machine.run(
            "ctr", "task", "exec", "--exec-id", f"x{next(numbers)}", "long", *lingering(*argv)
        ).stdout

    return execute


def names(closure: Closure) -> list[str]:
    return sorted(Path(path).name for path in closure.paths)


def views(machine: Systemd) -> int:
    """How many rootfs views are mounted where containerd and process 1 are."""
    mounted = machine.path("/proc/1/mountinfo").read_text().splitlines()
    return sum(line.split()[4].startswith(f"{ROOT}/views/") for line in mounted)


def main_pid(machine: Systemd, unit: str = UNIT) -> int:
    return int(machine.show(unit, "MainPID"))


def namespace_of(machine: Systemd, pid: int, kind: str) -> str:
    return str(machine.path(f"/proc/{pid}/ns/{kind}").readlink())


def test_units_have_nothing_to_complain_of(machine):
    """systemd itself verifies them, with all they refer to."""
    result = machine.run("systemd-analyze", "verify", "--man=no", UNIT, f"{DOOR}.socket", f"{DOOR}.service")
    assert "nix" not in result.stderr, result.stderr


def test_a_container_of_a_nix_image(machine, closure, container):
    """By the default paths: `nix2container load`, `ctr run --snapshotter nix`, and the closure, exactly."""
    assert machine.show(UNIT, "ActiveState") == machine.show("containerd.service", "ActiveState") == "active"
    assert container(f"{closure.top}/bin/ls", "/nix/store").split() == names(closure)
    assert views(machine) == 1


@pytest.mark.usefixtures("container")
def test_active_means_that_it_serves(machine):
    """`Type=notify`: when systemctl returns, a client is answered; the socket is root's alone."""
    for _ in range(3):
        machine.systemctl("restart", UNIT)
        listed = machine.run("ctr", "snapshots", "--snapshotter", "nix", "info", "long").stdout
        assert '"Kind": "Active"' in listed
    assert stat.S_IMODE(machine.path("/run/nix-snapshotter").stat().st_mode) == 0o700
    assert stat.S_IMODE(machine.path(ADDRESS).stat().st_mode) == 0o600
    assert machine.show(UNIT, "StatusText") == ""


@pytest.mark.usefixtures("container")
def test_nothing_keeps_its_mounts_from_containerd(machine):
    """No setting of the unit gives it a mount namespace of its own, nor containerd's one to that."""
    spaces = {
        namespace_of(machine, pid, "mnt") for pid in (1, main_pid(machine), main_pid(machine, "containerd"))
    }
    assert len(spaces) == 1


def test_a_restart_leaves_containers_alone(machine, closure, container):
    """They see their store while the daemon is down and afterwards; new ones start."""
    before = main_pid(machine)
    machine.systemctl("stop", UNIT)
    assert machine.show(UNIT, "Result") == "success"
    assert machine.show(UNIT, "ExecMainStatus") == "0"
    assert not machine.path(ADDRESS).exists()
    assert machine.path("/run/nix-snapshotter").is_dir()
    assert views(machine) == 1
    assert container(f"{closure.top}/bin/ls", "/nix/store").split() == names(closure)
    machine.systemctl("start", UNIT)
    assert main_pid(machine) != before
    assert container(f"{closure.top}/bin/ls", "/nix/store").split() == names(closure)

    def runs() -> bool:  # containerd tries a proxy again after a moment
        one = (
            "ctr",
            "run",
            "--rm",
            "--snapshotter",
            "nix",
            REFERENCE,
            "one",
            f"{closure.top}/bin/ls",
            "/nix/store",
        )
        return machine.run(*one, check=False).stdout.split() == names(closure)

    wait_until(runs, what="run another container")
    wait_until(lambda: views(machine) == 1, what="take its view down")


def test_a_crash_is_made_good(machine, closure, container):
    """`Restart=on-failure`, and nothing of the daemon's is left in its cgroup."""
    before = main_pid(machine)
    machine.run("kill", "-KILL", str(before))
    wait_until(
        lambda: main_pid(machine) not in {0, before} and machine.show(UNIT, "ActiveState") == "active",
        what="start again",
    )
    assert machine.show(UNIT, "NRestarts") == "1"
    assert views(machine) == 1
    assert container(f"{closure.top}/bin/ls", "/nix/store").split() == names(closure)


@pytest.mark.usefixtures("container")
def test_removal(machine):
    """The container goes, and its view and snapshot with it."""
    machine.run("ctr", "task", "rm", "--force", "long")
    machine.run("ctr", "container", "rm", "long")
    machine.run("ctr", "image", "rm", "--sync", REFERENCE)
    wait_until(lambda: views(machine) == 0, what="take the view down")
    assert list(machine.path(f"{ROOT}/snapshots").iterdir()) == []


def ask(machine: Systemd, closure: Closure) -> str:
    """Have a plain user, root of a user namespace of their own, ask the door; give whose a store path is then."""
    program = (sys.executable, "-c", ASK, "/mnt", Path(closure.top).name)
    return machine.run(*as_user(), "unshare", "--user", "--map-root-user", "--mount", *program).stdout


def test_store_door(machine, closure):
    """systemd listens; the door starts for who asks, under all that the unit forbids, and ends for want of work."""
    start = "ExecStart=\nExecStart=nixsnap store-door --idle-seconds 1\n"
    machine.drop_in(f"{DOOR}.service", f"{start}{SEES_INTERPRETER}")
    machine.systemctl("enable", "--now", f"{DOOR}.socket")
    assert stat.S_IMODE(machine.path(DOOR_ADDRESS).stat().st_mode) == 0o666
    for number in (1, 2):
        assert machine.show(f"{DOOR}.service", "ActiveState") == "inactive"
        assert ask(machine, closure) == "0 0\n"
        assert machine.journal("--unit", DOOR).count("granted uid=") == number
        wait_until(lambda: machine.show(f"{DOOR}.service", "ActiveState") == "inactive", what="end")
        assert machine.show(f"{DOOR}.service", "Result") == "success"
        assert machine.show(f"{DOOR}.socket", "ActiveState") == "active"
