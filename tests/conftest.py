"""What every tier shares: the workspace, what this machine can do, and that a skip is no pass."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PRIVILEGED_TIERS = (HERE / "system", HERE / "conformance")
REQUIRE_ALL = "NIXSNAP_REQUIRE_ALL"
"""Set by packaging/test, which installs all that the tests need: a skip is then a failure."""
LOG_TAIL_BYTES = 8000

sys.path.insert(0, str(HERE / "system"))  # `import lab` works from every tier

from lab import Closure, Workspace, mounts_below, nix_closure, processes, unmount_below  # noqa: E402
from lab.machine import describe_machine  # noqa: E402
from lab.mounts import part_from_host  # noqa: E402
from lab.place import AS_USER  # noqa: E402
from lab.requirements import need_nix  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our own options."""
    parser.addoption("--keep-workspace", action="store_true", help="leave the files of system tests behind")
    parser.addoption("--containerd", metavar="SERIES", help="test with this series of containerd alone")


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run in several processes, give each its own mounts: what a test counts is then of its own making."""
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        part_from_host()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Say which tests one process runs one after the other."""
    from lab.parallel import Scheduling  # noqa: PLC0415 - what it imports is here if this is called

    return Scheduling(config, log)


def pytest_report_header() -> list[str]:
    """Say what this machine can and cannot exercise, so that green is honest."""
    return describe_machine()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this run is not about; skip what needs root for everyone else, with the reason."""
    left_out = [item for item in items if not _is_asked_for(item, config.getoption("--containerd"))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if os.geteuid() == 0:
        return
    needs_root = pytest.mark.skip(reason="needs root: real mounts, containerd and runc")
    for item in items:
        if any(item.path.is_relative_to(tier) for tier in PRIVILEGED_TIERS):
            item.add_marker(needs_root)


def _is_asked_for(item: pytest.Item, series: str | None) -> bool:
    """Whether a run with this series of containerd, or one in a plain user's namespaces, is about the test."""
    chosen = item.callspec.params if hasattr(item, "callspec") else {}
    if series is not None and chosen.get("installation", series) != series:
        return False
    # Its user has no root to be, and is within such namespaces already.
    return AS_USER not in os.environ or not (
        item.get_closest_marker("real_root") or chosen.get("place") == "rootless"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add running daemons' logs to a failure; make a skip a failure where nothing may be missing."""
    report = yield
    if report.skipped and os.environ.get(REQUIRE_ALL) and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: this run installs all it needs, yet: {report.longreprtext}"
    if report.failed:
        for daemon in processes.RUNNING:
            tail = daemon.log_text(last_bytes=LOG_TAIL_BYTES)
            report.sections.append((f"end of the log of {daemon.name} (pid {daemon.pid})", tail))
    return report


@pytest.fixture(scope="session")
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """The session's workspace; what killed runs left behind is swept first."""
    with Workspace.create(keep=request.config.getoption("--keep-workspace")) as workspace:
        yield workspace


@pytest.fixture
def directory(workspace: Workspace) -> Iterator[Path]:
    """A private directory with a short name; the test must leave no mount in it."""
    directory = workspace.subdirectory()
    yield directory
    left = mounts_below(directory)
    unmount_below(directory)
    assert not left, f"the test left mounts behind: {[str(mount.point) for mount in left]}"


@pytest.fixture(scope="session")
def closure() -> Closure:
    """A small closure: three dependency directories, busybox and an application with bin/sh."""
    need_nix()
    return nix_closure(3)
