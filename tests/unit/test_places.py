"""Default paths: the system's for root, XDG's for a plain user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixsnap import places
from nixsnap.config import Config

HOST = "         0          0 4294967295\n"
ROOTLESSKIT = "         0       1000          1\n         1     100000      65536\n"
LXC = "         0     100000      65536\n"
SESSION = {"XDG_RUNTIME_DIR": "/run/user/1000"}


@pytest.mark.parametrize(
    ("uid", "uid_map", "environment", "expected"),
    [
        (0, HOST, {}, False),
        (0, HOST, {"XDG_RUNTIME_DIR": "/run/user/0"}, False),
        (0, HOST, SESSION, False),  # sudo may keep a user's variables
        (1000, HOST, {}, True),
        (0, ROOTLESSKIT, SESSION, True),
        (0, LXC, {}, False),  # a service of a whole system in a user namespace
        (0, LXC, {"XDG_RUNTIME_DIR": "/run/user/0"}, False),  # and its root, logged in
        (1000, LXC, SESSION, True),
    ],
)
def test_who_is_rootless(uid, uid_map, environment, expected):
    """Plain users, and root of a namespace that one of them made."""
    assert places.is_rootless(uid, uid_map=uid_map, environment=environment) is expected


@pytest.mark.parametrize(("uid_map", "uid"), [(HOST, 0), (ROOTLESSKIT, 1000), (LXC, 100000), ("", 0)])
def test_owner(uid_map, uid):
    """Who root of a namespace is outside."""
    assert places.owner(uid_map) == uid


def test_user_places():
    """XDG's directories below the home; the socket where the session's other sockets are."""
    found = places.user_places({"HOME": "/home/u", **SESSION})
    assert found == places.Places(
        config=Path("/home/u/.config/nix-snapshotter/config.toml"),
        address=Path("/run/user/1000/nix-snapshotter/nix-snapshotter.sock"),
        root=Path("/home/u/.local/share/nix-snapshotter"),
        containerd_address=Path("/run/user/1000/containerd/containerd.sock"),
    )


def test_xdg_variables():
    """They move the directories, except where they are relative: those do not count, says the specification."""
    environment = {"HOME": "/home/u", "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "c", **SESSION}
    found = places.user_places(environment)
    assert found.root == Path("/d/nix-snapshotter")
    assert found.config == Path("/home/u/.config/nix-snapshotter/config.toml")


def test_no_runtime_directory():
    """Without a session the directory is the one that logind would have made."""
    found = places.user_places({"HOME": "/home/u"})
    assert found.address == Path(f"/run/user/{os.geteuid()}/nix-snapshotter/nix-snapshotter.sock")


def test_configuration_takes_them(monkeypatch):
    """The daemon's configuration defaults to the places of whoever runs it."""
    monkeypatch.setattr(places.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    config = Config()
    assert config.root == Path("/home/u/.local/share/nix-snapshotter")
    assert config.address == Path("/run/user/1000/nix-snapshotter/nix-snapshotter.sock")
    assert config.image_service.containerd_address == Path("/run/user/1000/containerd/containerd.sock")
