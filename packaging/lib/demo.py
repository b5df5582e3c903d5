"""The body of packaging/demo: a Nix image in a real container, said aloud step by step."""

# ruff: noqa: INP001, T201 - a program that prints, not a module of a package

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/system"))

from lab import (
    Closure,
    CommandError,
    Containerd,
    NixsnapDaemon,
    Workspace,
    build_image,
    build_plain_image,
    containerd_series,
    load_image,
    mounts_below,
    newest_containerd,
    nix_closure,
)
from lab.cache import LAB_DIRECTORY
from lab.nix import delete_closure

DEPENDENCIES = 200
RUNS = 11
NIX_IMAGE = "demo.invalid/nix:latest"
PLAIN_IMAGE = "demo.invalid/plain:latest"


def step(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def show(text: str) -> None:
    """Print what a command printed, indented."""
    for line in text.rstrip("\n").splitlines():
        print(f"   {line}", flush=True)


def medians_ms(*actions: Callable[[], object]) -> list[float]:
    """How long each action took, as the median of RUNS, in milliseconds; taken in turn, so that load hits all alike."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(RUNS):
        for action, taken in zip(actions, times, strict=True):
            started = time.perf_counter()
            action()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) * 1000 for taken in times]


def run_shown(containerd: Containerd, script: str) -> str:
    """Run a shell script in a container of the Nix image, showing command and output."""
    words = ("run", "--rm", "--snapshotter", "nix", NIX_IMAGE, "demo", "sh", "-c", script)
    show(f"$ ctr {shlex.join(words)}")
    output = containerd.run(NIX_IMAGE, "sh", "-c", script).stdout
    show(output)
    return output


def show_images(containerd: Containerd, closure: Closure, directory: Path) -> None:
    """Build and load the Nix image, and a plain one of the same busybox."""
    step("Building an image of that closure and loading it into containerd")
    show(f"$ nix2container build --closure {closure.info}/store-paths --ref {NIX_IMAGE} … nix.tar")
    archive = build_image(closure, directory / "nix.tar", reference=NIX_IMAGE)
    show(f"{archive.stat().st_size:,} bytes: it names the store paths and holds none of their files")
    show(f"$ nix2container --address {containerd.address} load nix.tar")
    load_image(containerd, archive)
    plain = build_plain_image(directory / "plain.tar", reference=PLAIN_IMAGE)
    show("$ ctr image import --snapshotter overlayfs plain.tar    # the same busybox as an ordinary layer")
    containerd.ctr("image", "import", "--snapshotter", "overlayfs", plain)


def show_container(containerd: Containerd, closure: Closure) -> None:
    """Show from inside a container that it sees exactly its closure and may write."""
    step("Inside a container of it")
    output = run_shown(containerd, "ls /nix/store | head -n 4; echo …; ls /nix/store | wc -l")
    if output.split()[-1] != str(len(closure.paths)):
        raise SystemExit(
            f"the container should see the {len(closure.paths)} paths of its closure, no more, no less"
        )
    victim = f"{closure.top}/dependencies"
    run_shown(containerd, f"echo hello > /greeting; cat /greeting; echo mine > {victim}; cat {victim}")
    if Path(victim).read_text() == "mine\n":
        raise SystemExit("a container wrote into the host's store")
    show(f"(the host's {victim} is what it was: the container wrote to its own copy)")


def show_mounts(containerd: Containerd, closure: Closure, directory: Path) -> None:
    """Show the mounts that a running container has on the host."""
    step("Mounts on the host while such a container runs")
    containerd.collect_garbage()  # else the snapshots of the containers just removed may still be there
    container = containerd.start_container(NIX_IMAGE, "sleep", "600")
    own = mounts_below(directory)
    for mount in own:
        show(f"{mount.fs_type:8} {mount.point}")
    show(f"{len(own)} mounts; with a bind mount for each store path it would be {len(closure.paths) + 1}")
    containerd.remove_container(container)


def show_times(containerd: Containerd, closure: Closure) -> None:
    """Time a container's start to exit against the plain image."""
    step(f"Start to exit of a container, median of {RUNS} runs")
    plain, nix = medians_ms(
        lambda: containerd.run(PLAIN_IMAGE, "true", snapshotter="overlayfs"),
        lambda: containerd.run(NIX_IMAGE, "true"),
    )
    show(f"plain image on containerd's overlayfs     {plain:7.1f} ms")
    show(f"Nix image of {len(closure.paths)} store paths on nixsnap   {nix:7.1f} ms   x {nix / plain:.2f}")


def demonstrate(directory: Path, closure: Closure) -> None:
    """Start a private node, show everything, and stop it."""
    installation = containerd_series("1.7") or newest_containerd()
    step(f"Starting a private nixsnap, and containerd {installation.version} with it as snapshotter `nix`")
    for name in ("nixsnap", "containerd"):
        (directory / name).mkdir()
    nixsnap = NixsnapDaemon.start(directory / "nixsnap", log_level="info")
    try:
        show(f"$ nixsnap serve --root {nixsnap.root} --address {nixsnap.address}")
        show(
            f"serving after {nixsnap.ready_seconds * 1000:.0f} ms, {nixsnap.resident_bytes() / 2**20:.0f} MiB"
        )
        containerd = Containerd.start(installation, directory / "containerd", snapshotter=nixsnap.address)
        try:
            show_images(containerd, closure, directory)
            show_container(containerd, closure)
            show_mounts(containerd, closure, directory)
            show_times(containerd, closure)
        finally:
            containerd.stop()
    finally:
        nixsnap.destroy()


def main() -> None:
    """Run the demo in a workspace of its own, and see that it leaves nothing."""
    with Workspace.create() as workspace:
        step(f"Building a closure with Nix: an application and {DEPENDENCIES} dependencies, without nixpkgs")
        closure = nix_closure(DEPENDENCIES, salt=str(time.time_ns()), name="demo")
        try:
            show(f"{closure.top}")
            show(f"{len(closure.paths)} store paths, listed in {closure.store_paths_file}")
            demonstrate(workspace.path, closure)
        finally:
            delete_closure(closure)
    step("Cleaned up")
    left = [str(mount.point) for mount in mounts_below(workspace.path)]
    if left or workspace.path.exists():
        raise SystemExit(f"left behind: {workspace.path} {left}")
    show("no mount, no process, no file and no store path of this demo is left;")
    show(f"its programs stay in {LAB_DIRECTORY} for the next run")


if __name__ == "__main__":
    try:
        main()
    except CommandError as error:
        raise SystemExit(f"demo: {error}") from None
