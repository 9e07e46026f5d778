"""What a version is served with: the `handler` section of its model-config.yaml, read once at load.

The archive build writes that file from the recipe; nothing else is consulted, no environment variable included. A task
adds settings of its own by a subclass of Settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from marctl_handlers.core.calibration import Calibration
from marctl_handlers.core.devices import Device
from marctl_handlers.core.errors import LoadError

Count = Annotated[int, Meta(ge=1)]


LARGE_SHARE = 4
"""A request is large if it costs more than this part of what one may cost: the small ones of a batch go first."""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the prediction log keeps of an answered question, besides the answer."""

    input: Literal["whole", "hash", "none"] = "hash"
    """The question itself, or a salted hash that only tells equal ones, or nothing."""
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Of the requests; 0 keeps no log."""


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long answers are kept in Redis (handlers/redis/cache.py)."""

    ttl_s: Annotated[float, Meta(gt=0)] = 3600.0
    """An answer is never older, unless the model fails."""
    stale_s: Annotated[float, Meta(ge=0)] = 86400.0
    """For so long afterwards it is served if the model fails."""
    early_refresh: Annotated[float, Meta(ge=0)] = 1.0
    """How early popular answers are computed anew, in multiples of what they cost: the paper's beta; 0 for never."""
    jitter: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Up to this share of its time is taken from each answer, so that those of one moment expire at many."""


class ExplanationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an explanation may cost; more is refused with an error that names the limit."""

    max_steps: int = 256
    """Points of an integral along the path from the baseline, also when they are raised until completeness holds."""
    max_samples: int = 512
    """Orders of the words that Shapley values are averaged over."""
    max_words: int = 128
    """Words that can be taken away one by one, for Shapley values and occlusion."""
    max_instances: int = 8
    """Questions in one request."""
    tokens_per_pass: int = 1024
    """Bounds the memory of a pass: rows times their length, padding included."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every task is served with; a bad or unknown value stops the load."""

    task: str
    device: Device = "cpu"
    """Where a server computes; whoever else loads the version says it itself."""
    workers_per_gpu: Count = 1
    """Worker processes that share a GPU, of all versions: each takes this part of its memory, and no more."""
    threads: Count = 1
    """Processor threads of one worker's forward pass."""
    max_instances: Count = 128
    """Questions in one request."""
    batch_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """Time for one server batch; what is not computed by then is answered 504, so that the worker is never killed."""
    log: Log = Log()
    cache: CacheSettings | bool = CacheSettings()
    """`off` (which YAML reads as false) computes every answer."""
    calibration: Calibration | None = None
    """How the task makes probabilities of its scores; none: as the model gives them."""
    explanations: ExplanationSettings | None = None
    """Given: this worker explains, too."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    """Added to the worker's niceness; 19 is last in line for the processor."""

    @property
    def max_cost(self) -> int | None:
        """What one request may cost in all, in the task's unit (`Task.cost`); None for no limit."""
        return None

    @property
    def small_cost(self) -> int:
        """What a request may cost to be small; need not be counted more exactly below that."""
        return (self.max_cost or 0) // LARGE_SHARE

    @property
    def cache_settings(self) -> CacheSettings | None:
        """None if the version is to have no cache."""
        return (CacheSettings() if self.cache else None) if isinstance(self.cache, bool) else self.cache

    @classmethod
    def load(cls, section: Mapping[str, Any] | None) -> Self:
        """Check the section as it stands in model-config.yaml; raises LoadError naming the field."""
        if not section:
            raise LoadError("model-config.yaml has no `handler` section; rebuild the archive with `marctl build`")
        try:
            return msgspec.convert(section, cls)
        except msgspec.ValidationError as err:
            raise LoadError(f"model-config.yaml, section `handler`: {err}; rebuild the archive") from err
