"""Tells cffi how to build the C core, as the module nixsnap.mounts._core.

Assembly only: the interface is core.cdef.h, the code is in the .c files beside this one. setup.py runs this by path.
For work on the C code, run it from the top of the checkout, and the module is built in place.
"""

from __future__ import annotations

from pathlib import Path

import cffi

HERE = Path(__file__).parent

# Each of these is an error wherever the module is built, for what it finds is a bug. They cover cffi's code and the
# headers of Python too, of which a later release must not break an installation from source; so there is no bare
# -Werror, and what only our own files keep to is asked of them alone, by tests/sanitizer/run.
ERRORS = [
    "format=2",  # a format that is not a literal, or does not fit its arguments
    "implicit-fallthrough",
    "implicit-function-declaration",  # a missing header: the call would return an int
    "incompatible-pointer-types",
    "int-conversion",
    "missing-prototypes",  # a function that should be static, or in a header
    "pointer-arith",  # arithmetic on void *
    "return-type",
    "strict-prototypes",  # f() that takes anything
    "switch-enum",
    "uninitialized",
    "unused",
    "unused-result",
    "vla",  # a stack that depends on input
    "write-strings",
]

# cffi's own code, which follows this text in the generated file, exports a function without a prototype.
PREAMBLE = """
#include "nsnap.h"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
"""

# setuptools wants paths from the directory of setup.py; sorted, so that builds are alike.
SOURCES = sorted(f"csrc/{path.name}" for path in HERE.glob("*.c"))
HEADERS = sorted(f"csrc/{path.name}" for path in HERE.glob("*.h"))

ffibuilder = cffi.FFI()
ffibuilder.cdef((HERE / "core.cdef.h").read_text(encoding="utf-8"))
ffibuilder.set_source(
    "nixsnap.mounts._core",
    PREAMBLE,
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    define_macros=[("Py_LIMITED_API", "0x030b0000"), ("_GNU_SOURCE", "1")],
    extra_compile_args=[
        "-std=gnu11",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        *(f"-Werror={error}" for error in ERRORS),
    ],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=".", verbose=True)
