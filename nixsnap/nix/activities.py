"""What Nix says of its work: activities that begin, go on and end, and lines of log.

The same events come over a daemon's connection and, as lines of JSON, from a program with `--log-format internal-json`;
kinds and fields are those of `src/libutil/logging.hh` since Nix 2.0.
"""

from __future__ import annotations

import collections
import enum
import json
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import attrs

from nixsnap.nix.caches import cache_of
from nixsnap.nix.failures import plain
from nixsnap.nix.progress import Progress, ProgressSink, ignore

_JSON_PREFIX: Final = b"@nix "
_KEPT_LINES: Final = 40
_LINE_LIMIT: Final = 4096
_FETCHED: Final = re.compile(r"(this path|these \d+ paths) will be fetched ")
_INTERVAL_SECONDS: Final = 0.1
_ERROR_LEVELS: Final = 2  # error, warning and notice; what comes after that is chatter


class Kind(enum.IntEnum):
    """Kinds of activities that matter here."""

    COPY_PATH = 100
    FILE_TRANSFER = 101
    COPY_PATHS = 103
    BUILD = 105


class Result(enum.IntEnum):
    """What may be said of an activity."""

    BUILD_LOG_LINE = 101
    PROGRESS = 105
    SET_EXPECTED = 106


@attrs.define(kw_only=True)
class _Activity:
    kind: int
    subject: str
    bytes_done: int = 0


class Activities:
    """Follows the events of one call, which all come from one thread. `heard_seconds` may be read by any.

    Attributes:
        heard_seconds: When the last event came that says anything new, by the monotonic clock. While a cache is silent
            Nix goes on to report, about once a second, that a transfer is as far as it was.
    """

    def __init__(self) -> None:
        self.heard_seconds = time.monotonic()
        self._sink: ProgressSink = ignore
        self._told_seconds = 0.0
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._running: dict[int, _Activity] = {}
        self._caches: dict[str, None] = {}  # in the order in which they were asked
        self._unknown: dict[str, None] = {}
        self._fetchable: dict[str, None] = {}
        self._listed: dict[str, None] | None = None  # which of these a list that has begun is of
        self._latest: dict[int, dict[int, Sequence[int | str]]] = {}  # what was said last of what
        self._bytes_copied = 0  # by copies that have ended
        self._progress = Progress()

    def tell(self, sink: ProgressSink) -> None:
        """Tell `sink` from now on, ten times a second at most."""
        self._sink = sink

    @property
    def lines(self) -> list[str]:
        """The last lines of log, newest last."""
        return list(self._lines)

    @property
    def caches(self) -> list[str]:
        """The HTTP caches that were asked."""
        return list(self._caches)

    @property
    def unknown(self) -> list[str]:
        """The store paths of which a program said, before it began, that no cache has them."""
        return list(self._unknown)

    @property
    def fetchable(self) -> list[str]:
        """The store paths of which a program said, before it began, that it would fetch them."""
        return list(self._fetchable)

    def said(self, text: str) -> None:
        """A line of log."""
        self.heard_seconds = time.monotonic()
        self._lines.extend(plain(line[:_LINE_LIMIT]) for line in text.splitlines() if line.strip())

    def started(self, activity: int, kind: int, text: str, fields: Sequence[int | str]) -> None:
        """An activity begins."""
        subject = str(fields[0]) if fields else text
        self._running[activity] = _Activity(kind=kind, subject=subject)
        if kind == Kind.FILE_TRANSFER and (cache := cache_of(subject)):
            self._caches[cache] = None
        self._heard()
        self._tell()

    def stopped(self, activity: int) -> None:
        """An activity has ended, well or not."""
        ended = self._running.pop(activity, None)
        if ended is not None and ended.kind == Kind.COPY_PATH:
            self._bytes_copied += ended.bytes_done
        self._latest.pop(activity, None)
        self._heard()
        self._tell()

    def resulted(self, activity: int, kind: int, fields: Sequence[int | str]) -> None:
        """Something is said of an activity."""
        latest = self._latest.setdefault(activity, {})
        if latest.get(kind) != fields:
            latest[kind] = fields
            self._heard()
        of = self._running.get(activity)
        numbers = [field for field in fields if isinstance(field, int)]
        if kind == Result.BUILD_LOG_LINE and fields:
            self.said(str(fields[0]))
        elif of is not None and kind == Result.PROGRESS and len(numbers) > 1:
            self._advance(of, done=numbers[0], expected=numbers[1])
        elif kind == Result.SET_EXPECTED and len(numbers) > 1 and numbers[0] == Kind.COPY_PATH:
            self._progress = attrs.evolve(self._progress, bytes_total=numbers[1])
        self._tell()

    def take_json(self, line: bytes) -> bool:
        """Take a line of a program's standard error; whether it is a line of log rather than one of these events."""
        if not line.startswith(_JSON_PREFIX):
            self.heard_seconds = time.monotonic()
            return True
        try:
            event = json.loads(line[len(_JSON_PREFIX) :])
            self._take_event(event)
        except (ValueError, KeyError, TypeError):
            return True  # Nix does not write such; whoever does will want to see it
        return False

    def _take_event(self, event: dict[str, Any]) -> None:
        match event["action"]:
            case "start":
                self.started(event["id"], event["type"], event["text"], event.get("fields", []))
            case "stop":
                self.stopped(event["id"])
            case "result":
                self.resulted(event["id"], event["type"], event.get("fields", []))
            case "msg":
                self._announced(event["msg"])
                if event["level"] <= _ERROR_LEVELS:
                    self.said(event["msg"])

    def _announced(self, text: str) -> None:
        """A line that may be of a list of what is in some cache, or in none (`src/libmain/shared.cc`, printMissing)."""
        if self._listed is not None and text.startswith("  /"):
            self._listed[text.strip()] = None
        elif text.startswith("don't know how to build these paths"):
            self._listed = self._unknown
        elif _FETCHED.match(text):
            self._listed = self._fetchable
        else:
            self._listed = None

    def _advance(self, activity: _Activity, *, done: int, expected: int) -> None:
        if activity.kind == Kind.COPY_PATH:
            activity.bytes_done = done
        elif activity.kind == Kind.COPY_PATHS:
            self._progress = attrs.evolve(self._progress, paths_done=done, paths_total=expected)

    def _heard(self) -> None:
        self.heard_seconds = time.monotonic()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._sink is ignore or now - self._told_seconds < _INTERVAL_SECONDS:
            return
        self._told_seconds = now
        self._sink(self.moment())

    def moment(self) -> Progress:
        """How far it all is."""
        copying = [activity for activity in self._running.values() if activity.kind == Kind.COPY_PATH]
        current = [a.subject for a in self._running.values() if a.kind in {Kind.COPY_PATH, Kind.BUILD}]
        return attrs.evolve(
            self._progress,
            bytes_done=self._bytes_copied + sum(activity.bytes_done for activity in copying),
            current=tuple(current),
        )
