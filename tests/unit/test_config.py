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
        ('store_view = "fusion"', "'store_view': 'fusion' is not a valid StoreView"),
        ("readonly_store = 1", "'readonly_store': must be true or false"),
        ("nix = 1", "'nix' must be a table"),
        ("[nix]\nmax-jobs = 1", "unknown key 'nix.max-jobs'"),
        ("[nix]\nmax_jobs = 0", "'nix.max_jobs': must be 1 or more, not 0"),
        ("[nix]\nmax_jobs = true", "'nix.max_jobs': must be a whole number"),
        ('[nix]\nsubstituters = "https://a"', "'nix.substituters': must be a list of strings"),
        ('[nix]\nsubstituters = ["a b"]', "'nix.substituters': must have no white space"),
        ('[nix]\nextra_options = { "a b" = "c" }', "'nix.extra_options': is no setting of Nix: 'a b'"),
        ('[nix]\nextra_options = { a = "b\\nc" }', "'nix.extra_options': is no setting of Nix: 'a'"),
        ("[nix]\nextra_options = { a = [] }", "'nix.extra_options': must have strings"),
        ("[nix]\nextra_options = 3", "'nix.extra_options': must be a table"),
        ("[nix]\nstall_seconds = -1", "'nix.stall_seconds': must be 0 or more"),
        ('[nix]\ngrace_seconds = "1"', "'nix.grace_seconds': must be a number of seconds"),
        ('[nix]\nnetrc_file = "netrc"', "'nix.netrc_file': must be an absolute path"),
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


def test_nix_table(tmp_path):
    """Settings of Nix keep their names; numbers and booleans are written as Nix reads them."""
    path = write(
        tmp_path,
        '[nix]\nsubstituters = ["https://cache.example"]\nnetrc_file = "/run/netrc"\nstall_seconds = 5\n'
        '[nix.extra_options]\nconnect-timeout = 3\nfallback = false\naccess-tokens = "github.com=x y=z"\n',
    )
    nix = load(path, required=True, overrides={}).nix
    assert nix.substituters == ("https://cache.example",)
    assert nix.netrc_file == Path("/run/netrc")
    assert nix.stall_seconds == 5.0
    assert nix.extra_options == (
        ("connect-timeout", "3"),
        ("fallback", "false"),
        ("access-tokens", "github.com=x y=z"),
    )
