"""What the kernel lets root of a plain user's namespace do: run in such a namespace, it prints one JSON object.

    unshare --user --map-root-user --mount python -m nixsnap.rootless.probe DIRECTORY

Each key is a feature, its value null or what is missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nixsnap.mounts import features


def probe(directory: Path) -> dict[str, str | None]:
    """Try each feature in a directory of the user's."""
    tried = {"overlay": features.overlay(directory, userxattr=True)}
    return {name: feature.missing for name, feature in tried.items()}


if __name__ == "__main__":
    json.dump(probe(Path(sys.argv[1])), sys.stdout)
