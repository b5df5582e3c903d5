"""`nixsnap rootless check` on the real machine, as the plain user."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

from lab import installed_program, run
from lab.processes import Process
from lab.requirements import need_containerd
from lab.session import Session, as_user


def look(session: Session, **environment: str) -> tuple[int, dict[str, dict[str, str | None]]]:
    """Its status, and the findings by name."""
    containerd = need_containerd("1.7").directory
    result = run(
        *as_user(), installed_program("nixsnap"), "rootless", "check", "--json",
        check=False,
        environment={**session.environment, "PATH": f"{containerd}:{os.environ['PATH']}", **environment},
    )  # fmt: skip
    assert result.stderr == ""
    return result.returncode, {finding["name"]: finding for finding in json.loads(result.stdout)}


def test_nothing_is_missing(session: Session):
    """This machine has all that it takes; what is no more than noted here is what a bare Debian lacks."""
    status, findings = look(session)
    assert [name for name, finding in findings.items() if finding["state"] == "missing"] == []
    assert status == 0
    noted = {name for name, finding in findings.items() if finding["state"] == "note"}
    assert noted <= {
        "lingering",
        "cgroups",
        "containerd-rootless",
        "proxy plugin",
        "store ownership",
        "store door",
    }
    for name in (
        "subuid",
        "newuidmap",
        "rootlesskit",
        "tun",
        "user namespaces",
        "overlay",
        "store view",
        "store access",
    ):
        assert findings[name]["state"] == "ok", findings[name]


def test_something_is_missing(session: Session):
    """Without a session's directory it ends with a status, and says how to get one."""
    status, findings = look(session, XDG_RUNTIME_DIR="")
    assert status == 1
    assert findings["XDG_RUNTIME_DIR"]["state"] == "missing"
    assert "loginctl enable-linger nixsnap-test" in str(findings["XDG_RUNTIME_DIR"]["remedy"])


def test_store_door(session: Session, directory: Path):
    """A door of root's that runs: the check asks it as the daemon will, and takes what another shows for closed."""
    address = session.directory / "door.sock"
    config = directory / "config.toml"
    directory.chmod(0o711)
    session.give(directory)
    config.write_text(f'store_door = "{address}"\n')

    def door() -> dict[str, str | None]:
        command = (installed_program("nixsnap"), "rootless", "check", "--json", "--config", config)
        result = run(*as_user(), *command, check=False, environment=session.environment)
        return next(finding for finding in json.loads(result.stdout) if finding["name"] == "store door")

    assert door()["detail"] == f"{address} is not there"
    command = (installed_program("nixsnap"), "store-door", "--address", address)
    process = Process.start("store-door", *command, log=directory / "door.log")
    try:
        process.wait_until(lambda: "serving store=/nix/store" in process.log_text(), what="serve")
        assert door()["state"] == "ok", door()
        assert f"granted uid={pwd.getpwnam('nixsnap-test').pw_uid}" in process.log_text()
        address.chmod(0o600)
        assert door()["detail"] == f"nixsnap-test may not connect to {address}"
    finally:
        process.stop()


def test_for_people(session: Session):
    """The same as text: a line a finding, the remedy below it."""
    argv = [*as_user(), "PATH=/nowhere", installed_program("nixsnap"), "rootless", "check"]
    result = run(*argv, check=False, environment=session.environment)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    at = lines.index("missing newuidmap: newuidmap is not on PATH")
    assert lines[at + 1].strip().startswith("-> install the package uidmap")


def test_root_is_told():
    """It is about a plain user."""
    result = run(installed_program("nixsnap"), "rootless", "check", check=False)
    assert result.returncode == 2
    assert "you are root" in result.stderr
    assert "Traceback" not in result.stderr


def test_from_within(rootless):
    """Root of the namespaces is their user: it finds the same ranges."""
    result = rootless.run(installed_program("nixsnap"), "rootless", "check", "--json", check=False)
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert findings["subuid"]["state"] == "ok"
    assert findings["containerd-rootless"]["state"] == "ok"


def test_serve_outside_the_namespaces(session: Session):
    """A daemon that a plain user starts outside can mount nothing, and says so at once."""
    result = run(
        *as_user(), installed_program("nixsnap"), "serve", check=False, environment=session.environment
    )
    assert result.returncode == 5
    assert "may mount nothing here" in result.stderr
    assert "docs/rootless.md" in result.stderr
