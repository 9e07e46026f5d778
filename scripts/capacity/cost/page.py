"""The plans as one HTML page: what is cheapest at each rate, a chart, all figures, the formula."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from marctl.capacity.cost.plan import FORMULA, Assumptions, Plan, plans
from marctl.capacity.cost.prices import Prices
from marctl.capacity.cost.throughput import Throughput
from marctl.core.page import document, legend, pictures, table, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = ["requests/s", "machine", "how many", "in use", "a million", "an hour", "a month"]
POINTS = 8
"""Of the chart, for each tenfold rate."""
STYLES = ("-", "--", ":", "-.")


def page(
    throughput: Throughput,
    prices: Prices,
    how: Assumptions,
    found: Mapping[float, Sequence[Plan]],
    curve: Sequence[Plan],
) -> str:
    """`found`: by rate, the cheapest first. `curve`: plans at many rates, for the chart."""
    best = [cells(at_rate[0], prices.currency) for at_rate in found.values()]
    rest = [cells(each, prices.currency) for at_rate in found.values() for each in at_rate]
    body = [
        "<h2>The cheapest at each rate</h2>",
        table(TITLES, best),
        pictures([lambda axes: draw(axes, curve, prices.currency)]),
        "<h2>All</h2>",
        table(TITLES, rest),
        "<h2>How it is computed</h2>",
        f"<pre>{html.escape(FORMULA)}</pre>",
        table(["assumed", ""], [*described(throughput, how), *priced(prices)]),
    ]
    note = f"{throughput.what}. Prices of {prices.as_of}, {prices.region}: check every price before use."
    return document("What predictions cost", note, "".join(body))


def curve(prices: Prices, per_core: float, measured: Mapping[str, float], how: Assumptions) -> list[Plan]:
    """For the chart: at each of many rates, the cheapest of every service on demand and on spot machines."""
    found: list[Plan] = []
    for step in range(4 * POINTS + 1):
        best: dict[tuple[str, str], Plan] = {}
        for each in plans(10 ** (1 + step / POINTS), prices, per_core, measured, how):
            best.setdefault((each.size.service, each.terms), each)
        found += best.values()
    return found


def row(plan: Plan) -> dict[str, Any]:
    """A plan as one JSON object."""
    return {
        "rate": plan.rate,
        "service": plan.size.service,
        "size": plan.size.name,
        "terms": plan.terms,
        "machines": plan.machines,
        "used": round(plan.used, 3),
        "per_million": round(plan.per_million, 4),
        "hourly": round(plan.hourly, 4),
        "monthly": round(plan.monthly, 2),
    }


def cells(plan: Plan, currency: str) -> list[str]:
    return [
        f"{plan.rate:,g}",
        plan.name,
        f"{plan.machines:,}",
        f"{plan.used:.0%}",
        f"{plan.per_million:,.2f} {currency}",
        f"{plan.hourly:,.2f}",
        f"{plan.monthly:,.0f}",
    ]


def described(throughput: Throughput, how: Assumptions) -> list[list[str]]:
    """What a plan rests on, in the formula's names."""
    return [
        ["per_core", f"{throughput.per_core:,.0f} requests/s, {throughput.path}"],
        ["utilisation", f"{how.utilisation:g}"],
        ["replicas", str(how.replicas)],
        ["zones", str(how.zones)],
        ["cached", f"{how.cached:g}"],
        ["cached_cost", f"{how.cached_cost:g}"],
        ["answer bytes", f"{how.answer_bytes:g}"],
    ]


def priced(prices: Prices) -> list[list[str]]:
    services = [[f"service: {name}", f"{each.hourly:g} an hour; {each.note}"] for name, each in prices.services.items()]
    return [["prices", f"{prices.source}, {prices.as_of}"], ["transfer", f"{prices.transfer_per_gb:g} a GB"], *services]


def draw(axes: Axes, curve: Sequence[Plan], currency: str) -> None:
    """Cost of a million by the rate, a line for each service and its terms."""
    for place, name in enumerate(sorted({f"{each.size.service}, {each.terms}" for each in curve})):
        points = [each for each in curve if f"{each.size.service}, {each.terms}" == name]
        style = STYLES[place % len(STYLES)]
        axes.plot([each.rate for each in points], [each.per_million for each in points], style, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("requests a second")
    axes.set_ylabel(f"{text(currency)} for a million")
    legend(axes)
