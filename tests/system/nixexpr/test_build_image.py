"""`buildImage`: what is in an image's archive, and what the store knows of it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from lab import CommandError
from lab.nix import nix_store

CLOSURE = "containerd.io/snapshot/nix-closure"
LAYER = "containerd.io/snapshot/nix-layer"
STORE_PATH = "containerd.io/snapshot/nix-store-path."


@attrs.frozen(kw_only=True)
class Image:
    """An archive, read."""

    name: str
    config: dict[str, Any]
    layers: list[dict[str, Any]]

    @classmethod
    def read(cls, archive: Path) -> Image:
        """Read an archive of one image."""
        with tarfile.open(archive) as tar:

            def load(name: str) -> dict[str, Any]:
                return json.load(tar.extractfile(name))

            (entry,) = load("index.json")["manifests"]
            manifest = load("blobs/" + entry["digest"].replace(":", "/"))
            config = load("blobs/" + manifest["config"]["digest"].replace(":", "/"))
        name = entry["annotations"]["io.containerd.image.name"]
        return cls(name=name, config=config, layers=manifest["layers"])

    @property
    def run_config(self) -> dict[str, Any]:
        """What a container runs with."""
        return self.config["config"]

    def closure(self, layer: int = -1) -> list[str]:
        """The store paths of a layer, as its closure annotation lists them."""
        info = self.layers[layer].get("annotations", {}).get(CLOSURE)
        if info is None:
            return []
        return (Path(info) / "store-paths").read_text().split()


def requisites(path: str | Path) -> set[str]:
    """A store path's closure, as Nix counts it."""
    return set(nix_store("--query", "--requisites", str(path)))


@pytest.fixture(scope="module")
def redis(nix) -> Path:
    """The closure of the program that the images here run."""
    return nix.build("pkgs.redis")


def test_image_names_its_closure(nix, redis):
    """What the config names is the image's closure, whole; the layer says so by a closureInfo of the store."""
    archive = nix.build(
        'buildImage { name = "redis"; config.entrypoint = [ "${pkgs.redis}/bin/redis-server" ]; }'
    )
    image = Image.read(archive)
    assert image.name == "docker.io/library/redis:latest"
    assert image.run_config == {"Entrypoint": [f"{redis}/bin/redis-server"]}
    assert set(image.closure()) == requisites(redis)
    assert list(image.layers[0]["annotations"]) == [CLOSURE]


def test_archive_keeps_its_closure(nix, redis):
    """Nix knows that the archive refers to its store paths: a root on it keeps them, and a copy brings them along."""
    archive = nix.build(
        'buildImage { name = "redis"; config.entrypoint = [ "${pkgs.redis}/bin/redis-server" ]; }'
    )
    assert requisites(redis) < requisites(archive)


def test_config_file_is_no_part_of_the_closure(nix):
    """Neither the image nor what Nix keeps for it holds the file that the config was read from."""
    image = (
        'buildImage { name = "redis"; config.env = [ "REDIS=${pkgs.redis}" ]; copyToRoot = pkgs.coreutils; }'
    )
    archive = nix.build(image)
    assert not [path for path in Image.read(archive).closure() if "config-" in path]
    assert not [path for path in requisites(archive) if "config-" in path]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ('name = "lab.invalid/team/app"; tag = "1.2";', "lab.invalid/team/app:1.2"),
        ('name = "lab.invalid:5000/App";', "lab.invalid:5000/app:latest"),
        ('name = "app";', "docker.io/library/app:latest"),
    ],
)
def test_image_name(nix, arguments, name):
    """Name and tag make the reference, in lower case as registries want it."""
    assert Image.read(nix.build(f"buildImage {{ {arguments} }}")).name == name


@pytest.mark.parametrize(
    ("name", "store_name"),
    [
        ("redis", "nix-image-redis.tar"),
        ("lab.invalid/team/redis-7.2", "nix-image-redis-7.2.tar"),
        ("Redis", "nix-image-redis.tar"),
        ("c++_app.", "nix-image-c-app.tar"),
    ],
)
def test_image_resolved_by_nix(nix, name, store_name):
    """The archive goes by its own store path, whatever the name; `image` is that reference for a pod spec."""
    image = f'buildImage {{ name = "{name}"; resolvedByNix = true; config.env = [ "A=${{pkgs.redis}}" ]; }}'
    archive = nix.build(image)
    assert archive.name.partition("-")[2] == store_name
    assert Image.read(archive).name == f"nix:0{archive}:latest"
    assert nix.evaluate(f"({image}).image") == f"nix:0{archive}"
    assert nix.evaluate(f'"nix:0${{{image}}}"') == f"nix:0{archive}"


def test_passthru(nix):
    """An image that a registry serves says its name for a pod spec, and the parts of it."""
    image = 'buildImage { name = "lab.invalid/App"; tag = "2"; }'
    assert nix.evaluate(f"with {image}; [ image name tag ]") == ["lab.invalid/app:2", "lab.invalid/App", "2"]


def test_lower_camel_case_config(nix):
    """Nix users' spelling of the config's names is taken, and OCI's is written."""
    archive = nix.build(
        """buildImage {
          name = "app";
          config = {
            entrypoint = [ "/bin/a" "b c" ];
            cmd = [ "\\"quoted\\" $HOME" ];
            env = [ "A=b" ];
            workingDir = "/tmp";
            exposedPorts."80/tcp" = { };
            user = "nobody";
          };
        }"""
    )
    assert Image.read(archive).run_config == {
        "Cmd": ['"quoted" $HOME'],
        "Entrypoint": ["/bin/a", "b c"],
        "Env": ["A=b"],
        "ExposedPorts": {"80/tcp": {}},
        "User": "nobody",
        "WorkingDir": "/tmp",
    }


def test_copy_to_root(nix):
    """The content of one derivation or of several shows at the image's root, and is in its closure."""
    one = Image.read(nix.build('buildImage { name = "app"; copyToRoot = pkgs.redis; }'))
    assert set(one.closure()) == requisites(nix.build("pkgs.redis"))
    several = nix.build('buildImage { name = "app"; copyToRoot = [ pkgs.redis pkgs.etcd ]; }')
    assert set(Image.read(several).closure()) == requisites(nix.build("pkgs.redis")) | requisites(
        nix.build("pkgs.etcd")
    )
    with tarfile.open(several) as tar:
        layer = "blobs/" + Image.read(several).layers[0]["digest"].replace(":", "/")
        with tarfile.open(fileobj=tar.extractfile(layer)) as content:
            links = {member.name.lstrip("./"): member.linkname for member in content if member.issym()}
    assert links == {
        "bin/redis-server": f"{nix.build('pkgs.redis')}/bin/redis-server",
        "bin/etcd": f"{nix.build('pkgs.etcd')}/bin/etcd",
    }


def test_from_image(nix):
    """Upon another Nix image there is a layer more; the base's keeps its closure, and so does the archive."""
    base = 'buildImage { name = "base"; copyToRoot = pkgs.redis; config.env = [ "A=1" "B=1" ]; }'
    archive = nix.build(
        f'buildImage {{ name = "app"; fromImage = {base}; copyToRoot = pkgs.etcd; config.env = [ "B=2" ]; }}'
    )
    image = Image.read(archive)
    redis, etcd = requisites(nix.build("pkgs.redis")), requisites(nix.build("pkgs.etcd"))
    assert [set(image.closure(number)) for number in range(2)] == [redis, etcd]
    assert image.run_config == {"Env": ["A=1", "B=2"]}
    assert redis | etcd < requisites(archive)


def test_annotation_forms(nix, redis):
    """`annotations` chooses how the layer names its closure."""

    def annotations(form: str) -> dict[str, str]:
        archive = nix.build(
            f'buildImage {{ name = "app"; annotations = "{form}"; copyToRoot = pkgs.redis; }}'
        )
        return Image.read(archive).layers[0]["annotations"]

    legacy = annotations("legacy")
    assert legacy.pop(LAYER) == "true"
    assert sorted(legacy) == [f"{STORE_PATH}{number}" for number in range(len(legacy))]
    assert set(legacy.values()) == requisites(redis)
    both = annotations("both")
    assert set(both) == {CLOSURE, LAYER, *legacy}


def test_platform(nix):
    """The image is for the platform asked for; by default for this machine's."""
    asked = Image.read(nix.build('buildImage { name = "app"; platform = "linux/arm/v7"; }'))
    assert [asked.config.get(key) for key in ("os", "architecture", "variant")] == ["linux", "arm", "v7"]
    default = Image.read(nix.build('buildImage { name = "app"; }'))
    assert default.config["os"] == "linux"
    assert default.config["architecture"] != "arm"


def test_cross_build(nix):
    """A cross nixpkgs makes images for where its packages run, with the tool of the machine that builds."""
    crossed = """(import <nixpkgs> {
        system = "x86_64-linux";
        crossSystem = "aarch64-linux";
        overlays = [ (import repository).overlays.default ];
      })"""
    script = nix.evaluate(f'({crossed}.nixsnap.buildImage {{ name = "app"; }}).script')
    assert "--platform linux/arm64" in script.replace("'", "")
    native = """(import <nixpkgs> {
        system = "x86_64-linux";
        overlays = [ (import repository).overlays.default ];
      }).nixsnap"""
    assert f"{nix.evaluate(native)}/bin/nix2container build" in script


def test_image_without_a_closure(nix):
    """An image that only adds a config to its base has an empty closure."""
    archive = nix.build('buildImage { name = "app"; config.env = [ "A=b" ]; }')
    assert Image.read(archive).closure() == []


def test_images_are_reproducible(nix):
    """Building an archive once more gives the same bytes."""
    image = 'buildImage { name = "app"; resolvedByNix = true; copyToRoot = pkgs.redis; }'
    archive = nix.build(image)
    nix_store("--realise", "--check", nix.evaluate(f"({image}).drvPath"))
    assert archive.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ('config.entrypint = [ "a" ];', "'entrypint', which OCI's image config has not"),
        ('config.env = "A=b";', "config.env"),
        ('copyToRoot = "/etc";', "/etc"),
        ('tag = "a b";', "is not a tag"),
        ('annotations = "none";', "--annotations"),
        ('platform = "linux";', "linux"),
        ("fromImage = pkgs.redis;", "redis"),
        ("unknown = 1;", "unexpected argument 'unknown'"),
    ],
)
def test_bad_arguments(nix, arguments, complaint):
    """The build fails, and its words name the thing."""
    with pytest.raises(CommandError) as raised:
        nix.build(f'buildImage {{ name = "app"; {arguments} }}')
    assert complaint in str(raised.value)
