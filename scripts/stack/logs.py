"""Reads TorchServe's log files: what was written since, and what a worker said before it failed."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marctl.core.logs import Position, parsed

THREAD = re.compile(r"W-(?P<worker>\d+)-\S+")
"""As TorchServe names the threads of its workers, and no others: W-9000-mcqa_2.0-stdout."""
EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(: .*)?$")
GAVE_UP = ("Load model failed", "Backend worker")
"""WorkerThread.java and BatchAggregator.java, 0.12.0."""
LOAD_ERROR = re.compile(r"^(?:\w+\.)*LoadError: (?P<text>.+)$")
TRACEBACK = "Traceback (most recent call last):"
FALLBACK_LOADER = "No module named 'ts.torch_handler"
"""TorchServe answers a handler's ImportError by looking for a built-in handler of that name; its failure hides ours."""


@dataclass(frozen=True)
class Mark:
    """Where both logs stood before a version was loaded."""

    server: Position
    workers: Position
    at: float
    """By the monotonic clock."""

    def elapsed_s(self) -> float:
        return time.monotonic() - self.at

    def failed(self, workers: Collection[str]) -> bool:
        """The server gave up on one of these workers at least once since."""
        return any(text.startswith(GAVE_UP) for text in spoken(self.server.lines_since(), workers))

    def reason(self, workers: Collection[str]) -> str | None:
        """In one line, what one of these workers failed with since."""
        return reason(spoken(self.workers.lines_since(), workers))


def mark(server_log: Path, workers_log: Path) -> Mark:
    return Mark(Position.now(server_log), Position.now(workers_log), time.monotonic())


def spoken(lines: list[str], workers: Collection[str]) -> list[str]:
    """The texts that these workers or their threads logged.

    A version's name would not do: TorchServe may start a worker once more after its version was unregistered, and
    another archive of that version may be loading by then.
    """
    contents = (content for line in lines if (content := parsed(line)))
    return [str(content["message"]) for content in contents if worker_of(content) in workers]


def worker_of(content: Mapping[str, Any]) -> str | None:
    """The number of the worker whose line this is."""
    found = THREAD.match(str(content.get("thread", "")))
    return found and found["worker"]


def reason(texts: list[str]) -> str | None:
    """What says most, in one line: a LoadError before any other exception, else the last one raised."""
    told = [match["text"] for match in map(LOAD_ERROR.match, texts) if match]
    raised = exceptions(texts)
    return (told or raised or [None])[-1]


def exceptions(texts: list[str]) -> list[str]:
    """The closing line of every traceback, those of TorchServe's fallback left out."""
    found = []
    inside = False
    for text in texts:
        if text == TRACEBACK:
            inside = True
        elif inside and text and not text.startswith(" "):
            inside = False
            if EXCEPTION.match(text) and FALLBACK_LOADER not in text:
                found.append(text)
    return found
