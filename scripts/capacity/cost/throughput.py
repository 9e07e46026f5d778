"""What a load report says a core can do (loadtest/run.sh writes it)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marctl.core.errors import UserError

GENERATOR = "load generator"
"""Its processor time is the client's."""


@dataclass(frozen=True)
class Throughput:
    """Of one report. `per_core`: requests that one core answers in a second when it does nothing else."""

    path: str
    what: str
    """What was loaded, on which processor, when."""
    per_core: float
    rps: float
    p99_ms: float
    errors: int
    repeats: float
    """Share of the requests that repeated one; the cache's work is in the figures then."""

    @property
    def warnings(self) -> list[str]:
        found = [f"{self.errors} requests of the report failed"] if self.errors else []
        if self.repeats:
            found.append(
                f"{self.repeats:.0%} of the report's requests repeated one, so that its throughput has a cache's help "
                "already: leave --cached at 0, or measure distinct requests"
            )
        return found


def read_report(path: Path) -> Throughput:
    """Raises UserError for what is no load report."""
    try:
        content = json.loads((path / "report.json" if path.is_dir() else path).read_bytes())
        return from_report(str(path), content)
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise UserError(
            f"{path} is no load report ({type(err).__name__}: {err}); "
            "expected the report.json of a folder that loadtest/run.sh wrote"
        ) from err


def from_report(path: str, content: Mapping[str, Any]) -> Throughput:
    summary, machine, options = content["summary"], content["machine"], content["options"]
    spent_s = sum(float(seconds) for name, seconds in content["cpu_s_per_1000"].items() if name != GENERATOR)
    if not 0 < spent_s < math.inf:
        raise ValueError(f"its processes took {spent_s:g} s of processor time for 1,000 requests")
    return Throughput(
        path=path,
        what=f"{options.get('versions', '?')} on {machine['cores']} cores of {machine['processor']}, {machine['date']}",
        per_core=1000 / spent_s,
        rps=float(summary["rps"]),
        p99_ms=float(summary["p99_ms"]),
        errors=int(summary["errors"]),
        repeats=float(options.get("repeats", 0.0)),
    )
