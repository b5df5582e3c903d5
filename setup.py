"""Builds what pyproject.toml cannot describe: the protobuf code and the cffi module.

Neither is committed. Both are made here, from `protos/` and `csrc/`, so that `pip install .` in a clean
checkout is the whole build.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1 leaves the command to the wheel package
    from wheel.bdist_wheel import bdist_wheel  # type: ignore[no-redef]

HERE = Path(__file__).parent


def generate_protobuf(out: Path) -> list[str]:
    """Compile every file under protos/ to Python, gRPC stubs and type stubs below `out`.

    Returns the generated files, relative to `out`.
    """
    from importlib.resources import files  # noqa: PLC0415 - build requirements are not there for `--version`

    from grpc_tools import protoc  # noqa: PLC0415

    sources = sorted(HERE.glob("protos/nixsnap/api/*.proto"))
    # protoc-gen-mypy* are console scripts; PATH may not hold the build environment's own.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (Path(sys.executable).parent / name).exists()
    ]
    out.mkdir(parents=True, exist_ok=True)
    arguments = [
        "protoc",
        f"-I{HERE / 'protos'}",
        f"-I{files('grpc_tools') / '_proto'}",
        *plugins,
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *map(str, sources),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")
    (out / "nixsnap/api/__init__.py").write_text('"""Generated from protos/ by setup.py; do not edit."""\n')
    suffixes = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    generated = [f"nixsnap/api/{source.stem}{suffix}" for source in sources for suffix in suffixes]
    return [*(name for name in generated if (out / name).exists()), "nixsnap/api/__init__.py"]


class BuildPy(build_py):
    """build_py that makes the protobuf modules first."""

    def run(self) -> None:
        """Generate beside the sources for an editable install, else into the build directory."""
        self._generated = generate_protobuf(HERE if self.editable_mode else Path(self.build_lib))
        super().run()

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:  # noqa: FBT001, FBT002 - setuptools' signature
        """Name the generated files too, so that they get into the wheel's record."""
        generated = [str(Path(self.build_lib) / name) for name in getattr(self, "_generated", [])]
        return sorted({*super().get_outputs(include_bytecode), *generated})


class BdistWheel(bdist_wheel):
    """bdist_wheel that tags the wheel abi3: the cffi module keeps to the limited API of CPython 3.11."""

    def finalize_options(self) -> None:
        """Set the tag before the file name is made from it."""
        self.py_limited_api = "cp311"
        super().finalize_options()


setup(
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
    cffi_modules=["csrc/build_core.py:ffibuilder"],
)
