"""The machine that is looked at: its files below a root directory, and who asks."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs

from nixsnap import places

_ASK_SECONDS = 20.0


@attrs.frozen(kw_only=True)
class Machine:
    """Where to look, and for whom.

    Attributes:
        root: What stands for `/`.
        environment: The user's environment.
        uid: The user's id, outside of every namespace.
        user: The user's name.
    """

    root: Path = Path("/")
    environment: Mapping[str, str]
    uid: int
    user: str

    @classmethod
    def this(cls) -> Machine:
        """The machine that this runs on, for the user who runs it."""
        # Root of a namespace that rootlesskit made is who made it.
        uid = os.geteuid() or places.owner(Path("/proc/self/uid_map").read_text(encoding="ascii"))
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:
            user = os.environ.get("USER") or str(uid)
        return cls(environment=dict(os.environ), uid=uid, user=user)

    def path(self, name: str | Path) -> Path:
        """A path of the machine."""
        return self.root / str(name).lstrip("/")

    def text(self, name: str | Path) -> str:
        """The content of a file; nothing where there is no such file, or not for us."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def may(self, name: str | Path, mode: int) -> bool:
        """Whether the user may use a file so (`os.R_OK` and the like)."""
        return os.access(self.path(name), mode)

    def program(self, name: str) -> Path | None:
        """The program of that name on the user's PATH."""
        directories = self.environment.get("PATH", os.defpath).split(":")
        candidates = (self.path(directory) / name for directory in directories if directory.startswith("/"))
        return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)

    def ask(self, program: Path, *arguments: str) -> str:
        """What a program prints; nothing if it fails, as one that is broken or of another machine."""
        try:
            result = subprocess.run(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_ASK_SECONDS,
                env=dict(self.environment),
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else ""
