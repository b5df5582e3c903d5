"""The labels on Prepare and View that say whose ids a container in a user namespace runs with.

containerd sends them to snapshotters that declare the capability `remap-ids`: `container-id:host-id:length`, several
separated by commas (`internal/userns/idmap.go`; releases before 2.1 send one range, from 0). They stay in the
database, so a rootfs view can be mounted again with the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from nixsnap.errors import InvalidArgumentError
from nixsnap.mounts.values import IdMapping, IdRange
from nixsnap.nix.storepath import shorten

UID_MAPPING: Final = "containerd.io/snapshot/uidmapping"
GID_MAPPING: Final = "containerd.io/snapshot/gidmapping"

_RANGE: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
# user_namespaces(7): since Linux 4.15; and all of it in one write that is smaller than a page.
_MAX_RANGES: Final = 340
_MAX_BYTES: Final = 4095


def parse_mapping(labels: Mapping[str, str]) -> IdMapping | None:
    """The id mapping that labels ask for; None where they ask for none.

    Raises:
        InvalidArgumentError: One is malformed, the kernel would not take it, root is not in it, or the other is
            missing. The message names the label.
    """
    uids, gids = labels.get(UID_MAPPING), labels.get(GID_MAPPING)
    if not uids and not gids:
        return None
    if not uids or not gids:
        missing, given = (UID_MAPPING, GID_MAPPING) if not uids else (GID_MAPPING, UID_MAPPING)
        raise InvalidArgumentError(f"label {missing} is missing, and {given} is there: they go together")
    return IdMapping(uids=_parse(UID_MAPPING, uids), gids=_parse(GID_MAPPING, gids))


def mount_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """What makes containerd's own mount package idmap a mount (`core/mount/mount_linux.go`, from 2.0 on)."""
    if parse_mapping(labels) is None:
        return ()
    return f"uidmap={labels[UID_MAPPING]}", f"gidmap={labels[GID_MAPPING]}"


def same_mapping(labels: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two sets of labels ask for the same ids, in the same words."""
    return all(labels.get(name) == others.get(name) for name in (UID_MAPPING, GID_MAPPING))


def _parse(name: str, value: str) -> tuple[IdRange, ...]:
    texts = value.split(",")
    if len(texts) > _MAX_RANGES or sum(map(len, texts)) + len(texts) > _MAX_BYTES:
        raise InvalidArgumentError(
            f"label {name} has {len(texts)} ranges in {len(value)} bytes; "
            f"the kernel takes {_MAX_RANGES} in {_MAX_BYTES}"
        )
    ranges = tuple(_parse_range(name, text) for text in texts)
    for kind in ("container_id", "host_id"):
        _check_apart(name, sorted((getattr(run, kind), run.length) for run in ranges), kind)
    if all(run.container_id != 0 for run in ranges):
        raise InvalidArgumentError(f"label {name}: {shorten(value)} maps no container id 0, which root needs")
    return ranges


def _parse_range(name: str, text: str) -> IdRange:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(f"label {name}: {shorten(text)} is not container-id:host-id:length")
    container_id, host_id, length = map(int, match.groups())
    try:
        return IdRange(container_id=container_id, host_id=host_id, length=length)
    except ValueError as exc:
        raise InvalidArgumentError(f"label {name}: range {text}: {exc}") from exc


def _check_apart(name: str, runs: Iterable[tuple[int, int]], kind: str) -> None:
    """Refuse runs, in order, of which one begins before the one before it ends."""
    end = 0
    for first, length in runs:
        if first < end:
            raise InvalidArgumentError(f"label {name}: ranges overlap at {kind.replace('_', ' ')} {first}")
        end = first + length
