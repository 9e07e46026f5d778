"""What the autoscaler is to hold. One YAML file; every line may be left out.

every_seconds: 3           # between two looks
min: 1                     # of each version; a version's own line goes before these
max: 4                     # as many as cores if left out
queue_ms: 100              # objective for the queue time
statistic: p99             # p99, p95, p50 or mean
utilisation: 0.7           # share of the time in which workers may be busy
hold_seconds: 60           # so long nothing may have asked for a worker before it goes
versions:                  # only these; every version with workers of its own if left out
  mcqa/2.0: {max: 2, queue_ms: 200}
  credit/1.0: {}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from marctl.capacity.decide import Target
from marctl.core.struct_file import read_struct
from marctl.stack.document import MOST_WORKERS

Count = Annotated[int, Meta(ge=1, le=MOST_WORKERS)]
Positive = Annotated[float, Meta(gt=0)]
NAME = r"^[^/\s]+/[^/\s]+$"


class Objective(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Of one version, or of all."""

    min: Count = 1
    max: Count | None = None
    queue_ms: Positive = 100.0
    statistic: Literal["p99", "p95", "p50", "mean"] = "p99"
    utilisation: Annotated[float, Meta(gt=0, le=1)] = 0.7
    drain_seconds: Positive = 10.0
    """What waits is to be worked off within so long."""
    hold_seconds: Annotated[float, Meta(ge=0)] = 60.0
    tolerance: Annotated[float, Meta(ge=0, lt=1)] = 0.1

    def target(self, cores: float) -> Target:
        most = max(round(cores), self.min) if self.max is None else self.max
        return Target(
            self.min,
            most,
            self.queue_ms / 1000,
            self.statistic,
            self.utilisation,
            self.drain_seconds,
            self.tolerance,
        )


class Settings(Objective, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The whole file; what stands at its top is of every version."""

    every_seconds: Annotated[float, Meta(ge=0.5)] = 3.0
    reserve_mb: Annotated[int, Meta(ge=0)] = 512
    """Of memory that no worker may take."""
    versions: dict[Annotated[str, Meta(pattern=NAME)], dict[str, Any]] = {}

    def objective(self, model: str, version: str) -> Objective | None:
        """None for a version that is not to be scaled."""
        name = f"{model}/{version}"
        if self.versions and name not in self.versions:
            return None
        return merged(self, self.versions.get(name, {}))


def merged(settings: Settings, own: Mapping[str, Any]) -> Objective:
    """A version's own lines on top of those of all. Raises msgspec.ValidationError."""
    common = {name: getattr(settings, name) for name in Objective.__struct_fields__}
    return msgspec.convert(common | dict(own), Objective)


def read_settings(path: Path | None) -> Settings:
    """The defaults for None. Raises UserError that lists every fault."""
    if path is None:
        return Settings()
    return read_struct(path, Settings, meaning_faults, lambda content: {} if content is None else content)


def meaning_faults(settings: Settings) -> list[str]:
    """What the schema can't see: the lines of each version, and bounds that leave no number."""
    found = bound_faults("the file", settings)
    for name, own in settings.versions.items():
        try:
            found += bound_faults(f"versions.{name}", merged(settings, own))
        except msgspec.ValidationError as err:
            found.append(f"versions.{name}: {err}")
    return found


def bound_faults(place: str, objective: Objective) -> list[str]:
    if objective.max is not None and objective.max < objective.min:
        return [f"{place}: max is {objective.max} and min is {objective.min}; expected min <= max"]
    return []
