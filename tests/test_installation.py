"""What `pip install .` made: one abi3 wheel that needs no compiler and no checkout."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = ("nixsnap", "nix-snapshotter", "nix2container")


@pytest.fixture(scope="module")
def installed() -> Distribution:
    """The installed distribution; these tests are about a wheel, not about a checkout in development."""
    found = distribution("nixsnap")
    if '"editable": true' in (found.read_text("direct_url.json") or ""):
        pytest.skip("this environment lacks a built nixsnap: it is installed in development mode")
    return found


def test_wheel_is_abi3(installed: Distribution):
    """One wheel serves every CPython from 3.11 on."""
    tags = [line for line in installed.read_text("WHEEL").splitlines() if line.startswith("Tag: ")]
    assert tags
    assert all(tag.startswith("Tag: cp311-abi3-linux_") for tag in tags), tags


def test_extension_uses_stable_abi(installed: Distribution):
    """The extension module is the one compiled file, and its name promises the stable ABI."""
    compiled = [str(file) for file in installed.files if ".so" in file.suffixes]
    assert compiled == ["nixsnap/mounts/_core.abi3.so"]


def test_package_is_complete(installed: Distribution):
    """Type marker, schema and every generated module are in the wheel; C and proto sources are not."""
    names = {str(file) for file in installed.files}
    schemas = {f"nixsnap/metadata/{path.name}" for path in REPOSITORY.glob("nixsnap/metadata/*.sql")}
    services = {path.stem for path in REPOSITORY.glob("protos/nixsnap/api/*.proto")}
    generated = {f"nixsnap/api/{service}_pb2{suffix}" for service in services for suffix in (".py", ".pyi")}
    assert {"nixsnap/py.typed"} | schemas | generated <= names
    assert not [name for name in names if name.endswith((".c", ".h", ".proto"))]


def test_imports_without_a_checkout(installed: Distribution):
    """Every module imports from the installation, in a directory that holds nothing of ours."""
    modules = sorted(
        str(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in installed.files
        if file.suffix == ".py" and file.name != "__main__.py" and file.parts[0] == "nixsnap"
    )
    script = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", script], cwd="/", check=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_helps(installed: Distribution, program: str):
    """Each console script is installed and explains itself on standard output."""
    assert program in installed.entry_points.names
    command = [Path(sys.executable).parent / program, "--help"]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert result.stdout.lower().startswith("usage:")
    assert result.stderr == ""
