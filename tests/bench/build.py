"""Building the image of a large closure, beside the Go original's tool where the lab has it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from lab import Closure, Workspace, installed_program
from lab.cache import unpacked_program

from bench.closures import Closures
from bench.results import Series, Unit
from bench.sampling import Sample, interleaved, seconds
from bench.settings import Settings

PATHS = 5000
ROUNDS = 10
_HIGH_WATER = re.compile(r"VmHWM:\s*(\d+) kB")


@attrs.frozen
class Builder:
    """A tool that builds images."""

    program: Path
    words: Sequence[str]

    def build(self) -> None:
        """Build once."""
        subprocess.run([self.program, *self.words], stderr=subprocess.DEVNULL, check=True)

    def peak_bytes(self) -> float:
        """Build once; return the most memory that the process was seen to have.

        Looked up while it runs: what wait4(2) tells of a process begins with what its parent had when it forked.
        """
        peak = 0
        with subprocess.Popen([self.program, *self.words], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
                peak = max([peak, *(int(kib) << 10 for kib in _HIGH_WATER.findall(text))])
                time.sleep(0.001)
        if process.returncode != 0:
            raise RuntimeError(f"{self.program} build: status {process.returncode}")
        return peak


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """`nix2container build`, as a whole process, of the same closure, config and root by each tool."""
    directory = workspace.subdirectory()
    words = _words(directory, closures.of(PATHS))
    builders = {"nixsnap": Builder(installed_program("nix2container"), words)}
    if original := unpacked_program("original/nix2container"):
        builders["original"] = Builder(original, words)
    variants: dict[str, Sample] = {
        name: functools.partial(seconds, builder.build) for name, builder in builders.items()
    }
    for name, samples in interleaved(variants, rounds=settings.rounds(ROUNDS)).items():
        yield Series(name=f"build/{name}", unit=Unit.SECONDS, samples=samples)
        yield Series(name=f"build/memory-{name}", unit=Unit.BYTES, samples=[builders[name].peak_bytes()])


def _words(directory: Path, closure: Closure) -> list[str]:
    for name, value in (("config", {"Cmd": [f"{closure.top}/bin/sh"]}), ("roots", [closure.top])):
        (directory / f"{name}.json").write_text(json.dumps(value))
    inputs = {
        "--config": directory / "config.json",
        "--copy-to-root": directory / "roots.json",
        "--closure": closure.store_paths_file,
        "--ref": "bench.invalid/build:1",
    }
    flags = [str(word) for pair in inputs.items() for word in pair]
    return ["build", *flags, str(directory / "image.tar")]
