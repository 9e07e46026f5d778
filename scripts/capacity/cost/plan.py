"""What it costs to answer so many requests a second, with machines of each size.

FORMULA says it all, in the words of the fields below; `plan` computes it, and nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from marctl.capacity.cost.prices import Prices, Size

FORMULA = """\
work      = rate x (1 - cached + cached x cached_cost)       requests that cost a whole computation each, a second
one       = vcpus x speed x per_core, or as measured         requests that one machine answers at full use, a second
machines  = the most of: replicas; work / one / utilisation; work / one x zones / (zones - 1), each rounded up
hour      = machines x price + service + rate x 3600 x (answer bytes / 1e9 x transfer + price of a request)
a million = hour / (rate x 3600) x 1e6
spot: the replicas on demand, the others at the spot price\
"""
HOURS_OF_A_MONTH = 730.0
Terms = Literal["on demand", "spot"]


@dataclass(frozen=True)
class Assumptions:
    """How it is to be run."""

    utilisation: float = 0.6
    """Share of a machine that the load may take at its peak."""
    replicas: int = 3
    """Machines at least, however small the load."""
    zones: int = 2
    """When one is lost, the others carry the whole load; 1 leaves that out."""
    cached: float = 0.0
    """Share of the requests that the cache answers."""
    cached_cost: float = 0.25
    """What one of these costs, beside one that is computed: of mcqa 1.0, loadtest/README.md (2,541 requests/s with 90 %
    of them cached, 824 with none)."""
    answer_bytes: float = 800.0
    """Of an answer with its headers."""


@dataclass(frozen=True)
class Plan:
    """One size at one rate. Money is in the prices' currency."""

    rate: float
    size: Size
    terms: Terms
    machines: int
    needed: float
    """Machines at full use that the load takes."""
    hourly: float

    @property
    def per_million(self) -> float:
        return self.hourly / (self.rate * 3600) * 1e6

    @property
    def monthly(self) -> float:
        return self.hourly * HOURS_OF_A_MONTH

    @property
    def used(self) -> float:
        """Share of the machines that is in use."""
        return self.needed / self.machines

    @property
    def name(self) -> str:
        return f"{self.size}, spot" if self.terms == "spot" else str(self.size)


def throughput_of(size: Size, per_core: float, measured: Mapping[str, float]) -> float | None:
    """Requests a second of one machine at full use; None for a GPU that was not measured."""
    if size.name in measured:
        return measured[size.name]
    return None if size.gpu else size.vcpus * size.speed * per_core


def plan(rate: float, size: Size, terms: Terms, one: float, prices: Prices, how: Assumptions) -> Plan:
    """`one`: requests a second that one machine answers at full use."""
    needed = rate * (1 - how.cached + how.cached * how.cached_cost) / one
    machines = max(how.replicas, ceil(needed / how.utilisation))
    if how.zones > 1:
        machines = max(machines, ceil(needed * how.zones / (how.zones - 1)))
    spot = machines - how.replicas if terms == "spot" else 0
    price = (machines - spot * (1 - (size.spot_share or 1.0))) * size.hourly + prices.services[size.service].hourly
    each = how.answer_bytes / 1e9 * prices.transfer_per_gb + size.per_million_requests / 1e6
    return Plan(rate, size, terms, machines, needed, price + rate * 3600 * each)


def plans(rate: float, prices: Prices, per_core: float, measured: Mapping[str, float], how: Assumptions) -> list[Plan]:
    """All sizes and terms whose throughput is known, the cheapest first; of equal ones the one with fewer machines.

    Spot is left out where no machine would be one, as the replicas are enough.
    """
    found = [
        plan(rate, size, terms, one, prices, how)
        for size in prices.sizes
        for terms in terms_of(size)
        if (one := throughput_of(size, per_core, measured)) is not None
    ]
    found = [each for each in found if each.terms == "on demand" or each.machines > how.replicas]
    return sorted(found, key=lambda each: (each.hourly, each.machines, each.name))


def unmeasured(prices: Prices, measured: Mapping[str, float]) -> list[str]:
    """What is left out, and what was given for nothing."""
    known = {size.name for size in prices.sizes}
    left = sorted({size.name for size in prices.sizes if size.gpu and size.name not in measured})
    found = [f"left out, as nothing says how much they do: {', '.join(left)}; --measured 'NAME=RATE'"] if left else []
    return found + [f"--measured {name}: the prices have no such size" for name in sorted(set(measured) - known)]


def terms_of(size: Size) -> Iterable[Terms]:
    return ("on demand", "spot") if size.spot_share is not None else ("on demand",)


def ceil(number: float) -> int:
    """Up to a whole number, but for what is left of computing with fractions."""
    return math.ceil(round(number, 9))
