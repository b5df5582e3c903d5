"""`nixsnap rootless check`: each finding as it should be and as it should not, on a machine made of a few files."""

from __future__ import annotations

import grp
import json
import os
import socket
import struct
from pathlib import Path

import attrs
import pytest

from nixsnap.config import Config
from nixsnap.rootless import accounts, kernel, programs, session, store
from nixsnap.rootless.findings import Finding, State
from nixsnap.rootless.machine import Machine

OK, NOTE, MISSING = State.OK, State.NOTE, State.MISSING
STORE = Path("/nix/store")
ME = os.geteuid()


@attrs.frozen
class Fake:
    """A machine below a directory, with one program directory on PATH."""

    root: Path
    environment: dict[str, str] = attrs.field(factory=lambda: {"PATH": "/bin", "HOME": "/home/u"})

    def file(self, name: str, text: str = "", mode: int = 0o644) -> Path:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def directory(self, name: str, mode: int = 0o755) -> Path:
        path = self.root / name.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        return path

    def program(self, name: str, says: str = "") -> Path:
        return self.file(f"/bin/{name}", f"#!/bin/sh\necho '{says}'\n", 0o755)

    @property
    def machine(self) -> Machine:
        return Machine(root=self.root, environment=self.environment, uid=1000, user="u")


@attrs.frozen(kw_only=True)
class ClosedMachine(Machine):
    """A machine as a plain user finds it, whoever runs the tests: root may use any file."""

    forbidden: str

    def may(self, name: str | Path, mode: int) -> bool:
        return str(name) != self.forbidden and super().may(name, mode)


def closed(fake: Fake, forbidden: str) -> Machine:
    """The machine, one file or directory of which the user may not use."""
    return ClosedMachine(**attrs.asdict(fake.machine), forbidden=forbidden)


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        ("u:100000:65536\n", OK, "u has 65536 ids"),
        ("1000:100000:65536\n", OK, "65536"),
        ("u:100000:32768\nu:200000:32768\n", OK, "65536"),
        ("u:100000:1000\n", NOTE, "u has 1000 ids in /etc/subuid, and images use 65536"),
        ("other:100000:65536\n", MISSING, "/etc/subuid has no range for u"),
        ("u:100000\nu:x:65536\nu:1:many\n", MISSING, "no range"),
        ("", MISSING, "no range"),
    ],
)
def test_subuid(fake, text, state, words):
    """Ranges are counted by the user's name or number; lines that are none do not count."""
    fake.file("/etc/subuid", text)
    finding = by_name(accounts.check(fake.machine))["subuid"]
    assert finding.state is state
    assert words in finding.detail
    assert (finding.remedy is None) == (state is OK)
    if state is not OK:
        assert "usermod --add-subuids" in finding.remedy


def test_subgid(fake):
    """The other table is looked at by itself."""
    fake.file("/etc/subgid", "u:100000:65536\n")
    found = by_name(accounts.check(fake.machine))
    assert found["subgid"].state is OK
    assert found["subuid"].state is MISSING


def test_ranges_from_elsewhere(fake):
    """Where a directory service has the ranges the files say nothing."""
    fake.file("/etc/nsswitch.conf", "passwd: files\nsubid: sss\n")
    assert by_name(accounts.check(fake.machine))["subuid"].state is OK


def test_mappers_missing(fake):
    """Without newuidmap and newgidmap no range can be used."""
    found = by_name(accounts.check(fake.machine))
    assert found["newuidmap"].state is found["newgidmap"].state is MISSING
    assert "uidmap" in found["newuidmap"].remedy


@pytest.mark.skipif(ME != 0, reason="needs root: a program that is setuid root")
def test_mappers_setuid(fake):
    """A setuid program does; one that lost the bit, as in many container images, does not."""
    program = fake.program("newuidmap")
    program.chmod(0o4755)
    assert by_name(accounts.check(fake.machine))["newuidmap"].state is OK
    program.chmod(0o755)
    finding = by_name(accounts.check(fake.machine))["newuidmap"]
    assert finding.state is MISSING
    assert "chmod u+s" in finding.remedy


@pytest.mark.skipif(ME != 0, reason="needs root: a program with capabilities")
def test_mappers_capabilities(fake):
    """The right capability does (Fedora has it so); another does not."""
    program = fake.program("newgidmap")

    def permit(number: int) -> None:
        value = struct.pack("<5I", 0x02000001, 1 << number, 0, 0, 0)  # VFS_CAP_REVISION_2, effective
        os.setxattr(program, "security.capability", value)

    permit(6)
    assert by_name(accounts.check(fake.machine))["newgidmap"].state is OK
    permit(7)
    assert by_name(accounts.check(fake.machine))["newgidmap"].state is MISSING


@pytest.mark.parametrize(
    ("says", "state", "words"),
    [
        ("rootlesskit version 1.1.0", OK, "does not know --detach-netns"),
        ("rootlesskit version 2.0.2", OK, "knows --detach-netns"),
        ("rootlesskit version 0.14.2", NOTE, "0.14"),
        ("nonsense", MISSING, "does not say a version"),
    ],
)
def test_rootlesskit(fake, says, state, words):
    """Both series that are in use, older ones, and what is none."""
    fake.program("rootlesskit", says)
    finding = by_name(programs.check(fake.machine))["rootlesskit"]
    assert finding.state is state
    assert words in finding.detail


def test_broken_rootlesskit(fake):
    """A program of another machine cannot be run."""
    fake.file("/bin/rootlesskit", "\x7fELF", 0o755)
    assert by_name(programs.check(fake.machine))["rootlesskit"].state is MISSING


def test_programs_missing(fake):
    """On a bare machine every program is missing, each with a way to get it."""
    for finding in programs.check(fake.machine):
        assert finding.state is MISSING
        assert finding.remedy


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("slirp4netns", "network"),
        ("pasta", "network"),
        ("crun", "runtime"),
        ("runc", "runtime"),
        ("containerd", "containerd"),
        ("nsenter", "nsenter"),
    ],
)
def test_programs(fake, program, name):
    """One of each kind is enough."""
    path = fake.program(program)
    finding = by_name(programs.check(fake.machine))[name]
    assert finding.state is OK
    assert finding.detail == str(path)


def test_tun(fake):
    """The device has to be there and open to the user."""
    assert "modprobe tun" in by_name(programs.check(fake.machine))["tun"].remedy
    fake.file("/dev/net/tun", mode=0o666)
    assert by_name(programs.check(fake.machine))["tun"].state is OK


def test_tun_closed(fake):
    """A device that only root may open is none."""
    fake.file("/dev/net/tun", mode=0o600)
    finding = by_name(programs.check(closed(fake, "/dev/net/tun")))["tun"]
    assert finding.state is MISSING
    assert "chmod 0666" in finding.remedy


@pytest.mark.parametrize(
    ("switch", "value", "words"),
    [
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces="),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile"),
    ],
)
def test_user_namespaces_switched_off(fake, switch, value, words):
    """The switch that forbids them is named with the way to turn it."""
    fake.file(switch, value + "\n")
    (finding,) = kernel.check(fake.machine, STORE)
    assert finding.state is MISSING
    assert switch in finding.detail
    assert words in finding.remedy


def test_user_namespaces_forbidden(fake):
    """Where no switch says so, trying tells."""
    fake.file("/bin/unshare", "#!/bin/sh\nexit 1\n", 0o755)
    (finding,) = kernel.check(fake.machine, STORE)
    assert finding.state is MISSING
    assert "unshare" in finding.detail
    (fake.root / "bin/unshare").unlink()
    (finding,) = kernel.check(fake.machine, STORE)
    assert finding.state is MISSING


def test_overlay_refused(fake):
    """A kernel without overlayfs in user namespaces: fuse-overlayfs helps where its device is open, or nothing does."""
    fake.program("unshare", '{"overlay": "mount: Operation not permitted"}')
    finding = by_name(kernel.check(fake.machine, STORE))["overlay"]
    assert finding.state is MISSING
    assert "fuse-overlayfs" in finding.remedy
    fake.program("fuse-overlayfs")
    assert by_name(kernel.check(fake.machine, STORE))["overlay"].state is MISSING
    fake.file("/dev/fuse", mode=0o666)
    finding = by_name(kernel.check(fake.machine, STORE))["overlay"]
    assert finding.state is NOTE
    assert "mount: Operation not permitted" in finding.detail


@pytest.mark.parametrize(
    ("views", "state", "words"),
    [
        ({"view overlay": "no", "view data-only": None, "view bind": None}, OK, "data-only"),
        (
            {"view overlay": "no", "view data-only": "EINVAL", "view bind": None},
            NOTE,
            "bind; the better kinds",
        ),
        ({"view data-only": "EINVAL", "view bind": "EPERM"}, MISSING, "data-only: EINVAL; bind: EPERM"),
    ],
)
def test_views(fake, views, state, words):
    """The best kind of rootfs view there, a worse one with the reason, or none."""
    fake.program("unshare", json.dumps({"overlay": None, **views}))
    findings = by_name(kernel.check(fake.machine, STORE))
    assert findings["overlay"].state is findings["user namespaces"].state is OK
    assert findings["store view"].state is state
    assert words in findings["store view"].detail


def test_runtime_directory(fake):
    """It has to be set, there, a directory and private."""

    def look() -> Finding:
        return by_name(session.check(fake.machine))["XDG_RUNTIME_DIR"]

    assert look().state is MISSING
    assert "export XDG_RUNTIME_DIR=/run/user/1000" in look().remedy
    fake.environment["XDG_RUNTIME_DIR"] = "/run/user/1000"
    assert "No such file" in look().detail
    fake.file("/run/user/1000")
    assert look().state is MISSING
    (fake.root / "run/user/1000").unlink()
    fake.directory("/run/user/1000", 0o755)
    assert look().state is NOTE
    fake.directory("/run/user/1000", 0o700)
    assert look().state is OK


def test_lingering(fake):
    """It matters under systemd alone."""

    def look() -> Finding:
        return by_name(session.check(fake.machine))["lingering"]

    assert look().state is OK
    fake.directory("/run/systemd/system")
    assert (look().state, look().remedy) == (NOTE, "loginctl enable-linger u")
    fake.file("/var/lib/systemd/linger/u")
    assert look().state is OK


SLICE = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service"


def test_cgroups_v2(fake):
    """Which controllers the user's service manager has to give."""

    def look() -> Finding:
        return by_name(session.check(fake.machine))["cgroups"]

    fake.file("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")
    assert look().state is NOTE
    assert "--cgroup-manager=none" in look().remedy
    fake.file(f"{SLICE}/cgroup.controllers", "memory pids\n")
    assert "without cpu, cpuset, io:" in look().detail
    assert "Delegate=" in look().remedy
    fake.file(f"{SLICE}/cgroup.controllers", "cpuset cpu io memory pids\n")
    assert look().state is OK


def test_cgroups_v1(fake):
    """Of which root has to give directories by hand."""

    def look() -> Finding:
        return by_name(session.check(fake.machine))["cgroups"]

    assert look().state is NOTE
    for hierarchy in ("cpu", "memory"):
        fake.file(f"/sys/fs/cgroup/{hierarchy}/cgroup.procs")
    assert look().state is NOTE
    assert "chown -R u" in look().remedy
    fake.directory("/sys/fs/cgroup/cpu/default")
    assert look().state is NOTE
    fake.directory("/sys/fs/cgroup/memory/default")
    assert look().state is OK


def test_containerd_runs(fake):
    """rootlesskit's state directory names a process that is alive."""

    def look() -> Finding:
        return by_name(session.check(fake.machine))["containerd-rootless"]

    assert look().state is NOTE
    fake.file("/run/user/1000/containerd-rootless/child_pid", "4711")
    assert look().state is NOTE
    fake.directory("/proc/4711")
    assert look().state is OK
    fake.environment["CONTAINERD_ROOTLESS_ROOTLESSKIT_STATE_DIR"] = "/elsewhere"
    assert look().state is NOTE


def test_proxy_plugin(fake):
    """containerd's configuration has to know of the snapshotter."""

    def look() -> Finding:
        return by_name(session.check(fake.machine))["proxy plugin"]

    assert look().state is NOTE
    assert "nixsnap-rootless install" in look().remedy
    fake.file("/home/u/.config/containerd/config.toml", '[proxy_plugins.nix]\n  type = "snapshot"\n')
    assert look().state is OK


def of_store(fake: Fake, **settings: object) -> dict[str, Finding]:
    return by_name(store.check(fake.machine, Config(**settings)))


def test_nix(fake):
    """nix-store has to be on PATH."""
    assert of_store(fake)["nix"].state is MISSING
    fake.program("nix-store")
    assert of_store(fake)["nix"].state is OK


def test_store(fake):
    """The store has to be there; whose it is decides who owns it in containers."""
    found = of_store(fake)
    assert (found["store"].state, found["store ownership"].state) == (MISSING, NOTE)
    fake.directory("/nix/store")
    found = of_store(fake)
    assert (found["store"].state, found["store ownership"].state) == (OK, NOTE)
    mine = attrs.evolve(fake.machine, uid=ME)
    assert by_name(store.check(mine, Config()))["store ownership"].state is OK


def of_door(fake: Fake, machine: Machine | None = None, **settings: object) -> Finding:
    return by_name(store.check(machine or fake.machine, Config(**settings)))["store door"]


def test_store_door_that_is_not_there(fake):
    """It is named, with how the machine's root makes it; who owns the store needs none, and who wants none is told."""
    fake.directory("/nix/store")
    finding = of_door(fake)
    assert (finding.state, finding.detail) == (NOTE, "/run/nixsnap-store-door/door.sock is not there")
    assert "systemctl enable --now nixsnap-store-door.socket" in finding.remedy
    assert of_door(fake, store_door="").detail == "store_door is empty, so none is asked"
    assert of_door(fake, attrs.evolve(fake.machine, uid=ME)).state is OK


def test_store_door_that_is_for_others(fake):
    """The group that may connect is named, by its number if it has no name."""
    fake.directory("/nix/store")
    door = fake.file("/run/door.sock")
    finding = of_door(fake, closed(fake, "/run/door.sock"), store_door="/run/door.sock")
    assert (finding.state, finding.detail) == (NOTE, "u may not connect to /run/door.sock")
    group = grp.getgrgid(door.stat().st_gid).gr_name
    assert finding.remedy == f"as root: usermod --append --groups {group} u; then log in anew"


def test_store_door_of_a_group_without_a_name(fake, monkeypatch):
    """Its number stands for it."""
    fake.directory("/nix/store")
    door = fake.file("/run/door.sock")
    monkeypatch.setattr(grp, "getgrgid", {}.__getitem__)
    finding = of_door(fake, closed(fake, "/run/door.sock"), store_door="/run/door.sock")
    assert f"--groups {door.stat().st_gid} u" in finding.remedy


@pytest.mark.parametrize(
    ("program", "state", "detail"),
    [
        ("echo null", OK, "/run/door.sock opens for u: containers see the store as root's"),
        ("echo '\"the store door refused: no\"'", NOTE, "the store door refused: no"),
        ("exit 1", NOTE, "it cannot be tried, for want of a user namespace"),
        (None, NOTE, "it cannot be tried without unshare on PATH"),
    ],
)
def test_store_door_is_asked(fake, program, state, detail):
    """From a user namespace, as the daemon does; what it says is the finding."""
    fake.directory("/nix/store")
    fake.file("/run/door.sock")
    if program is not None:
        fake.file("/bin/unshare", f"#!/bin/sh\n{program}\n", 0o755)
    finding = of_door(fake, store_door="/run/door.sock")
    assert (finding.state, finding.detail) == (state, detail)


def test_store_closed(fake):
    """A store that the user may not read is none."""
    fake.directory("/nix/store", 0o700)
    findings = by_name(store.check(closed(fake, "/nix/store"), Config()))
    assert findings["store"].state is MISSING
    assert "chmod a+rx /nix/store" in findings["store"].remedy


def test_store_access(fake, monkeypatch):
    """A daemon that answers, a store of one's own, or a builder; a socket without a daemon is nothing."""
    finding = of_store(fake)["store access"]
    assert finding.state is MISSING
    assert 'store_root = "/home/u/.local/share/nix/root"' in finding.remedy
    monkeypatch.chdir(fake.root)  # socket paths are short
    address = fake.directory("/nix/var/nix/daemon-socket") / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address.relative_to(fake.root)))
        near = attrs.evolve(fake, root=Path())
        assert "Connection refused" in of_store(near)["store access"].detail
        server.listen()
        assert of_store(near)["store access"].state is OK
    address.unlink()
    assert of_store(fake, external_builder="/bin/builder")["store access"].state is OK
    fake.directory("/nix/var/nix/db")
    assert "single-user" in of_store(fake)["store access"].detail


def test_store_access_elsewhere(fake):
    """A store in the user's home, and a remote that Nix itself is told of."""
    assert of_store(fake, store_root="/home/u/nix")["store access"].state is MISSING
    fake.directory("/home/u/nix")
    assert of_store(fake, store_root="/home/u/nix")["store access"].state is OK
    fake.environment["NIX_REMOTE"] = "ssh://elsewhere"
    assert of_store(fake)["store access"].state is OK
    fake.environment["NIX_REMOTE"] = "unix:///no/socket"
    assert "/no/socket" in of_store(fake)["store access"].detail
