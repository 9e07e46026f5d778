"""What became of each request of a run, and the figures made of it."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_ANSWER = 0
"""In place of a status: the connection broke, or nothing came in time."""
WRONG_BODY = 1
"""In place of a status: 200, but not an answer."""
NAMES = {NO_ANSWER: "no answer", WRONG_BODY: "wrong body"}
PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


@dataclass
class Outcomes:
    """Each finished request: when it was meant to go out and when its answer was whole, in seconds since the start."""

    due: array[float] = field(default_factory=lambda: array("d"))
    done: array[float] = field(default_factory=lambda: array("d"))
    codes: array[int] = field(default_factory=lambda: array("h"))
    kept: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Some requests' and answers' bodies."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """The generator's own."""
    started: float = 0.0
    """time.time() of the start."""

    def add(self, due: float, done: float, code: int) -> None:
        self.due.append(due)
        self.done.append(done)
        self.codes.append(code)

    def summary(self) -> dict[str, Any]:
        """Answers a second, latencies of the good ones in ms, counts of all codes, the generator's own cost."""
        latencies = sorted(d - s for s, d, c in zip(self.due, self.done, self.codes, strict=True) if c == 200)
        n = len(self.codes)
        return {
            "requests": n,
            "errors": n - len(latencies),
            "seconds": round(self.seconds, 3),
            "rps": round(len(latencies) / self.seconds, 1) if self.seconds else 0.0,
            "mean_ms": round(sum(latencies) / max(len(latencies), 1) * 1000, 2),
            **{name: round(value_at(latencies, share) * 1000, 2) for name, share in PERCENTILES.items()},
            "codes": {NAMES.get(code, str(code)): times for code, times in sorted(Counter(self.codes).items())},
            "generator_cpu_s_per_1000": round(self.cpu_seconds / max(n, 1) * 1000, 4),
        }

    def by_second(self) -> list[dict[str, float]]:
        """Per second in which answers came: good ones, errors, percentiles in ms."""
        buckets: dict[int, list[float]] = {}
        errors: Counter[int] = Counter()
        for due, done, code in zip(self.due, self.done, self.codes, strict=True):
            if code == 200:
                buckets.setdefault(int(done), []).append(done - due)
            else:
                errors[int(done)] += 1
        rows = []
        for second in range(max([*buckets, *errors], default=-1) + 1):
            ordered = sorted(buckets.get(second, []))
            marks = {name: round(value_at(ordered, PERCENTILES[name]) * 1000, 2) for name in ("p50_ms", "p99_ms")}
            rows.append({"second": second, "answers": len(ordered), "errors": errors[second], **marks})
        return rows

    def write(self, path: Path, more: dict[str, Any] | None = None) -> None:
        """The summary, every second and `more`, as JSON; readers see a whole file or none."""
        content = {"summary": self.summary(), "seconds": self.by_second(), "started": self.started} | (more or {})
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content))
        os.replace(partial, path)


def value_at(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of the ordered ones does not exceed (nearest rank); 0 of none."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1] if ordered else 0.0
