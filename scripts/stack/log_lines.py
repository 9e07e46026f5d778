"""The log lines of all parts of a stack, in the order of time.

Each part writes files of its own into the state's `logs/`. All are JSON, an object a line, but Redis's and what Java or
a library prints by itself; such a line without a time gets that of the line before it.
"""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marctl.core.logs import END_BYTES, parsed

FILES = {
    "envoy": ("gateway.log",),
    "torchserve": ("server.log", "console.log"),
    "worker": ("workers.log", "events.log"),
    "reconciler": ("reconciler.log",),
    "redis": ("redis.log", "features.log"),
    "autoscaler": ("autoscaler.log",),
    "batch": ("batch.log",),
}
"""Part to its files in the logs folder."""
REDIS = re.compile(r"\d+:[A-Z] (?P<time>\d+ \w{3} \d{4} [\d:]+\.\d{3}) (?P<mark>[.*#-]) (?P<message>.*)")
REDIS_TIME = "%d %b %Y %H:%M:%S.%f"
REDIS_LEVELS = {".": "debug", "-": "info", "*": "notice", "#": "warning"}
WORKER_THREAD = re.compile(r"W-\d+-(?P<model>.+)_(?P<version>[^_]+)-std(?:out|err)")
OWN = ("time", "level", "part", "message", "logger", "thread", "throwable")
"""Fields of a JSON line that are no event's own."""
POLL_S = 0.25


@dataclass(frozen=True)
class Line:
    """One line. `fields`: what else it says, such as `request_id`."""

    time: datetime
    part: str
    level: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """As one JSON object."""
        stamp = self.time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"time": stamp, "part": self.part, "level": self.level, "message": self.message, **self.fields}


def read_lines(logs: Path, parts: Iterable[str], since: datetime | None = None) -> list[Line]:
    """All lines of these parts since then, former files included; without `since` those at the files' ends."""
    found: list[Line] = []
    for part in parts:
        for name in FILES[part]:
            paths = files_of(logs / name) if since else [logs / name]
            for path in paths:
                if path.exists() and (since is None or path.stat().st_mtime >= since.timestamp()):
                    found += lines_of(part, text_of(path, whole=since is not None), modified(path))
    if since is not None:
        found = [line for line in found if line.time >= since]
    return sorted(found, key=lambda line: line.time)


def files_of(path: Path) -> list[Path]:
    """A log and the files that it was before, the oldest first."""
    former = [*path.parent.glob(f"{path.stem}.*.log.gz"), *path.parent.glob(f"{path.name}.1")]
    return [*sorted(former, key=lambda each: each.stat().st_mtime), path]


def text_of(path: Path, *, whole: bool) -> list[str]:
    with suppress(OSError, EOFError):
        if path.suffix == ".gz":
            with gzip.open(path, "rt", errors="replace") as packed:
                return packed.read().splitlines()
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0 if whole else max(0, size - END_BYTES))
            return file.read().decode(errors="replace").splitlines()
    return []


def modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def lines_of(part: str, texts: Iterable[str], otherwise: datetime) -> Iterator[Line]:
    """`otherwise`: the time of lines before the first one that has one."""
    last = otherwise
    for text in texts:
        if text.strip():
            line = line_of(part, text, last)
            last = line.time
            yield line


def line_of(part: str, text: str, otherwise: datetime) -> Line:
    content = parsed(text)
    if content is not None:
        return from_json(part, content, otherwise)
    if part == "redis" and (match := REDIS.fullmatch(text)):
        # In this machine's own time zone.
        moment = datetime.strptime(match["time"], REDIS_TIME).astimezone()
        return Line(moment, part, REDIS_LEVELS[match["mark"]], match["message"])
    return Line(otherwise, part, "", text)


def from_json(part: str, content: Mapping[str, Any], otherwise: datetime) -> Line:
    try:
        moment = datetime.fromisoformat(str(content.get("time")))
    except ValueError:
        moment = otherwise
    fields = {name: value for name, value in content.items() if name not in OWN}
    thread = WORKER_THREAD.fullmatch(str(content.get("thread", "")))
    if thread:
        fields = {**thread.groupdict(), **fields}
    message = "  ".join(filter(None, (str(content["message"]), content.get("throwable"))))
    return Line(moment, part, str(content.get("level", "")).lower(), message, fields)


class Follower:
    """What is written to these parts' files from now on."""

    def __init__(self, logs: Path, parts: Sequence[str]) -> None:
        self._files = [(part, logs / name) for part in parts for name in FILES[part]]
        self._read: dict[Path, tuple[int, int]] = {}
        """File to its number and how much of it was read."""
        for _, path in self._files:
            with suppress(OSError):
                self._read[path] = (path.stat().st_ino, path.stat().st_size)

    def new(self) -> list[Line]:
        """Whole lines that have come since the last call."""
        found = [line for part, path in self._files for line in lines_of(part, self._texts(path), datetime.now(UTC))]
        return sorted(found, key=lambda line: line.time)

    def run(self) -> Iterator[Line]:
        """For ever."""
        while True:
            yield from self.new()
            time.sleep(POLL_S)

    def _texts(self, path: Path) -> list[str]:
        with suppress(OSError), path.open("rb") as file:
            number, size = path.stat().st_ino, file.seek(0, 2)
            before, start = self._read.get(path, (number, 0))
            if before != number or size < start:  # begun anew
                start = 0
            file.seek(start)
            content, _, _ = file.read().rpartition(b"\n")
            self._read[path] = (number, start + len(content) + bool(content))
            return content.decode(errors="replace").splitlines()
        return []


@contextmanager
def following(logs: Path, show: Callable[[Line], None]) -> Iterator[None]:
    """Show what all parts log within the block, from a thread. It ends where nobody reads any more."""
    follower = Follower(logs, tuple(FILES))
    ending = threading.Event()

    def show_new() -> None:
        for line in follower.new():
            show(line)

    def run() -> None:
        with suppress(OSError):
            while not ending.wait(POLL_S):
                show_new()

    thread = threading.Thread(target=run, name="logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        with suppress(OSError):
            show_new()
