"""The configuration: defaults, file, flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixsnap.config import Config, StoreView, load
from nixsnap.errors import InvalidArgumentError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_go_originals():
    """Address, root and containerd's address are those of pkg/config/config.go of pdtpartners/nix-snapshotter."""
    config = Config()
    assert str(config.address) == "/run/nix-snapshotter/nix-snapshotter.sock"
    assert str(config.root) == "/var/lib/containerd/io.containerd.snapshotter.v1.nix"
    assert config.image_service.enable
    assert str(config.image_service.containerd_address) == "/run/containerd/containerd.sock"
    assert config.external_builder is None


def test_file_and_flags_override_in_that_order(tmp_path):
    """The file is put over the defaults and flags over the file."""
    path = write(
        tmp_path,
        'address = "/a/s.sock"\nroot = "/b"\nexternal_builder = ""\nstore_view = "bind"\n'
        "[image_service]\nenable = false\n",
    )
    config = load(path, required=True, overrides={"root": "/c"})
    assert (config.address, config.root) == (Path("/a/s.sock"), Path("/c"))
    assert config.external_builder is None
    assert config.store_view is StoreView.BIND
    assert config.image_service.enable is False


def test_missing_default_file_means_defaults(tmp_path):
    """Only a file that was asked for by name has to exist."""
    assert load(tmp_path / "none.toml", required=False, overrides={}) == Config()
    with pytest.raises(InvalidArgumentError, match=r"none\.toml.*does not exist"):
        load(tmp_path / "none.toml", required=True, overrides={})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('adress = "/x"', "unknown key 'adress'"),
        ("[image_service]\nenabled = true", "unknown key 'image_service.enabled'"),
        ("image_service = 3", "'image_service' must be a table"),
        ('root = "relative"', "'root': must be an absolute path, not 'relative'"),
        ('root = "/a:b"', "'root': must not contain ':'"),
        ("root = 5", "'root': must be a string"),
        ('store_view = "fuse"', "'store_view': 'fuse' is not a valid StoreView"),
        ("readonly_store = 1", "'readonly_store': must be true or false"),
        ("root = ", "Invalid value"),
        ("\x00", "Invalid statement"),
    ],
)
def test_bad_file_names_the_key(tmp_path, text, words):
    """A mistake in the file is an error that names file, key and what is wrong."""
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgumentError) as raised:
        load(path, required=True, overrides={})
    assert words in raised.value.message
    assert str(path) in raised.value.message


def test_bad_flag_names_the_flag():
    """A mistake in a flag names the flag, not the file."""
    with pytest.raises(InvalidArgumentError, match="flag --root: must be an absolute path"):
        load(Path("/nonexistent/c.toml"), required=False, overrides={"root": "here"})


def test_store_elsewhere():
    """`store_root` is a prefix of where the store lies, and changes nothing of what containers see."""
    config = load(
        Path("/nonexistent"), required=False, overrides={"store_root": "/home/u/.local/share/nix/root"}
    )
    assert str(config.host_store) == "/home/u/.local/share/nix/root/nix/store"
    assert str(config.store_dir) == "/nix/store"
