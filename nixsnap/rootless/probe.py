"""What the kernel lets root of a plain user's namespace do: run in such a namespace, it prints one JSON object.

    unshare --user --map-root-user --mount python -m nixsnap.rootless.probe DIRECTORY STORE

Each key is a feature, its value null or what is missing; those that begin with `view ` are kinds of rootfs view.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from nixsnap.mounts import features
from nixsnap.snapshots import kinds

VIEW: Final = "view "


def probe(directory: Path, store: Path) -> dict[str, str | None]:
    """Try each feature in a directory of the user's."""
    tried = {"overlay": features.overlay(directory, userxattr=True)}
    place = kinds.Place(root=directory, store=store, userxattr=True)
    tried |= {f"{VIEW}{kind.value}": feature for kind, feature in kinds.try_all(place).items()}
    return {name: feature.missing for name, feature in tried.items()}


if __name__ == "__main__":
    json.dump(probe(Path(sys.argv[1]), Path(sys.argv[2])), sys.stdout)
