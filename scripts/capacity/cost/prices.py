"""What a provider asks: a dated file that people edit (prices.yaml beside this one is an example for Azure)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from marctl.core.struct_file import read_struct

EXAMPLE = Path(__file__).with_name("prices.yaml")
Money = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class Service(Struct, frozen=True, forbid_unknown_fields=True):
    """What is paid once, whatever is run there."""

    hourly: Money
    note: str = ""
    source: str = ""


class Size(Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of machine or container at one service."""

    name: str
    service: str
    vcpus: Positive
    memory_gib: Positive
    hourly: Money
    spot_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Of `hourly`; None where the service has no spot machines."""
    per_million_requests: Money = 0.0
    speed: Positive = 1.0
    """Of one vCPU, beside one core of the machine that was measured."""
    gpu: str | None = None

    def __str__(self) -> str:
        return f"{self.service}, {self.name}"


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `as_of`: when the prices were published."""

    currency: str
    region: str
    as_of: str | int
    source: str
    transfer_per_gb: Money
    services: dict[str, Service]
    sizes: Annotated[list[Size], Meta(min_length=1)]


def read_prices(path: Path) -> Prices:
    """Raises UserError that lists every fault."""
    return read_struct(path, Prices, meaning_faults, dated)


def dated(content: Any) -> Any:
    """YAML reads 2026-11-25 as a date."""
    if isinstance(content, dict) and not isinstance(content.get("as_of", ""), str | int):
        content["as_of"] = str(content["as_of"])
    return content


def meaning_faults(prices: Prices) -> list[str]:
    """What the schema can't see."""
    known = ", ".join(prices.services)
    found = [
        f"sizes[{place}].service: {size.service} is not among the services; there are: {known}"
        for place, size in enumerate(prices.sizes)
        if size.service not in prices.services
    ]
    names = [str(size) for size in prices.sizes]
    return found + [f"sizes: {name} stands there twice" for name in sorted({n for n in names if names.count(n) > 1})]
