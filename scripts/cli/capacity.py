"""`marctl autoscale` and `marctl cost`: workers by load, and what predictions cost."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.group import Group
from marctl.cli.output import PLACE, WANTS_JSON, common, note, result, table
from marctl.core.json_text import compact

if TYPE_CHECKING:
    from marctl.capacity.autoscaler import Outcome
    from marctl.capacity.cost.usage import Usage

POSITIVE = click.FloatRange(0, min_open=True)
SHARE = click.FloatRange(0, 1)
RATES = (10.0, 100.0, 1_000.0, 100_000.0)
"""Requests a second, from a small service to a large one."""


def measured_sizes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """`NAME=RATE`: a size of the price file, and the requests a second that one machine of it answers."""
    found: dict[str, float] = {}
    for value in values:
        name, _, rate = value.rpartition("=")
        try:
            found[name] = float(rate)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < float("inf"):
            raise click.BadParameter(f"{value!r}: expected NAME=RATE, such as 'NC4as T4 v3=900'", context, parameter)
    return found


@click.command()
@common
@click.argument("settings", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Tell what it would do, and change nothing.")
@click.option("--once", is_flag=True, help="Look for --every seconds, tell what comes of it for each version, and end.")
@click.option("--every", type=click.FloatRange(min=0.5), help="Seconds between two looks [default: 3, or the file's].")
def autoscale(state: Path, settings: Path | None, dry_run: bool, once: bool, every: float | None) -> None:
    """Add and take away workers so that requests do not wait longer than the objective, until Ctrl-C.

    SETTINGS is a YAML file of bounds and objectives (scripts/capacity/README.md). Without one, every version with
    workers of its own gets 1 to as many as there are cores, for a queue time of 100 ms at the 99th percentile. Each
    line says what was done and why; `marctl history` keeps it. `marctl up --autoscale` does the same beside the stack.

    Example: marctl autoscale --dry-run --once
    """
    import msgspec

    from marctl.capacity.run import scale
    from marctl.capacity.settings import read_settings
    from marctl.stack.state import State
    from marctl.stack.up import Terminated, terminable

    asked = read_settings(settings)
    asked = asked if every is None else msgspec.structs.replace(asked, every_seconds=every)
    with terminable(), suppress(Terminated):
        scale(State(state), asked, show, dry_run=dry_run, once=once)


def show(outcome: Outcome) -> None:
    """One line, at once: it may be read through a pipe."""
    wants_json = click.get_current_context().meta.get(WANTS_JSON)
    click.echo(compact(outcome.content) if wants_json else str(outcome))
    sys.stdout.flush()


@click.group(cls=Group)
def cost() -> None:
    """What predictions cost: of machines to come, and of versions that were used.

    Example: marctl cost usage --since 7d
    """


@cost.command()
@common
@click.argument("report", type=click.Path(exists=True, path_type=Path))
@click.option("--prices", type=PLACE, help="YAML file of prices [default: the example for Azure, to be checked].")
@click.option("--rate", "rates", type=POSITIVE, multiple=True, help="Requests a second; may be repeated.")
@click.option("--cached", type=SHARE, default=0.0, show_default=True, help="Share of requests that the cache answers.")
@click.option("--cached-cost", type=SHARE, default=0.25, show_default=True, help="Of these, beside computed ones.")
@click.option("--utilisation", type=click.FloatRange(0, 1, min_open=True), default=0.6, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=3, show_default=True, help="Machines at least.")
@click.option("--zones", type=click.IntRange(1), default=2, show_default=True, help="The loss of one is survived.")
@click.option("--answer-bytes", type=click.FloatRange(0), default=800.0, show_default=True)
@click.option(
    "--measured",
    callback=measured_sizes,
    multiple=True,
    metavar="NAME=RATE",
    help="Requests a second that a whole machine of a size answers, measured there; may be repeated.",
)
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Also a page with a chart, here.")
def plan(
    state: Path,
    report: Path,
    prices: Path | None,
    rates: tuple[float, ...],
    measured: dict[str, float],
    page: Path | None,
    **assumed: Any,
) -> None:
    """Which machines, how many, for how much: from the REPORT that loadtest/run.sh wrote, and a file of prices.

    The formula is on the page, and in scripts/capacity/README.md. A GPU needs --measured, as a load test of processors
    says nothing of it.

    Example: marctl cost plan loadtest/reports/2026-11-25 --rate 100 --cached 0.3 --html cost.html
    """
    from marctl.capacity.cost import page as pages
    from marctl.capacity.cost.plan import Assumptions, plans, unmeasured
    from marctl.capacity.cost.prices import EXAMPLE, read_prices
    from marctl.capacity.cost.throughput import read_report
    from marctl.core.files import write_atomically

    refuse_infinite([*rates, *assumed.values()])
    throughput, asked, how = read_report(report), read_prices(prices or EXAMPLE), Assumptions(**assumed)
    found = {rate: plans(rate, asked, throughput.per_core, measured, how) for rate in rates or RATES}
    for warning in [*throughput.warnings, *unmeasured(asked, measured)]:
        note(f"warning: {warning}")
    note(f"prices of {asked.as_of}, {asked.region}: check every price before use")
    if page is not None:
        curve = pages.curve(asked, throughput.per_core, measured, how)
        write_atomically(page, pages.page(throughput, asked, how, found, curve))
        note(f"written to {page}")
    best = [each[0] for each in found.values()]
    rows = [pages.cells(each, asked.currency) for each in (best if len(found) > 1 else next(iter(found.values())))]
    content = {
        "currency": asked.currency,
        "as_of": asked.as_of,
        "per_core": round(throughput.per_core, 1),
        "plans": [pages.row(each) for plans_ in found.values() for each in plans_],
    }
    result(content, table([pages.TITLES, *rows]))


@cost.command()
@common
@click.option(
    "--since", "text", default="7d", show_default=True, help="2h, 7d ago, or a time; of Prometheus and --log."
)
@click.option("--prometheus", metavar="URL", help="Ask this Prometheus, whose figures outlive the stack's.")
@click.option(
    "--log", "from_log", is_flag=True, help="Count the prediction log's records: requests, no processor time."
)
@click.option("--core-hour", type=click.FloatRange(0), default=0.048, show_default=True, help="Price of a core's hour.")
def usage(state: Path, text: str, prometheus: str | None, from_log: bool, core_hour: float) -> None:
    """Who used how much: requests and the workers' processor time by model and version.

    Without an option, the running stack's own counters, since it was started.

    Example: marctl cost usage --since 7d --prometheus http://127.0.0.1:9090
    """
    from marctl.capacity.cost import usage as used
    from marctl.records.reader import moment
    from marctl.stack.look import running_stack
    from marctl.stack.state import State

    if prometheus is not None and from_log:
        raise click.UsageError("--prometheus and --log are two sources; give one of them")
    try:
        since = moment(text)
    except ValueError as err:
        raise click.BadParameter(f"{text!r}: expected 2h, 7d or a time", param_hint="--since") from err
    if prometheus is not None:
        found = used.from_prometheus(prometheus, since)
    elif from_log:
        found = used.from_log(State(state), since)
    else:
        found = used.from_page(running_stack(State(state)).metrics)
    cpu_s = sum(each.cpu_s or 0.0 for each in found)
    content = [asdict(each) | {"cost": each.cost(core_hour)} for each in found]
    titles = ["model", "version", "requests", "CPU-s", "share", "CPU-s per 1,000", "cost"]
    rows = [usage_cells(each, cpu_s, core_hour) for each in found]
    result({"usage": content}, table([titles, *rows]) if rows else "nothing was asked")


def refuse_infinite(numbers: Sequence[float]) -> None:
    """A range lets NaN and infinity pass."""
    for number in numbers:
        if not math.isfinite(number):
            raise click.UsageError(f"{number} is no number to reckon with")


def usage_cells(each: Usage, cpu_s: float, core_hour: float) -> list[str]:
    if each.cpu_s is None:
        return [each.model, each.version, f"{each.requests:,.0f}", "", "", "", ""]
    share = each.cpu_s / cpu_s if cpu_s else 0.0
    cost = each.cost(core_hour) or 0.0
    per_thousand = each.cpu_s / each.requests * 1000
    figures = [f"{each.requests:,.0f}", f"{each.cpu_s:,.1f}", f"{share:.0%}", f"{per_thousand:.2f}", f"{cost:.4f}"]
    return [each.model, each.version, *figures]
