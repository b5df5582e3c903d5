"""The harness itself, on containerd's own overlayfs snapshotter: what the other system tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import (
    Containerd,
    Installation,
    Workspace,
    build_plain_image,
    mounts_below,
    nix_closure,
    run,
)
from lab.nix import delete_closure, nix_store
from lab.parallel import togetherness
from lab.processes import processes_naming
from lab.requirements import need_nix

REFERENCE = "lab.invalid/plain:1"


@pytest.fixture
def plain_containerd(installation: Installation, directory: Path):
    """A containerd of each release with no proxy snapshotter, holding the plain image."""
    containerd = Containerd.start(installation, directory)
    archive = build_plain_image(directory / "plain.tar", reference=REFERENCE)
    containerd.ctr("image", "import", "--snapshotter", "overlayfs", archive)
    yield containerd
    containerd.stop()


def test_plain_container_runs(plain_containerd: Containerd):
    """A container of the plain image runs to its exit and leaves no mount."""
    result = plain_containerd.run(REFERENCE, "/bin/sh", "-c", "echo hello; id -u", snapshotter="overlayfs")
    assert result.stdout.split() == ["hello", "0"]
    assert mounts_below(plain_containerd.directory) == []


def test_stop_ends_containers(plain_containerd: Containerd):
    """Stopping a containerd ends its running containers, their shims and their mounts."""
    started = plain_containerd.start_container(REFERENCE, "/bin/sleep", "1000", snapshotter="overlayfs")
    assert plain_containerd.exec(started, "/bin/hostname").returncode == 0
    assert mounts_below(plain_containerd.directory)
    plain_containerd.stop()
    assert mounts_below(plain_containerd.directory) == []
    assert processes_naming(plain_containerd.directory) == []


def test_crashed_containerd_leaves_nothing(plain_containerd: Containerd):
    """After a containerd was killed, stopping it still ends the shims and containers it left."""
    plain_containerd.start_container(REFERENCE, "/bin/sleep", "1000", snapshotter="overlayfs")
    plain_containerd.process.kill()
    assert processes_naming(plain_containerd.directory), "the shim should have outlived its containerd"
    plain_containerd.stop()
    assert processes_naming(plain_containerd.directory) == []
    assert mounts_below(plain_containerd.directory) == []


def test_containers_survive_restart(plain_containerd: Containerd):
    """A container runs on while its containerd is stopped and started."""
    started = plain_containerd.start_container(REFERENCE, "/bin/sleep", "1000", snapshotter="overlayfs")
    plain_containerd.restart()
    assert plain_containerd.exec(started, "/bin/echo", "still here").stdout == "still here\n"


def test_workspace_of_killed_run_is_swept(directory: Path):
    """The mounts, processes and files of a run that was killed go when the next workspace is made."""
    script = (
        "import subprocess, time; from lab import Workspace;"
        "path = Workspace.create().path; (path / 'm').mkdir();"
        "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', path / 'm'], check=True);"
        "subprocess.Popen(['tail', '-f', path / 'm' / '..' / 'nothing'], stderr=subprocess.DEVNULL);"
        "print(path, flush=True); time.sleep(1000)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(directory)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as killed:
        left = Path(killed.stdout.readline().strip())
        assert run("mountpoint", left / "m").returncode == 0
        sweeping = "from lab.workspace import sweep; print(*sweep())"
        assert run(sys.executable, "-c", sweeping, environment=environment).stdout.split() == []
        killed.send_signal(signal.SIGKILL)
    assert run(sys.executable, "-c", sweeping, environment=environment).stdout.split() == [str(left)]
    assert not left.exists()
    assert processes_naming(left) == []
    assert mounts_below(left) == []


def test_workspaces_do_not_sweep_each_other(workspace: Workspace):
    """A second workspace beside a live one leaves it alone."""
    with Workspace.create() as other:
        assert other.path != workspace.path
        assert workspace.path.is_dir()
    assert not other.path.exists()
    assert workspace.path.is_dir()


def test_process_of_a_run_has_mounts_of_its_own(directory: Path):
    """What one of several processes mounts is in its own table of mounts, and goes with it."""
    script = (
        "import subprocess; from lab.mounts import mounts_below, part_from_host; from pathlib import Path;"
        "part_from_host();"
        f"subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', '{directory}'], check=True);"
        f"print(len(mounts_below(Path('{directory}'))), flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "1\n"
        assert mounts_below(directory) == []
        process.communicate("\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("test", "together"),
    [
        ("a/test_b.py::test_c", "a/test_b.py"),
        ("a/test_b.py::test_c[x-1]", "a/test_b.py"),
        ("a/test_b.py::test_c[containerd-1.6]", "a/test_b.py containerd-1.6"),
        ("a/test_b.py::test_c[host-containerd-2-x]", "a/test_b.py containerd-2"),
        ("a/test_b.py::test_c[rootlesskit-2-utsns-node/test_d.py]", "a/test_b.py rootlesskit-2-utsns"),
    ],
)
def test_what_one_process_runs(test: str, together: str):
    """A module's tests with the same containerd, or in the same namespaces, stay together."""
    assert togetherness(test) == together


def test_closure_is_complete():
    """A closure is its dependencies of every kind, busybox and the application, as Nix counts them."""
    need_nix()
    closure = nix_closure(6, salt=f"complete {os.getpid()}", kinds=("directory", "file", "executable"))
    assert list(closure.paths) == sorted(nix_store("--query", "--requisites", closure.top))
    assert len(closure.paths) == 6 + 2
    assert closure.store_paths_file.read_text().split() == list(closure.paths)
    dependencies = (Path(closure.top) / "dependencies").read_text().split()
    assert sorted(Path(path).is_dir() for path in dependencies) == [False] * 4 + [True] * 2
    assert run(f"{closure.top}/bin/cat", f"{closure.top}/dependencies").stdout.split() == dependencies
    delete_closure(closure)
    assert not Path(closure.top).exists()
