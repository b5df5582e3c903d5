"""The tests of root's node once more, on a plain user's: the whole run is in the namespaces that rootlesskit made.

There the tests are root, as is who uses rootless containerd, and start containerd, nixsnap, runc and registries as
ever. What a plain user cannot have is marked `real_root` where it is tested, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from lab import Rootless, Workspace, mounts_below, run
from lab.place import AS_USER
from lab.processes import processes_naming
from lab.requirements import need_containerd, need_rootless

TESTS = Path(__file__).parents[2]


@attrs.frozen
class Setting:
    """A rootlesskit, and a series of containerd."""

    rootlesskit: str
    containerd: str


# Each module with one release of containerd and one of rootlesskit, each of which has enough to do.
FIRST, SECOND, DETACHED = Setting("1", "1.7"), Setting("2-utsns", "2"), Setting("2-detach-netns", "2")
MODULES = {
    FIRST: [
        "node/test_service.py",
        "node/test_daemon.py",
        "node/test_upkeep_of_roots.py",
    ],
    SECOND: [
        "node/test_cri.py",
        "node/test_bad_input.py",
        "node/test_collection.py",
        "node/test_image_service.py",
        "node/test_kubelet_client.py",
        "node/test_realise_command.py",
        "node/test_other_clients.py",
        "node/test_original.py",
    ],
    DETACHED: ["node/test_main_job.py"],
}


@attrs.frozen
class Run:
    """A place for runs of pytest."""

    rootless: Rootless
    setting: Setting
    directory: Path
    """The user's: a copy of the tests is in it, whose own may be out of reach."""

    def pytest(self, module: str) -> subprocess.CompletedProcess[str]:
        """Run a module's tests."""
        command = (
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "--containerd"),
            *(self.setting.containerd, f"tests/system/{module}"),
        )
        own = {AS_USER: self.rootless.containerd_namespace, "TMPDIR": str(self.directory)}
        return subprocess.run(
            # Whoever joins a mount namespace is at its root.
            self.rootless.argv("sh", "-c", f'cd {self.directory}; exec "$@"', "sh", *command),
            env={**os.environ, **self.rootless.environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )


@pytest.fixture(scope="module")
def place(workspace: Workspace, request: pytest.FixtureRequest) -> Iterator[Run]:
    """The namespaces, for all modules that are run in them; these leave neither mount nor process there."""
    setting: Setting = request.param
    need_containerd(setting.containerd)
    directory = workspace.subdirectory()
    with Rootless.start(directory, variant=need_rootless(setting.rootlesskit)) as rootless:
        own = rootless.subdirectory("t")  # sockets' paths end at 107 bytes
        shutil.copytree(TESTS, own / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(TESTS.parent / "pyproject.toml", own)
        run("chmod", "-R", "a+rX", own)
        before = rootless.mount_count()
        yield Run(rootless, setting, own)
        assert processes_naming(own) == []
        assert rootless.mount_count() == before
    assert mounts_below(directory) == []


@pytest.mark.parametrize(
    ("place", "module"),
    [(setting, module) for setting, modules in MODULES.items() for module in modules],
    indirect=["place"],
    ids=lambda value: value if isinstance(value, str) else f"rootlesskit-{value.rootlesskit}",
)
def test_as_user(place: Run, module: str):
    """Every test of the module that is not marked passes."""
    result = place.pytest(module)
    print(result.stdout)
    summary = result.stdout.splitlines()[-1]
    assert result.returncode == 0, summary
    assert " passed" in summary
