"""Kinds of rootfs view other than the usual one, and what containerd makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Containerd, NixsnapDaemon, build_image, load_image
from lab.requirements import need_containerd

REFERENCE = "lab.invalid/app:1"

CONFIGURATIONS = {
    "overlay": 'store_view = "overlay"\n',
    "data-only": 'store_view = "data-only"\n',
    "bind": 'store_view = "bind"\n',
    "fuse": 'store_view = "fuse"\n',
    "read-only": "readonly_store = true\n",
    "read-only bind": 'store_view = "bind"\nreadonly_store = true\n',
}


@pytest.fixture(params=["1.7", "2"])
def installation(request: pytest.FixtureRequest):
    """Those that know mounts within mounts; 1.6 does not."""
    return need_containerd(request.param)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_containers_start(directory: Path, closure, installation, name: str):
    """A container of each kind sees its closure, exactly; it ends and leaves nothing mounted."""
    (directory / "nixsnap").mkdir()
    (directory / "containerd").mkdir()
    config = CONFIGURATIONS[name] + "[image_service]\nenable = false\n"
    nixsnap = NixsnapDaemon.start(directory / "nixsnap", config=config)
    containerd = Containerd.start(installation, directory / "containerd", snapshotter=nixsnap.address)
    try:
        load_image(containerd, build_image(closure, directory / "app.tar", reference=REFERENCE))
        script = f"ls /nix/store; cat /nix/store/*-dep-2/share/f; echo x > {closure.top}/x && echo written"
        result = containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script, check=False)
        *listed, content = [line for line in result.stdout.splitlines() if line != "written"]
        assert listed == sorted(Path(path).name for path in closure.paths), result.stderr
        assert content == "2 "
        assert ("written" in result.stdout) == (name in {"overlay", "data-only"})
    finally:
        containerd.stop()
        nixsnap.destroy()
