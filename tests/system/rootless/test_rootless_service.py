"""`packaging/rootless/nixsnap-rootless` as a plain user runs it, on real rootlesskit, containerd and runc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest
from lab import Closure, build_image, installed_program, mounts_below, rootlesskit_variants, run
from lab.containerd import lingering
from lab.processes import Process, processes_naming, wait_until
from lab.requirements import need_containerd, need_rootless
from lab.session import Session, as_user

REPOSITORY = Path(__file__).parents[3]
REFERENCE = "lab.invalid/app:1"


@attrs.frozen(kw_only=True)
class User:
    """The user at a shell, with the script and some containerd and rootlesskit on PATH."""

    session: Session
    script: Path
    path: str
    settings: Mapping[str, str] = {}

    @property
    def environment(self) -> dict[str, str]:
        own = {"PATH": self.path, "NIXSNAP": str(installed_program("nixsnap"))}
        return {**self.session.environment, **own, **self.settings}

    @property
    def socket(self) -> Path:
        return self.session.runtime_directory / "nix-snapshotter/nix-snapshotter.sock"

    @property
    def root(self) -> Path:
        return self.session.home / ".local/share/nix-snapshotter"

    def does(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        return run(*as_user(), *argv, check=check, environment=self.environment)

    def calls(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return self.does(self.script, *arguments, check=check)

    def ctr(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ctr in the namespaces, by the script."""
        return self.calls("exec", "ctr", "-n", self.session.containerd_namespace, *arguments, check=check)

    def loads(self, archive: Path) -> None:
        """Load an image from outside the namespaces: a plain user's default is the own containerd."""
        self.does(
            installed_program("nix2container"), "-n", self.session.containerd_namespace, "load", archive
        )

    def runs(self, *argv: str, reference: str = REFERENCE) -> str:
        """Run a container."""
        return self.ctr("run", "--rm", "--snapshotter", "nix", reference, "one", *argv).stdout


@pytest.fixture
def variant() -> str:
    return "1"


@pytest.fixture
def user(session: Session, variant: str) -> Iterator[User]:
    """The user; what they started is gone after the test."""
    rootlesskit = need_rootless(variant)
    programs = session.subdirectory("bin")
    for name in ("rootless", "systemd"):
        shutil.copytree(REPOSITORY / "packaging" / name, programs / "packaging" / name)
    wrapper = programs / "rootlesskit"
    wrapper.symlink_to(rootlesskit.program)
    containerd = need_containerd("1.7").directory
    user = User(
        session=session,
        script=programs / "packaging/rootless/nixsnap-rootless",
        path=f"{programs}:{containerd}:{os.environ['PATH']}",
        settings={"CONTAINERD_ROOTLESS_ROOTLESSKIT_FLAGS": " ".join(rootlesskit.options)},
    )
    yield user
    user.calls("stop")
    assert processes_naming(session.directory) == []


def load_application(user: User, closure: Closure) -> None:
    user.loads(build_image(closure, user.session.directory / "app.tar", reference=REFERENCE))


@pytest.mark.parametrize("variant", rootlesskit_variants())
def test_whole_life(user: User, closure: Closure):
    """Installed, started, an image built, loaded and run, stopped: nothing mounted, and nothing left to run."""
    assert "loginctl enable-linger nixsnap-test" in user.calls("install").stderr
    user.calls("start")
    assert user.socket.is_socket()
    load_application(user, closure)
    assert user.runs(f"{closure.top}/bin/sh", "-c", "ls /nix/store").split() == [
        Path(path).name for path in closure.paths
    ]
    assert "runs already" in user.calls("start").stderr
    user.calls("stop")
    assert not user.socket.exists()
    assert mounts_below(user.session.directory) == []
    assert processes_naming(user.session.directory) == []


def test_joins_a_running_containerd(user: User, closure: Closure):
    """Where containerd-rootless runs already, the service joins it, and stopping the service leaves it running."""
    user.calls("install")
    user.calls("start")
    load_application(user, closure)
    pid = (user.session.state_directory / "child_pid").read_text()
    started = user.session.runtime_directory / "nix-snapshotter/containerd.pid"
    kept = started.read_text()
    started.unlink()  # as if somebody else had started it
    user.calls("stop")
    assert Path(f"/proc/{pid}").exists()
    user.calls("start")
    assert (user.session.state_directory / "child_pid").read_text() == pid
    assert user.runs(f"{closure.top}/bin/echo", "hello") == "hello\n"
    started.write_text(kept)


def test_containerd_that_does_not_know_it(user: User):
    """Without the plug-in in containerd's configuration the service runs, and the user is told what lacks."""
    started = user.calls("start")
    assert user.socket.is_socket()
    assert "containerd does not know the snapshotter nix" in started.stderr
    assert "install" in started.stderr


def test_containerd_that_looks_elsewhere(user: User):
    """A plug-in with another address: the user is told what containerd says of it."""
    user.calls("install")
    file = user.session.home / ".config/containerd/config.toml"
    file.write_text(file.read_text().replace("/run/nix-snapshotter/", "/run/nowhere/"))
    started = user.calls("start")
    assert "containerd does not find nixsnap" in started.stderr
    assert "/run/nowhere/nix-snapshotter.sock" in started.stderr


def test_namespaces_without_a_run_of_their_own(user: User):
    """Without --copy-up=/run there is no link; the service runs, and its log says so. No containerd answers either."""
    rootlesskit = need_rootless("1").program
    state = f"--state-dir={user.session.state_directory}"
    process = Process.start(
        "rootlesskit",
        *as_user(), "setpriv", "--pdeathsig", "TERM", rootlesskit, state, "--net=host", "sleep", "1000",
        log=user.session.directory / "rootlesskit.log",
        environment=user.environment,
    )  # fmt: skip
    try:
        process.wait_until((user.session.state_directory / "child_pid").exists, what="make its namespaces")
        started = user.calls("start")
        assert user.socket.is_socket()
        assert "containerd does not answer" in started.stderr
        log = user.session.runtime_directory / "nix-snapshotter/service.log"
        assert "/run belongs to the host" in log.read_text()
        user.calls("stop")
    finally:
        process.stop()


def test_containers_survive_the_service(user: User, closure: Closure):
    """A service that was killed leaves containers alone, and the next one serves on."""
    user.calls("install")
    user.calls("start")
    load_application(user, closure)
    user.ctr("run", "--detach", "--snapshotter", "nix", REFERENCE, "long", f"{closure.top}/bin/sleep", "1000")
    pid = int((user.session.runtime_directory / "nix-snapshotter/service.pid").read_text().split()[0])
    os.kill(pid, 9)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="end")
    user.calls("start")
    ls = lingering(f"{closure.top}/bin/ls", "/nix/store")
    listed = user.ctr("task", "exec", "--exec-id", "x", "long", *ls)
    assert len(listed.stdout.split()) == len(closure.paths)
    user.calls("stop")
    assert processes_naming(user.session.directory) == [], (
        "its containers end with a containerd that we started"
    )


def test_stop_ends_what_does_not_heed_it(user: User, closure: Closure):
    """A service and a rootlesskit that hang are killed when their time is up, with their containers; nobody else is."""
    user.calls("install")
    user.calls("start")
    load_application(user, closure)
    user.ctr("run", "--detach", "--snapshotter", "nix", REFERENCE, "long", f"{closure.top}/bin/sleep", "1000")
    runtime = user.session.runtime_directory / "nix-snapshotter"
    log = user.session.directory / "bystander.log"
    bystander = Process.start("bystander", *as_user(), "sleep", "1000", log=log)
    try:
        for name in ("service", "containerd"):
            os.kill(int((runtime / f"{name}.pid").read_text().split()[0]), signal.SIGSTOP)
        stopped = (
            attrs.evolve(user, settings={**user.settings, "NIXSNAP_STOP_SECONDS": "1"}).calls("stop").stderr
        )
        assert "service (process " in stopped
        assert "containerd (process " in stopped
        assert stopped.count("goes on 1 s after it was told to stop, and is killed") == 2
        assert processes_naming(user.session.directory) == []
        assert bystander.is_running()
        # A pid that is another's by now, as its start shows.
        (runtime / "service.pid").write_text(f"{bystander.pid} 1\n")
        user.calls("stop")
        assert bystander.is_running()
        assert not (runtime / "service.pid").exists()
    finally:
        bystander.stop()


def test_says_what_is_wrong(user: User):
    """Each refusal names the thing and the way out."""
    assert "usage:" in user.calls(check=False).stderr
    assert "usage:" in user.calls("prance", check=False).stderr
    assert "child_pid names no process" in user.calls("run", check=False).stderr
    assert "child_pid names no process" in user.calls("exec", "true", check=False).stderr
    assert "exec needs a command" in user.calls("exec", check=False).stderr
    assert "start takes no arguments" in user.calls("start", "now", check=False).stderr
    elsewhere = attrs.evolve(user, settings={"XDG_RUNTIME_DIR": "/nonexistent"})
    assert "loginctl enable-linger nixsnap-test" in elsewhere.calls("start", check=False).stderr
    impatient = attrs.evolve(user, settings={"NIXSNAP_STOP_SECONDS": "0.5"})
    assert "whole number from 1 on, not '0.5'" in impatient.calls("stop", check=False).stderr
    lacking = attrs.evolve(user, settings={"NIXSNAP": "/nonexistent"})
    assert "nixsnap is not on PATH" in lacking.calls("start", check=False).stderr
    bare = attrs.evolve(user, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert run(user.script, "start", check=False).stderr.startswith(
        "nixsnap-rootless: this is for plain users"
    )
    failing = bare.calls("start", check=False)
    assert failing.returncode != 0
    assert "containerd is not on PATH" in failing.stderr


def test_start_shows_why_it_failed(user: User):
    """A service that ends at once is reported with the end of its log."""
    user.calls("install")
    config = user.session.home / ".config/nix-snapshotter/config.toml"
    config.write_text("adress = 3\n")
    failed = user.calls("start", check=False)
    assert failed.returncode != 0
    assert "unknown key 'adress'" in failed.stderr
    assert "service did not start" in failed.stderr


def test_install_is_repeatable(user: User):
    """A second installation changes nothing; one's own configuration stays; a removed unit is gone."""
    user.calls("install")
    home = user.session.home
    files = {path: path.read_text() for path in home.rglob("*") if path.is_file()}
    assert sorted(path.name for path in files) == [
        "config.toml",
        "config.toml",
        "containerd.service",
        "nix-snapshotter.service",
    ]
    assert files[home / ".config/containerd/config.toml"].count("[proxy_plugins.nix]") == 1
    user.calls("install")
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == files
    user.calls("uninstall")
    left = sorted(path.name for path in home.rglob("*") if path.is_file())
    assert left == ["config.toml", "config.toml"]


@pytest.mark.parametrize("has", ["unit", "nerdctl"])
def test_install_leaves_containerd_to_who_has_it(user: User, has: str):
    """A unit of the user's own stays as it is, also at the end; where nerdctl is, its tool for that is named."""
    unit = user.session.home / ".config/systemd/user/containerd.service"
    if has == "unit":
        user.does("mkdir", "-p", unit.parent)
        unit.write_text("[Service]\nExecStart=/bin/true\n")
    else:
        user.does("ln", "-s", "/bin/true", user.session.directory / "bin/containerd-rootless-setuptool.sh")
    said = user.calls("install").stderr
    assert ("containerd-rootless-setuptool.sh install" in said) == (has == "nerdctl")
    user.calls("uninstall")
    assert unit.exists() == (has == "unit")


def test_install_keeps_a_configuration_it_cannot_add_to(user: User):
    """A configuration that has the plug-in in a form of its own is left as it was, and the user told."""
    file = user.session.home / ".config/containerd/config.toml"
    user.does("mkdir", "-p", file.parent)
    mine = 'version = 2\nproxy_plugins = { nix = { type = "snapshot", address = "/x" } }\n'
    file.write_text(mine)
    user.session.give(file)
    failed = user.calls("install", check=False)
    assert failed.returncode != 0
    assert "add it yourself" in failed.stderr
    assert file.read_text() == mine


def test_unit_is_one_systemd_takes(user: User, tmp_path: Path):
    """The unit that `install` writes has nothing that systemd complains of."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine lacks systemd-analyze")
    user.calls("install")
    unit = user.session.home / ".config/systemd/user/nix-snapshotter.service"
    text = unit.read_text()
    assert f'\nExecStart="{user.script}" run\n' in text
    assert f"\nEnvironment=NIXSNAP={installed_program('nixsnap')}\n" in text
    assert f'\nExecStart="{user.script}" containerd\n' in (unit.parent / "containerd.service").read_text()
    copies = [Path(shutil.copy(file, tmp_path)) for file in unit.parent.glob("*.service")]
    own = {"XDG_RUNTIME_DIR": str(tmp_path)}
    result = run("systemd-analyze", "--user", "verify", "--man=no", *copies, environment=own)
    assert result.stdout + result.stderr == ""
