"""The SQLite store of snapshot records; docs/metadata.md tells how it is built."""

from nixsnap.metadata.filters import Filter, parse_filters
from nixsnap.metadata.reader import Reader
from nixsnap.metadata.records import Closure, Info, Kind, Snapshot, Usage
from nixsnap.metadata.store import Store
from nixsnap.metadata.writer import MAX_KEY_BYTES, Writer

__all__ = [
    "MAX_KEY_BYTES",
    "Closure",
    "Filter",
    "Info",
    "Kind",
    "Reader",
    "Snapshot",
    "Store",
    "Usage",
    "Writer",
    "parse_filters",
]
