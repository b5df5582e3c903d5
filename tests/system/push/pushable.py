"""Images to push."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from imagekit import Layout, config_of, layer, tar

BIG_BYTES = 24 << 20


def write_archive(path: Path, *, architecture: str = "amd64", text: str = "", big_bytes: int = 0) -> Path:
    """Write an image with a small layer that holds `text`, and perhaps a big one of random bytes."""
    layers = [gzip.compress(layer(file=f"{text} for {architecture}"), mtime=0)]
    if big_bytes:
        layers.append(tar([("big", os.urandom(big_bytes))]))
    layout = Layout()
    layout.simple(*layers, config=config_of(layers, architecture=architecture))
    layout.write(path)
    return path
