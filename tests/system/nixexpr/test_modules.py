"""The modules for NixOS and Home Manager, evaluated against the options that they set."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from expressions import REPOSITORY, Expressions
from lab import CommandError, Installation, run
from lab.machine import SERIES
from lab.requirements import need_containerd

from nixsnap import config as daemon_config

HOSTS = Path(__file__).parent / "hosts"


@attrs.frozen(kw_only=True)
class Host:
    """Where a module is used."""

    nix: Expressions
    modules: str
    options: Path

    def system(self, configuration: str) -> str:
        """The expression of what the module system makes of a configuration."""
        module = f"(import {REPOSITORY}).{self.modules}.default"
        return (
            f"(lib.evalModules {{ modules = [ {module} {self.options} ({configuration}) ];"
            " specialArgs = { inherit pkgs; }; })"
        )

    def evaluate(self, configuration: str, value: str) -> Any:
        """A value of the `config` that it makes; there must be an option for all that is set."""
        # The real module system refuses by itself what ours only lists.
        assert self.nix.evaluate(f"{self.system(configuration)}.undeclared or [ ]") == []
        return self.nix.evaluate(f"let config = {self.system(configuration)}.config; in {value}")

    def build(self, configuration: str, value: str) -> Path:
        """Build a value of the `config`."""
        return self.nix.build(f"let config = {self.system(configuration)}.config; in {value}")


@pytest.fixture
def nixos(nix) -> Host:
    return Host(nix=nix, modules="nixosModules", options=HOSTS / "nixos.nix")


@pytest.fixture
def home_manager(nix) -> Host:
    return Host(nix=nix, modules="homeModules", options=HOSTS / "home-manager.nix")


ENABLED = "{ services.nix-snapshotter.enable = true; }"
INTEGRATED = "{ virtualisation.containerd = { enable = true; nixSnapshotterIntegration = true; }; }"
ROOTLESS = "{ services.nix-snapshotter.rootless.enable = true; }"
ROOTLESS_INTEGRATED = "{ virtualisation.containerd.rootless.nixSnapshotterIntegration = true; }"


def test_nixos_does_nothing_unasked(nixos):
    """Importing the module changes nothing."""
    value = (
        "{ inherit (config.systemd) services packages; inherit (config.virtualisation.containerd) settings; }"
    )
    assert nixos.evaluate("{ }", value) == {"services": {}, "packages": [], "settings": {}}
    plain = nixos.evaluate("{ virtualisation.containerd.enable = true; }", value)
    assert list(plain["settings"]) == ["plugins", "version"]
    assert list(plain["settings"]["plugins"]) == ["io.containerd.grpc.v1.cri"]


def test_nixos_service(nixos, nix):
    """The package's unit runs with NixOS's paths, and starts with the system."""
    service = nixos.evaluate(ENABLED, "config.systemd.services.nix-snapshotter")
    package = nix.build("pkgs.nixsnap")
    assert service["wantedBy"] == ["multi-user.target"]
    assert service["path"] == [nix.evaluate("pkgs.nix")]
    reset, command = service["serviceConfig"]["ExecStart"]
    assert reset == ""
    assert command.startswith(f"{package}/bin/nixsnap serve --config /nix/store/")
    assert nixos.evaluate(ENABLED, "config.systemd.packages") == [str(package)]


def test_nixos_store_door(nixos, nix):
    """The socket starts with the system, and the service upon it; the snapshotter itself need not run."""
    enabled = "{ services.nix-snapshotter.storeDoor.enable = true; }"
    assert nixos.evaluate(enabled, "{ inherit (config.systemd) packages services sockets; }") == {
        "packages": [str(nix.build("pkgs.nixsnap"))],
        "services": {},
        "sockets": {"nixsnap-store-door": {"wantedBy": ["sockets.target"]}},
    }


def test_nixos_settings(nixos):
    """Settings become the daemon's configuration file, which it can read."""
    enabled = """{ services.nix-snapshotter = {
      enable = true;
      settings = { readonly_store = true; image_service.containerd_address = "/run/k3s/containerd/containerd.sock"; };
    }; }"""
    file = nixos.build(enabled, "config.services.nix-snapshotter.configFile")
    config = daemon_config.load(file, required=True, overrides={})
    assert config.readonly_store
    assert str(config.image_service.containerd_address) == "/run/k3s/containerd/containerd.sock"
    (_, command) = nixos.evaluate(enabled, "config.systemd.services.nix-snapshotter.serviceConfig.ExecStart")
    assert command.endswith(f" --config {file}")


def test_nixos_config_file(nixos):
    """A configuration file takes the place of the settings, another package that of ours."""
    given = """{ services.nix-snapshotter = {
      enable = true;
      configFile = "/etc/mine.toml";
      package = pkgs.redis;
      path = [ pkgs.etcd ];
    }; }""".replace("pkgs.", "(import <nixpkgs> { }).")
    service = nixos.evaluate(given, "config.systemd.services.nix-snapshotter")
    assert service["serviceConfig"]["ExecStart"][1].endswith(
        "-redis/bin/nixsnap serve --config /etc/mine.toml"
    )
    assert service["path"][0].endswith("-etcd")


def test_nixos_without_the_overlay(nix):
    """The module brings its package where the overlay was not applied."""
    host = Host(nix=nix, modules="nixosModules", options=HOSTS / "nixos.nix")
    system = host.system(ENABLED).replace("inherit pkgs;", "pkgs = import <nixpkgs> { };")
    assert nix.evaluate(f"{system}.config.services.nix-snapshotter.package") == nix.evaluate("pkgs.nixsnap")


def test_nixos_wrong_type(nixos):
    """A value of another type than the option's is refused."""
    with pytest.raises(CommandError, match="enable"):
        nixos.evaluate('{ services.nix-snapshotter.enable = "yes"; }', "config.systemd.services")


def test_nixos_integration(nixos):
    """Setting containerd up for Nix images brings the service, and clients that take it by default."""
    value = "{ inherit (config.services.nix-snapshotter) enable; inherit (config.environment) variables; }"
    assert nixos.evaluate(INTEGRATED, value) == {
        "enable": True,
        "variables": {"CONTAINERD_SNAPSHOTTER": "nix"},
    }
    elsewhere = INTEGRATED[:-1] + "services.nix-snapshotter.enable = false; }"
    assert nixos.evaluate(elsewhere, "config.systemd.services") == {}


def containerd_dump(installation: Installation, file: Path) -> dict[str, Any]:
    """What a containerd makes of a configuration file."""
    argv = (installation.directory / "containerd", "--config", file, "config", "dump")
    return tomllib.loads(run(*argv, environment=installation.environment).stdout)


def assert_set_up(dump: dict[str, Any], installation: Installation) -> None:
    """Nix images work under this configuration."""
    plugins = dump["plugins"]
    assert dump["proxy_plugins"]["nix"]["type"] == "snapshot"
    assert dump["proxy_plugins"]["nix"]["address"] == str(daemon_config.Config().address)
    if installation.series == "2":
        cri = plugins["io.containerd.cri.v1.images"]
    else:
        cri = plugins["io.containerd.grpc.v1.cri"]["containerd"]
    assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("nix", False)
    if installation.series != "1.6":  # which has no transfer service
        (unpack,) = plugins["io.containerd.transfer.v1.local"]["unpack_config"]
        assert (unpack["platform"], unpack["snapshotter"]) == ("linux", "nix")


@pytest.mark.parametrize("version", [2, 3])
def test_nixos_containerd_settings(nixos, version):
    """The real containerd takes the settings, whichever version NixOS writes the file in, and keeps the rest of it."""
    configuration = f"""{{ lib, ... }}: {{ virtualisation.containerd = {{
      enable = true;
      nixSnapshotterIntegration = true;
      settings.version = lib.mkForce {version};
    }}; }}"""
    settings = "config.virtualisation.containerd.settings"
    file = nixos.build(configuration, f'(pkgs.formats.toml {{ }}).generate "containerd.toml" {settings}')
    for series in SERIES if version == 2 else ("2",):  # containerd 1.x knows no version 3
        installation = need_containerd(series)
        assert_set_up(containerd_dump(installation, file), installation)
    cri = nixos.evaluate(configuration, f'{settings}.plugins."io.containerd.grpc.v1.cri"')
    assert cri["cni"]["bin_dir"] == "/cni"


def test_home_does_nothing_unasked(home_manager):
    """Importing the module changes nothing."""
    value = (
        "{ inherit (config.systemd.user) services; inherit (config.xdg) configFile; inherit (config) home; }"
    )
    assert home_manager.evaluate("{ }", value) == {
        "services": {},
        "configFile": {},
        "home": {"packages": [], "sessionVariables": {}},
    }


def test_home_service(home_manager):
    """The unit joins containerd's namespaces, and comes and goes with it."""
    unit = home_manager.evaluate(ROOTLESS, "config.systemd.user.services.nix-snapshotter")
    assert unit["Service"]["Type"] == "notify"
    assert (
        unit["Unit"]["PartOf"]
        == unit["Unit"]["After"]
        == unit["Install"]["WantedBy"]
        == ["containerd.service"]
    )
    assert unit["Service"]["Environment"].startswith("PATH=/nix/store/")


def test_home_root_is_known_outside(home_manager):
    """Snapshots and GC roots lie where the host knows them by the same name."""
    file = home_manager.build(ROOTLESS, "config.services.nix-snapshotter.rootless.configFile")
    config = daemon_config.load(file, required=True, overrides={})
    assert str(config.root) == "/home/u/.local/share/nix-snapshotter"
    assert config.address == daemon_config.Config().address
    moved = ROOTLESS[:-1] + 'services.nix-snapshotter.rootless.settings.root = "/elsewhere"; }'
    file = home_manager.build(moved, "config.services.nix-snapshotter.rootless.configFile")
    assert tomllib.loads(file.read_text()) == {"root": "/elsewhere"}


def test_home_integration(home_manager, installation):
    """The configuration of rootless containerd is one that the real one takes."""
    file = home_manager.build(ROOTLESS_INTEGRATED, 'config.xdg.configFile."containerd/config.toml".source')
    assert_set_up(containerd_dump(installation, file), installation)
    value = "{ inherit (config.home) sessionVariables; inherit (config.services.nix-snapshotter.rootless) enable; }"
    assert home_manager.evaluate(ROOTLESS_INTEGRATED, value) == {
        "sessionVariables": {"CONTAINERD_SNAPSHOTTER": "nix"},
        "enable": True,
    }


class TestStartRootless:
    """The script that the user unit runs."""

    @pytest.fixture
    def start(self, home_manager, tmp_path):
        """Run it to its end in a runtime directory of the test's."""
        command = "config.systemd.user.services.nix-snapshotter.Service.ExecStart"
        script = home_manager.build(ROOTLESS, f'pkgs.runCommand "start" {{ }} "cp ${{{command}}} $out"')

        def start(**environment: str) -> subprocess.CompletedProcess[str]:
            return run(script, environment={"XDG_RUNTIME_DIR": str(tmp_path), **environment}, check=False)

        return start

    def test_without_containerd(self, start, tmp_path):
        """It says what is missing, and systemd tries again."""
        result = start()
        assert result.returncode != 0
        assert f"{tmp_path}/containerd-rootless/child_pid is not there" in result.stderr

    @pytest.mark.parametrize("detached", [False, True])
    def test_namespaces(self, start, tmp_path, detached):
        """It enters user, mount and network namespace of containerd's child, the last unless it is in it already."""
        state = tmp_path / "containerd-rootless"
        state.mkdir()
        child = str(os.getpid()) if detached else "4711"
        (state / "child_pid").write_text(child)
        words = start().stdout.split()
        assert words[0] == "nsenter"
        assert ("--net" in words) is not detached
        assert words[words.index("--target") + 1] == child
        assert re.search(r"/bin/nixsnap serve --config /nix/store/\S+$", " ".join(words))

    def test_needs_no_path(self, start, tmp_path):
        """All programs it calls are named in full: the unit's PATH holds what the service needs, and no more."""
        state = tmp_path / "containerd-rootless"
        state.mkdir()
        (state / "child_pid").write_text("4711")
        assert start(PATH="/nonexistent").stdout.startswith("nsenter ")
