"""Containerd's own snapshotter suite against nixsnap, twice and none skipped, and a comparison with overlayfs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import attrs
import pytest
from lab import Closure, NixsnapDaemon, Workspace, installed_program, mounts_below, nix_environment, run

HERE = Path(__file__).parent
GO = os.environ.get("NIXSNAP_GO", "go")
"""packaging/test names one that is new enough; without it, PATH decides."""
RUNS = ("TestPlainChains", "TestAboveNixLayer")
COMPARISON = "TestSameAsOverlayfs"
SUBTESTS = (
    # As containerd 2.2's testsuite.go spells them: a suite that grows or shrinks is a change to look at.
    "Basic",
    "StatActive",
    "StatComitted",
    "TransitivityTest",
    "PreareViewFailingtest",
    "Update",
    "Remove",
    "Walk",
    "LayerFileupdate",
    "RemoveDirectoryInLowerLayer",
    "Chown",
    "DirectoryPermissionOnCommit",
    "RemoveIntermediateSnapshot",
    "DeletedFilesInChildSnapshot",
    "MoveFileFromLowerLayer",
    "ViewReadonly",
    "StatInWalk",
    "CloseTwice",
    "RootPermission",
    "Rename",
    "128LayersMount",
)


@attrs.frozen(kw_only=True)
class SuiteResult:
    """What `go test -json` reported: for each test its outcome (pass, fail or skip) and its output."""

    status: int
    outcomes: dict[str, str]
    outputs: dict[str, str]


def go(*arguments: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the go command in this module, without cgo and without touching go.mod."""
    if shutil.which(GO) is None:
        pytest.skip("this machine lacks the go command")
    command = [GO, "-C", HERE, *arguments]
    environment |= {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    return run(*command, check=check, timeout_seconds=1200, environment=environment)


def read_events(lines: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Sort test2json's events into outcomes and outputs by test; what belongs to no test is under ""."""
    outcomes: dict[str, str] = {}
    outputs: defaultdict[str, str] = defaultdict(str)
    for line in lines:
        event = json.loads(line)
        test = event.get("Test", "")
        if event["Action"] in {"pass", "fail", "skip"}:
            outcomes[test] = event["Action"]
        outputs[test] += event.get("Output", "")
    return outcomes, dict(outputs)


@pytest.fixture(scope="module")
def suite(workspace: Workspace, closure: Closure) -> SuiteResult:
    """Both runs of the suite, two sub-tests at a time, each with a nixsnap of its own."""
    directory = workspace.subdirectory()
    result = go(
        "test", "-json", "-count=1", "-parallel=2", "-timeout=15m", ".",
        check=False,
        NIXSNAP_BIN=str(installed_program("nixsnap")),
        NIXSNAP_STORE_PATH=closure.top,
        NIXSNAP_LOGS=str(directory),
        TMPDIR=str(directory),
        **nix_environment(),
    )  # fmt: skip
    outcomes, outputs = read_events(result.stdout.splitlines())
    outputs[""] = result.stderr + outputs.get("", "")
    return SuiteResult(status=result.returncode, outcomes=outcomes, outputs=outputs)


def test_go_vet():
    """The module is formatted and go vet finds nothing."""
    go("vet", "./...")
    gofmt = Path(go("env", "GOROOT").stdout.strip()) / "bin/gofmt"
    assert run(gofmt, "-l", HERE).stdout == ""


def test_suite_ran_whole(suite: SuiteResult):
    """Exactly the known sub-tests ran, in both runs, and nothing failed outside of them."""
    assert set(suite.outcomes) - {"", COMPARISON, *RUNS} == {
        f"{run}/{name}" for run in RUNS for name in SUBTESTS
    }, suite.outputs[""]
    assert suite.status == 0, suite.outputs[""]


@pytest.mark.parametrize("name", SUBTESTS)
@pytest.mark.parametrize("test", RUNS)
def test_conformance(suite: SuiteResult, test: str, name: str):
    """Containerd's sub-test passes, on plain chains and on chains above a nix layer."""
    test = f"{test}/{name}"
    assert suite.outcomes.get(test) == "pass", suite.outputs.get(test) or suite.outputs[""]


def test_same_as_overlayfs(suite: SuiteResult):
    """Without a nix layer every answer is the one containerd's own overlayfs snapshotter gives."""
    assert suite.outcomes.get(COMPARISON) == "pass", suite.outputs.get(COMPARISON) or suite.outputs[""]


def test_suite_leaves_no_mounts(suite: SuiteResult, workspace: Workspace):
    """No mount is left below the directories of the sub-tests."""
    assert suite.outcomes
    assert mounts_below(workspace.path) == []


@pytest.mark.parametrize("clients", [1, 4])
def test_cyclebench(workspace: Workspace, clients: int):
    """The cycle benchmark completes cycles against a running nixsnap and leaves no snapshot."""
    program = workspace.path / "cyclebench"
    go("build", "-o", program, "./cmd/cyclebench")
    daemon = NixsnapDaemon.start(workspace.subdirectory())
    try:
        measured = json.loads(
            run(program, "-address", daemon.address, "-clients", str(clients), "-seconds", "0.5").stdout
        )
    finally:
        daemon.destroy()
    assert measured["clients"] == clients
    assert measured["cycles"] > 0
    assert list((daemon.root / "snapshots").iterdir()) == []
