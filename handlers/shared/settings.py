"""What a shared worker is served with: the `shared` section of its model-config.yaml."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from marctl_handlers.core.errors import LoadError

Positive = Annotated[float, Meta(gt=0)]


class SharedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Written by the stack; a bad or unknown value stops the load."""

    memory_mb: Annotated[int, Meta(ge=1)] = 2048
    """What the loaded versions of one process may take together."""
    cold_wait_ms: Annotated[float, Meta(ge=0)] = 20
    """How long a batch waits for a version that is being loaded; the others in it wait as long."""
    load_seconds: Positive = 30
    """A load that takes longer has failed."""
    loads_at_once: Annotated[int, Meta(ge=1)] = 2
    turn_ms: Positive = 20
    """Computing time of a version's turn, if others of the batch wait."""
    batch_ms: Positive = 500
    """After this time a version that has had a turn gets no further one in this batch: what is left is refused."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    """Added to the worker's niceness; 19 is last in line for the processor."""

    @property
    def memory_bytes(self) -> int:
        return self.memory_mb << 20

    @classmethod
    def load(cls, section: Any) -> SharedSettings:
        """Raises LoadError naming the field."""
        try:
            return msgspec.convert(section, cls)
        except msgspec.ValidationError as err:
            raise LoadError(f"model-config.yaml, section `shared`: {err}; start the stack anew") from err
