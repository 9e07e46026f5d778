"""When to try again what failed."""

from __future__ import annotations

import time


class Backoff:
    """At once the first time, then after waits that double; from the beginning again after a good while."""

    def __init__(self, first_s: float = 0.5, most_s: float = 30.0, good_s: float = 60.0) -> None:
        self._first_s, self._most_s, self._good_s = first_s, most_s, good_s
        self._wait_s = 0.0
        self._due = self._tried = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due

    def tried(self) -> None:
        """Call it before each try."""
        now = time.monotonic()
        good = now - self._tried > self._good_s + self._wait_s
        self._wait_s = self._first_s if good or not self._wait_s else min(2 * self._wait_s, self._most_s)
        self._tried, self._due = now, now + self._wait_s
