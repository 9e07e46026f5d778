"""A run's figures as JSON and as one HTML page with its plots inside."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

COLUMNS = 4
"""Of a legend."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, th { text-align: left } svg { width: 100%; height: auto }
.missed { background: #fdd } h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin-top: 2em }
"""


def write_report(folder: Path, content: dict[str, Any]) -> Path:
    """`report.json` and `report.html`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "report.json", json.dumps(content, indent=1))
    return write(folder / "report.html", page(content))


def write(path: Path, text: str) -> Path:
    """Readers see a whole file or none."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def page(content: dict[str, Any]) -> str:
    summary, samples = content["summary"], content["samples"]
    loop = f"open loop, {content['options']['rate']}/s" if "rate" in content["options"] else "closed loop"
    figures = [(name, value) for name, value in summary.items() if name != "codes"]
    figures += [(f"answers {code}", times) for code, times in summary["codes"].items()]
    figures += (
        [("requests by the gateway's own count", content["gateway_requests"])] if content["gateway_requests"] else []
    )
    parts = [
        f"<h1>{summary['rps']:g} answers a second, p99 {summary['p99_ms']:g} ms ({html.escape(loop)})</h1>",
        checks_table(content["checks"]),
        "<h2>Throughput and latency</h2>",
        plot_traffic(content["seconds"][: int(summary["seconds"])] or content["seconds"]),
        "<h2>Processor use</h2>",
        table(["process", "processor seconds per 1,000 requests"], content["cpu_s_per_1000"].items()),
        plot_cpu(samples),
        f"<h2>Batches: {content['mean_batch'] or 'unknown'} requests on average</h2>",
        plot_batches(samples),
        "<h2>Where a mean request's time goes</h2>",
        plot_stages(content["stages"]),
        table(["part", "ms"], [(stage["name"], stage["ms"]) for stage in content["stages"]]),
        "<h2>All figures</h2>",
        table(["figure", "value"], figures),
        *explanations(content.get("explanations")),
        "<h2>How it was measured</h2>",
        table(["option", "value"], content["options"].items()),
        table(["machine", ""], content["machine"].items()),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Load test</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def explanations(summary: dict[str, Any] | None) -> list[str]:
    """What was asked beside predictions, if anything."""
    if not summary:
        return []
    return ["<h2>Explanations asked meanwhile</h2>", table(["figure", "value"], summary.items())]


def table(titles: Sequence[str], rows: Iterable[tuple[Any, Any]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def checks_table(checks: list[dict[str, Any]]) -> str:
    if not checks:
        return ""
    rows = "".join(
        f"<tr{'' if check['holds'] else ' class=missed'}><td>{html.escape(check['figure'])}</td>"
        f"<td>{html.escape(check['must be'])}</td><td>{check['is']}</td>"
        f"<td>{'holds' if check['holds'] else 'missed'}</td></tr>"
        for check in checks
    )
    return f"<table><tr><th>threshold</th><th>must be</th><th>is</th><th></th></tr>{rows}</table>"


def plot_traffic(seconds: list[dict[str, float]]) -> str:
    figure, (above, below) = axes(2)
    at = [row["second"] for row in seconds]
    above.plot(at, [row["answers"] for row in seconds], label="answers a second")
    above.plot(at, [row["errors"] for row in seconds], label="errors a second", color="tab:red")
    answered = [row for row in seconds if row["answers"]]
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99")):
        below.plot([row["second"] for row in answered], [row[name] for row in answered], label=label)
    below.set_ylabel("ms")
    below.set_xlabel("seconds")
    return drawn(figure, above, below)


def plot_cpu(samples: list[dict[str, Any]]) -> str:
    """Cores in use."""
    figure, (axis,) = axes(1)
    for name in samples[-1]["cpu_s"] if samples else []:
        points = [
            (b["second"], (b["cpu_s"][name] - a["cpu_s"][name]) / (b["second"] - a["second"]))
            for a, b in pairwise(samples)
            if b["second"] > a["second"]
        ]
        style = {"color": "lightgrey", "zorder": 0} if name == "whole machine" else {}
        axis.plot([x for x, _ in points], [y for _, y in points], label=name, **style)
    axis.set_ylabel("cores")
    axis.set_xlabel("seconds")
    return drawn(figure, axis)


def plot_batches(samples: list[dict[str, Any]]) -> str:
    figure, (axis,) = axes(1)
    points = []
    for before, after in pairwise(samples):
        batches = after["counts"]["batches"] - before["counts"]["batches"]
        if batches:
            points.append((after["second"], (after["counts"]["batched"] - before["counts"]["batched"]) / batches))
    axis.plot([x for x, _ in points], [y for _, y in points], label="requests in a batch, mean of a second")
    axis.set_xlabel("seconds")
    return drawn(figure, axis)


def plot_stages(stages: list[dict[str, Any]]) -> str:
    figure, (axis,) = axes(1, height=1.6)
    left = 0.0
    for stage in stages:
        width = max(stage["ms"], 0.0)
        axis.barh([""], [width], left=left, label=stage["name"])
        left += width
    axis.set_xlabel("ms")
    axis.set_ylim(-1.5, 0.5)
    return drawn(figure, axis)


def axes(n: int, height: float = 2.4) -> tuple[Any, Any]:
    """A figure of `n` plots, one above the other, on no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height * n), layout="constrained")
    return figure, figure.subplots(n, 1, squeeze=False)[:, 0]


def drawn(figure: Any, *plots: Any) -> str:
    """The figure as SVG, to stand in a page."""
    for axis in plots:
        axis.set_ylim(bottom=0) if axis.get_ylim()[0] >= 0 else None
        axis.spines[["top", "right"]].set_visible(False)
        # Above the plot, where it covers no curve.
        axis.legend(frameon=False, fontsize="small", ncols=COLUMNS, loc="lower left", bbox_to_anchor=(0, 1))
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
