"""The systemd unit and what to add to containerd's configuration, checked by the programs that read them."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from expressions import REPOSITORY
from lab import Containerd, Installation, Node, build_image, installed_program, load_image, run

from nixsnap import daemon
from nixsnap.config import Config
from nixsnap.storedoor.server import REQUEST_SECONDS

UNIT = REPOSITORY / "packaging/systemd/nix-snapshotter.service"
DOOR = [REPOSITORY / f"packaging/systemd/nixsnap-store-door.{kind}" for kind in ("socket", "service")]
SNIPPETS = REPOSITORY / "packaging/containerd"
REFERENCE = "lab.invalid/app:1"

OWN_NAMESPACE = re.compile(
    r"^(Private(Tmp|Devices|Mounts|IPC|Users)|Protect\w+|Read(Only|Write)Paths|InaccessiblePaths|ExecPaths|NoExecPaths"
    r"|Bind(ReadOnly)?Paths|TemporaryFileSystem|Root\w+|MountFlags|MountImages|DynamicUser|ExtensionImages)$"
)
"""Settings that give a service a mount namespace of its own: systemd.exec(5)."""


def unit_settings(unit: Path = UNIT) -> dict[str, str]:
    """A unit's settings."""
    lines = [line for line in unit.read_text().splitlines() if line and line[0] not in "#["]
    settings = dict(line.split("=", 1) for line in lines)
    assert len(settings) == len(lines)
    return settings


def test_systemd_reads_the_unit(tmp_path):
    """systemd knows every setting and finds nothing wrong."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine lacks systemd-analyze")
    text = UNIT.read_text()
    assert "\nExecStart=nixsnap serve\n" in text
    # Wherever it is installed: systemd looks in /usr/local/bin and /usr/bin alone.
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("ExecStart=nixsnap", f"ExecStart={installed_program('nixsnap')}"))
    result = run("systemd-analyze", "verify", "--man=no", unit)
    assert result.stdout + result.stderr == ""


def test_systemd_reads_the_doors_units(tmp_path):
    """The same of the store door's, which belong together."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine lacks systemd-analyze")
    units = [tmp_path / unit.name for unit in DOOR]
    for unit, ours in zip(units, DOOR, strict=True):
        unit.write_text(ours.read_text().replace("=nixsnap ", f"={installed_program('nixsnap')} "))
    result = run("systemd-analyze", "verify", "--man=no", *units)
    assert result.stdout + result.stderr == ""


def test_the_doors_units_fit_the_door():
    """The socket is where users' daemons look; the tests give the door the same capabilities as the unit."""
    socket, service = map(unit_settings, DOOR)
    assert Path(socket["ListenSequentialPacket"]) == Config().store_door
    assert socket["Accept"] == "no"
    assert service["CapabilityBoundingSet"] == "CAP_SYS_ADMIN CAP_SETUID CAP_SETGID"
    assert float(service["TimeoutStopSec"]) > REQUEST_SECONDS
    # Each would hide what the door reads, or keep it from making user namespaces.
    assert not {"ProtectProc", "ProcSubset", "PrivateUsers", "RootDirectory", "RestrictNamespaces"} & set(
        service
    )


def test_mounts_reach_the_host():
    """No setting keeps the service's mounts from containerd."""
    assert [name for name in unit_settings() if OWN_NAMESPACE.match(name)] == []


def test_unit_fits_the_daemon():
    """The runtime directory is the socket's, and systemd waits longer than the daemon does for calls in flight."""
    settings = unit_settings()
    assert Path("/run", settings["RuntimeDirectory"]) == Config().address.parent
    assert settings["RuntimeDirectoryMode"] == "0700"
    assert float(settings["TimeoutStopSec"]) > daemon._GRACE_SECONDS
    assert any(Config().root.is_relative_to(path) for path in settings["RequiresMountsFor"].split())


def snippet_for(installation: Installation) -> str:
    """The snippet for a release."""
    name = "config-2.x.toml" if installation.series == "2" else "config-1.x.toml"
    return (SNIPPETS / name).read_text()


def dump(containerd: Installation, file: Path) -> dict[str, Any]:
    """What containerd makes of a configuration file; it must have nothing to complain of."""
    argv = (containerd.directory / "containerd", "--config", file, "config", "dump")
    result = run(*argv, environment=containerd.environment)
    assert result.stderr == ""
    return tomllib.loads(result.stdout)


def test_containerd_reads_the_snippet(installation, tmp_path):
    """Each release takes its snippet without a complaint: Kubernetes gets `nix`, with the layers' annotations."""
    file = tmp_path / "config.toml"
    file.write_text(snippet_for(installation))
    dumped = dump(installation, file)
    assert dumped["proxy_plugins"]["nix"]["address"] == str(Config().address)
    if installation.series == "2":
        cri = dumped["plugins"]["io.containerd.cri.v1.images"]
    else:
        cri = dumped["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("nix", False)


def test_containerd_runs_with_the_snippet(installation, directory, nixsnap, closure):
    """A containerd with the snippet in its configuration, CRI on, has every plugin of it and runs a Nix image."""
    (directory / "containerd").mkdir()
    containerd = Containerd.start(installation, directory / "containerd", snapshotter=nixsnap.address)
    try:
        with_snippet(containerd, installation, nixsnap.address)
        containerd.restart()
        assert plugins(containerd) >= {"nix", "cri"} | ({"local"} if installation.series != "1.6" else set())
        node = Node(nixsnap=nixsnap, containerd=containerd, directory=directory)
        load_image(node.containerd, build_image(closure, directory / "app.tar", reference=REFERENCE))
        assert containerd.run(REFERENCE, f"{closure.top}/bin/echo", "hello").stdout == "hello\n"
    finally:
        containerd.stop()


def with_snippet(containerd: Containerd, installation: Installation, socket: Path) -> None:
    """Write a configuration in which only directories and sockets are not the snippet's."""
    version, rest = snippet_for(installation).split("\n\n", 1)
    rest = rest.replace(str(Config().address), str(socket))
    directory = containerd.directory
    (directory / "containerd.toml").write_text(
        f"""{version}
root = "{directory}/root"
state = "{directory}/state"

{rest}
[grpc]
  address = "{containerd.address}"
[ttrpc]
  address = "{containerd.address}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
"""
    )


def plugins(containerd: Containerd) -> set[str]:
    """The ids of the plugins that work, of the types that the snippets configure."""
    lines = [line.split() for line in containerd.ctr("plugins", "ls").stdout.splitlines()]
    kinds = ("io.containerd.snapshotter.v1", "io.containerd.grpc.v1", "io.containerd.transfer.v1")
    return {line[1] for line in lines if line and line[0] in kinds and line[-1] == "ok"}
