"""Overlays of the directories that the `layers` fixture makes."""

from __future__ import annotations

from pathlib import Path

from nixsnap.mounts.operations import OverlayMount


def overlay(layers: Path, **changes) -> OverlayMount:
    """An overlay of the usual directories, but for the changes."""
    usual = {
        "lowerdirs": (layers / "lower1", layers / "lower2"),
        "upperdir": layers / "upper",
        "workdir": layers / "work",
        "options": ("index=off",),
    }
    return OverlayMount(**(usual | changes))
