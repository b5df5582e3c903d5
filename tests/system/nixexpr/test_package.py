"""The package, the overlay, default.nix, the flake and the examples."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from expressions import REPOSITORY, names_of, project
from lab import run


def test_package_follows_pyproject(nix):
    """Version, build requirements and dependencies are those of pyproject.toml."""
    arguments = nix.evaluate(
        """let given = pkgs.nixsnap.arguments; names = map (package: package.name); in {
          inherit (given) pname version pyproject;
          build = names given.build-system;
          run = names given.dependencies;
        }"""
    )
    said = project()
    assert arguments == {
        "pname": said["project"]["name"],
        "version": said["project"]["version"],
        "pyproject": True,
        "build": sorted(names_of(said["build-system"]["requires"])),
        "run": sorted(names_of(said["project"]["dependencies"])),
    }


def copy_checkout(directory: Path) -> Path:
    """Copy the part of the checkout that the Nix files read."""
    copy = directory / "checkout"
    copy.mkdir()
    for name in ("flake.nix", "default.nix", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("packaging", "examples", "nixsnap", "csrc", "protos"):
        shutil.copytree(
            REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("*.so", "*.o", "__pycache__")
        )
    shutil.rmtree(copy / "nixsnap/api", ignore_errors=True)
    (copy / "nixsnap/mounts/_core.c").unlink(missing_ok=True)
    return copy


def files_below(directory: Path) -> set[str]:
    """The files below a directory, by their paths relative to it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_source_is_what_the_build_reads(nix, tmp_path):
    """All that setup.py and pyproject.toml read is in the source, and nothing that a development install leaves."""
    checkout = copy_checkout(tmp_path)
    wanted = {
        path
        for path in files_below(checkout)
        if path.startswith(("nixsnap/", "csrc/", "protos/", "packaging/systemd/"))
    } | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    assert {"nixsnap/py.typed", "nixsnap/metadata/schema.sql", "csrc/core.cdef.h"} <= wanted
    left = (
        "api/snapshots_pb2.py",
        "mounts/_core.c",
        "mounts/_core.abi3.so",
        "__pycache__/config.cpython-311.pyc",
    )
    for name in left:
        (checkout / "nixsnap" / name).parent.mkdir(exist_ok=True)
        (checkout / "nixsnap" / name).touch()
    source = f'pkgs.runCommand "source" {{ }} "cp -r ${{(import {checkout} {{ }}).nixsnap.src}} $out"'
    assert files_below(nix.build(source)) == wanted


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("nix-snapshotter.service", "serve"),
        ("nixsnap-store-door.service", "store-door --idle-seconds 60"),
        ("nixsnap-store-door.socket", None),
    ],
)
def test_package_brings_its_units(nix, name, command):
    """The package's units run the package's own program."""
    package = nix.build("pkgs.nixsnap")
    unit = (package / "lib/systemd/system" / name).read_text().splitlines()
    started = [] if command is None else [f"ExecStart={package}/bin/nixsnap {command}"]
    assert [line for line in unit if line.startswith("ExecStart=")] == started
    ours = (REPOSITORY / "packaging/systemd" / name).read_text().splitlines()
    assert [line for line in unit if not line.startswith("ExecStart=")] == [
        line for line in ours if not line.startswith("ExecStart=")
    ]


def test_wrapper_adds_nix(nix):
    """Programs find nix-store even where it is not on PATH, but one that is comes first."""
    assert nix.evaluate("pkgs.nixsnap.arguments.makeWrapperArgs") == [
        "--suffix",
        "PATH",
        ":",
        nix.evaluate('"${pkgs.nix}/bin"'),
    ]


def test_functions_on_the_package(nix):
    """The functions are on the package under both its names."""
    assert (
        nix.evaluate(
            "map (package: lib.genAttrs [ ''buildImage'' ''copyToContainerd'' ''copyToRegistry'' ]"
            " (name: builtins.isFunction package.${name})) [ pkgs.nixsnap pkgs.nix-snapshotter ]"
        )
        == [{"buildImage": True, "copyToContainerd": True, "copyToRegistry": True}] * 2
    )
    alone = "(pkgs.nixsnap.copyToContainerd (buildImage { name = ''app''; })) { }"
    passthru = "(buildImage { name = ''app''; }).copyToContainerd { }"
    assert nix.evaluate(alone) == nix.evaluate(passthru)


def test_default_nix_builds(nix):
    """`nix-build -A nixsnap` in a checkout builds the package from the nixpkgs of NIX_PATH."""
    built = nix.build_file(REPOSITORY / "default.nix", "-A", "nixsnap")
    assert built == nix.build("pkgs.nixsnap")


def test_default_nix_takes_another_nixpkgs(nix):
    """Called with `pkgs` it takes those; what needs no nixpkgs is there without a call."""
    named = '(import repository { pkgs = import <nixpkgs> { } // { extend = _: { nixsnap = "mine"; }; }; }).nixsnap'
    assert nix.evaluate(named) == "mine"
    uncalled = "{ inherit (import repository) overlays nixosModules homeModules; }"
    called = "{ inherit (import repository { }) overlays nixosModules homeModules; }"
    names = "builtins.mapAttrs (_: builtins.attrNames)"
    expected = {name: ["default"] for name in ("overlays", "nixosModules", "homeModules")}
    assert nix.evaluate(f"{names} {uncalled}") == nix.evaluate(f"{names} {called}") == expected


class Flake:
    """The checkout's flake with our nixpkgs as its input, evaluated by Nix itself."""

    def __init__(self, nix, directory: Path) -> None:
        self.nix = nix
        self.path = copy_checkout(directory)  # Nix copies a path: flake into the store, whole

    def run(self, command: str, *arguments: str) -> str:
        """What `nix COMMAND` prints."""
        features = ("--extra-experimental-features", "nix-command flakes")
        inputs = ("--override-input", "nixpkgs", f"path:{self.nix.nixpkgs}", "--no-write-lock-file")
        environment = self.nix.environment | {"HOME": str(self.path.parent)}
        return run("nix", *features, *command.split(), *inputs, *arguments, environment=environment).stdout

    def evaluate(self, attribute: str, function: str):
        """What a function makes of an output."""
        return json.loads(self.run("eval", "--json", f"path:{self.path}#{attribute}", "--apply", function))


@pytest.fixture(scope="module")
def flake(nix, tmp_path_factory) -> Flake:
    return Flake(nix, tmp_path_factory.mktemp("flake"))


def test_flake_outputs(flake):
    """Its outputs are those that the documentation names, for both architectures."""
    shown = json.loads(flake.run("flake show", "--json", f"path:{flake.path}"))
    for system in ("aarch64-linux", "x86_64-linux"):
        assert set(shown["packages"][system]) == {"default", "nixsnap", "nix-snapshotter"}
        assert set(shown["apps"][system]) == {"default", "nixsnap", "nix2container"}
        assert {"nixsnap", "declarative-k8s", "redis"} <= set(shown["checks"][system])
    assert set(shown["overlays"]) == {"default"}
    assert set(shown["nixosModules"]) == {"default"}
    assert flake.evaluate("homeModules", "builtins.attrNames") == ["default"]


def test_flake_is_checked(flake):
    """`nix flake check` finds the outputs well formed and every check evaluates."""
    flake.run("flake check", "--no-build", f"path:{flake.path}")


def test_flake_apps_run(flake):
    """`nix run` runs both programs."""
    assert flake.run("run", f"path:{flake.path}", "--", "--version").startswith("nixsnap")
    ran = flake.run("run", f"path:{flake.path}#nix2container", "--", "--version")
    assert ran.startswith("nix2container")


def test_flake_overlay_and_modules(flake):
    """Overlay and modules are the checkout's, not some copy's."""
    assert flake.evaluate(
        "overlays.default", "overlay: builtins.attrNames (overlay { callPackage = 1; } { })"
    ) == [
        "nix-snapshotter",
        "nixsnap",
    ]
    for modules, file in (("nixosModules", "nixos-module.nix"), ("homeModules", "home-module.nix")):
        (module,) = flake.evaluate(f"{modules}.default.imports", "map toString")
        assert module.endswith(f"/packaging/nix/{file}")


@pytest.mark.parametrize(("name", "port"), [("redis", 6379), ("etcd", 2379)])
def test_declarative_kubernetes_example(nix, name, port):
    """The example makes a pod and a service; the pod's image is an archive in the store, which it keeps alive."""
    built = nix.build_file(REPOSITORY / "examples/declarative-k8s.nix", "--argstr", "name", name)
    pod, service = (
        json.loads((built / f"share/k8s/{name}-{kind}.json").read_text()) for kind in ("pod", "service")
    )
    (container,) = pod["spec"]["containers"]
    archive = Path(container["image"].removeprefix("nix:0"))
    assert archive.is_file()
    assert archive.name.endswith(f"-nix-image-{name}.tar")
    assert str(archive) in run("nix-store", "--query", "--requisites", built).stdout.split()
    assert container["ports"][0]["containerPort"] == service["spec"]["ports"][0]["port"] == port
    assert service["spec"]["selector"] == pod["metadata"]["labels"]


def test_image_examples(nix):
    """Every image and every script among the examples builds."""
    file = REPOSITORY / "examples/images.nix"
    names = set(nix.evaluate(f"builtins.attrNames (import {file} {{ }})"))
    assert names == {"redis", "redis-with-shell", "redis-as-user", "push", "load", "load-rootless"}
    run("nix-build", "--no-out-link", file, environment=nix.environment)


def test_usage_of_the_original(nix):
    """What the Go original's README shows works unchanged."""
    pod = nix.build(
        """let
          redis' = pkgs.nix-snapshotter.buildImage {
            name = "redis";
            resolvedByNix = true;
            config.entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
          };
        in pkgs.writeText "redis-pod.json" (builtins.toJSON {
          spec.containers = [ { image = "nix:0${redis'}"; } ];
        })"""
    )
    (container,) = json.loads(pod.read_text())["spec"]["containers"]
    assert Path(container["image"].removeprefix("nix:0")).is_file()


def test_changelog_has_the_version():
    """The changelog speaks of the version that pyproject.toml has."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (REPOSITORY / "CHANGELOG.md").read_text()
