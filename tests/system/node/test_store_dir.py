"""A store whose directory is not /nix/store (`store_dir`): a real one, built by a Nix that was told so."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from lab import NixsnapDaemon, run
from lab.nix import nix_environment, write_busybox_tree
from lab.recipes import EXPRESSION
from rpc import connect, files, refused, store_path_labels


@pytest.mark.parametrize("access", ["auto", "program"])
def test_store_of_another_name(directory: Path, access: str):
    """Nix is asked about that store without being told of it by anyone else, and containers see it by its name."""
    store_dir = directory / "own/store"
    environment = nix_environment() | {"NIX_STATE_DIR": str(directory / "own/var/nix")}
    write_busybox_tree(directory / "busybox")
    built = run(
        "nix-build", "--no-out-link", EXPRESSION,
        "--arg", "busybox", directory / "busybox", "--argstr", "name", "elsewhere",
        environment=environment | {"NIX_STORE_DIR": str(store_dir)},
    ).stdout.strip()  # fmt: skip
    references = ["nix-store", "--query", "--requisites", built]
    paths = run(*references, environment=environment | {"NIX_STORE_DIR": str(store_dir)}).stdout.split()
    assert len(paths) == 2
    (busybox,) = store_dir.glob("*-busybox-static")
    paths.append(str(busybox))
    (directory / "n").mkdir()
    config = f'store_dir = "{store_dir}"\n[image_service]\nenable = false\n[nix]\naccess = "{access}"\n'
    daemon = NixsnapDaemon.start(directory / "n", config=config, environment=environment)
    try:
        with connect(daemon.address) as rpc:
            rpc.nix_layer("image", paths)
            seen = files(rpc.prepare("container", "image"))
            script = f"cat {built}/share/needs; ls {store_dir}"
            inside = run(
                "chroot", seen, f"{busybox}/bin/sh", "-c", f"PATH={busybox}/bin; {script}"
            ).stdout.split()
            assert inside == [paths[0], *sorted(Path(path).name for path in paths)]
            roots = [root.readlink() for root in (daemon.root / "gcroots/1").iterdir() if root.is_symlink()]
            assert set(map(str, roots)) == {built, str(busybox)}
            with refused(grpc.StatusCode.INVALID_ARGUMENT, f"not a store path in {store_dir}"):
                rpc.prepare("other", labels=store_path_labels([f"/nix/store/{'a' * 32}-x"]))
    finally:
        daemon.destroy()
