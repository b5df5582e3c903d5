"""A plain user's process in a user and a mount namespace of its own, that runs Python for a test.

As a module it is the test's side; as a program it is the process. That one loads all it needs as root, since a user may
not be able to read the interpreter's files, drops to the user, enters new namespaces, has root write the maps, and
then runs what it is given with `target`, `client`, `kernel`, `sh` and the like at hand, and prints `result` as JSON.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000


class Namespace:
    """How to start such processes for one user.

    Args:
        uid: The user, and his group.
        directory: A directory that he can reach; a `target` to mount on is made in it for him.
        uid_map: The user map of the namespace, or None: no namespace, the plain user.
        gid_map: Its group map.
        stays: The process keeps the user's ids instead of becoming the namespace's root, which may be another's.
    """

    def __init__(
        self,
        uid: int,
        *,
        directory: Path,
        uid_map: str | None = None,
        gid_map: str | None = None,
        stays: bool = False,
    ) -> None:
        self.uid = uid
        self.target = directory / f"user-{uid}"
        self.uid_map = uid_map
        self.gid_map = gid_map
        self.stays = stays
        self.target.mkdir(exist_ok=True)

    def run(self, code: str, **values: object) -> Any:
        """Run code to its end and return its `result`."""
        done = subprocess.run(
            self._argv(), input=self._program(code, values), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, code: str, **values: object) -> subprocess.Popen[str]:
        """Run code that ends by itself, or whose process the caller ends."""
        process = subprocess.Popen(
            self._argv(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(self._program(code, values))
        process.stdin.close()
        return process

    def _argv(self) -> list[str]:
        return ["setpriv", "--pdeathsig", "KILL", sys.executable, __file__]

    def _program(self, code: str, values: dict[str, object]) -> str:
        return json.dumps(
            {
                "uid": self.uid,
                "uid_map": self.uid_map,
                "gid_map": self.gid_map,
                "stays": self.stays,
                "target": str(self.target),
                "code": textwrap.dedent(code),
                "values": {name: str(value) for name, value in values.items()},
            }
        )


def _drop(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _enter(uid: int, maps: dict[str, str]) -> None:
    """Enter new namespaces as the user; a child that stays root writes their maps, whatever they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    ready, written = os.pipe(), os.pipe()
    inside = os.getpid()
    writer = os.fork()
    if writer == 0:
        os.close(written[0])
        os.read(ready[0], 1)
        for name, text in maps.items():
            Path(f"/proc/{inside}/{name}").write_text(text)
        os._exit(0)  # closes `written`
    os.close(written[1])
    _drop(uid)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(ready[1], b"x")
    os.read(written[0], 1)
    os.waitpid(writer, 0)


def _main() -> None:
    from nixsnap.mounts import kernel  # noqa: PLC0415 - before the user's rights are all there is
    from nixsnap.mounts.values import OwnedFd  # noqa: PLC0415
    from nixsnap.storedoor import client, protocol, service  # noqa: F401, PLC0415

    codecs.lookup("ascii")
    order = json.load(sys.stdin)
    os.chdir("/")
    if order["uid_map"] is None:
        _drop(order["uid"])
    else:
        _enter(order["uid"], {name: order[name] for name in ("uid_map", "gid_map")})
        if not order["stays"]:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)

    def sh(command: str) -> list[Any]:
        """Status and output of a shell command."""
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        return [done.returncode, (done.stdout + done.stderr).strip()]

    scope: dict[str, Any] = {
        **{name: Path(value) for name, value in order["values"].items()},
        "client": client,
        "kernel": kernel,
        "protocol": protocol,
        "OwnedFd": OwnedFd,
        "Path": Path,
        "target": Path(order["target"]),
        "os": os,
        "resource": resource,
        "sh": sh,
        "result": None,
    }
    exec(compile(order["code"], "<test>", "exec"), scope)
    print(json.dumps(scope["result"]))


if __name__ == "__main__":
    _main()
