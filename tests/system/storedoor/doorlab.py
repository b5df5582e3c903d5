"""A door that runs as root's service, with a user database of its own, and users with namespaces of theirs.

The door, and it alone, sees other files at /etc/passwd, /etc/subuid and /etc/subgid: nothing of the machine changes.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from lab import installed_program, processes

ALICE = 61_000
BOB = 61_001
STRANGER = 61_002
"""Has no account."""
ALICE_RANGE = 7_000_000
BOB_RANGE = 8_000_000
NIXBLD = 30_000
COUNT = 65_536

PASSWD = f"""root:x:0:0::/:/bin/sh
alice:x:{ALICE}:{ALICE}::/:/bin/sh
bob:x:{BOB}:{BOB}::/:/bin/sh
"""
SUBUID = f"alice:{ALICE_RANGE}:{COUNT}\n{BOB}:{BOB_RANGE}:{COUNT}\n"

# Only what the unit leaves it; see packaging/systemd/nixsnap-store-door.service.
CAPABILITIES = ("sys_admin", "setuid", "setgid")


@attrs.frozen(kw_only=True)
class RunningDoor:
    """A door, and the store behind it."""

    address: Path
    store: Path
    process: processes.Process

    def connect(self) -> socket.socket:
        """Connect as we are."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(self.address))
        return connection

    def log(self) -> str:
        """What it has logged."""
        return self.process.log_text(last_bytes=10**6)

    def wait_for_log(self, words: str) -> None:
        """Wait until it has logged something."""
        self.process.wait_until(lambda: words in self.log(), what=f"log {words!r}")

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def start_door(
    directory: Path,
    *flags: str | Path,
    capabilities: Sequence[str] = CAPABILITIES,
    launcher: Sequence[str | Path] = (),
) -> processes.Process:
    """Start `nixsnap store-door`, through a launcher that executes it."""
    accounts = directory / "etc"
    accounts.mkdir()
    for name, text in (("passwd", PASSWD), ("subuid", SUBUID), ("subgid", SUBUID)):
        (accounts / name).write_text(text)
    for name in ("subuid", "subgid"):
        Path(f"/etc/{name}").touch()  # something to bind on
    binds = " && ".join(
        f"mount --bind {accounts / name} /etc/{name}" for name in ("passwd", "subuid", "subgid")
    )
    bounds = ",".join(f"+{name}" for name in capabilities)
    return processes.Process.start(
        "store-door",
        *launcher,
        *("unshare", "--mount", "--propagation=private", "sh", "-c"),
        f'{binds} && exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,{bounds} "$@"',
        *("sh", installed_program("nixsnap"), "store-door", *flags),
        log=directory / "door.log",
    )


@contextlib.contextmanager
def running_door(
    directory: Path, store: Path, *flags: str, capabilities: Sequence[str] = CAPABILITIES
) -> Iterator[RunningDoor]:
    """Start a door with the accounts above and, unless told otherwise, no more rights than the unit gives it."""
    address = directory / "run/door.sock"
    process = start_door(directory, "--store", store, "--address", address, *flags, capabilities=capabilities)
    try:
        process.wait_until(lambda: "serving store=" in process.log_text(), what="serve")
        yield RunningDoor(address=address, store=store, process=process)
    finally:
        process.stop()


def rootless_maps(uid: int, first: int) -> dict[str, str]:
    """The maps that rootlesskit has newuidmap(1) write."""
    text = f"0 {uid} 1\n1 {first} {COUNT}\n"
    return {"uid_map": text, "gid_map": text}
