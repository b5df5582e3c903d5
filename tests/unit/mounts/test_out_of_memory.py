"""What grows with its input ends with ENOMEM when it cannot grow, and nothing worse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trees import make_deep

SOURCE = Path(__file__).with_name("no_memory.c")


@pytest.fixture(scope="module")
def no_memory(tmp_path_factory) -> Path:
    """The library that makes large allocations fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("preload") / "no_memory.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library


def run(no_memory: Path, function: str, path: Path, *more: str) -> str:
    """Call a function of `filetrees` on a path (and more, in Python), and return the error it ends with."""
    program = f"""
import sys
from pathlib import Path
from nixsnap.mounts import filetrees
from nixsnap.mounts.values import IdMapping
try:
    filetrees.{function}({", ".join(["Path(sys.argv[1])", *more])})
except OSError as error:
    print(error)
"""
    preload = " ".join(filter(None, [str(no_memory), os.environ.get("LD_PRELOAD")]))
    environment = {**os.environ, "LD_PRELOAD": preload, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_the_set_of_inodes(no_memory, tmp_path):
    """It has 2048 slots of 16 bytes, three quarters filled, and may not have 4096."""
    for number in range(1540):
        (tmp_path / str(number)).touch()
    assert run(no_memory, "disk_usage", tmp_path) == f"malloc: Cannot allocate memory: '{tmp_path}'"


@pytest.mark.parametrize(
    "call", [("disk_usage",), ("remove_tree",), ("shift_owners", "IdMapping(uids=(), gids=())")]
)
def test_the_queue_of_directories(no_memory, tmp_path, call):
    """It has 32 KiB for names, and may not have 64."""
    for number in range(350):
        (tmp_path / f"{number:0100}" / "below").mkdir(parents=True)
    function, *more = call
    assert run(no_memory, function, tmp_path, *more) == f"malloc: Cannot allocate memory: '{tmp_path}'"


def test_the_levels_of_a_deep_tree(no_memory, in_memory):
    """There is room for 2048 levels of 24 bytes, and not for 4096."""
    make_deep(in_memory, 2100)
    error = run(no_memory, "remove_tree", in_memory)
    assert error == f"openat2: Cannot allocate memory: '{in_memory}' ('d')"
