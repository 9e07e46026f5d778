"""Rounds of measurements as one table and one plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.compare.harness import Measured


@dataclass
class Entry:
    """A contender's rounds; `failures` are the reasons of those that gave no figures."""

    name: str
    title: str
    rounds: list[Measured] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def median(self) -> dict[str, float]:
        """Of each figure, over the rounds; empty if there are none."""
        rows = [measured.as_dict() for measured in self.rounds]
        return {name: statistics.median(row[name] for row in rows) for name in rows[0]} if rows else {}

    def as_dict(self) -> dict[str, Any]:
        rounds = [measured.as_dict() for measured in self.rounds]
        return {"name": self.name, "title": self.title, "median": self.median(), "rounds": rounds} | (
            {"failures": self.failures} if self.failures else {}
        )


@dataclass
class Ceiling:
    """The model without a server, of each round: answers a second, processor seconds per 1,000, and a lone question's
    median milliseconds."""

    rps: list[float] = field(default_factory=list)
    cpu_s_per_1000: list[float] = field(default_factory=list)
    single_p50_ms: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"rps": self.rps, "cpu_s_per_1000": self.cpu_s_per_1000, "single_p50_ms": self.single_p50_ms}


def markdown(entries: Sequence[Entry], ceiling: Ceiling) -> str:
    """Fastest first; what gave no figures stands last, with its reason."""
    lines = [
        "| server | answers/s | p50 ms | p99 ms | errors | p50 ms at 1 connection | server CPU-s per 1,000 "
        "| off from float32: mean, most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if ceiling.rps:
        rps, cpu_s = statistics.median(ceiling.rps), statistics.median(ceiling.cpu_s_per_1000)
        alone = statistics.median(ceiling.single_p50_ms)
        lines.append(
            f"| *no server: this project's handler in process, batches of 32* | {rps:.0f} | | | | {alone:.1f} "
            f"| {cpu_s:.2f} | |"
        )
    for entry in sorted(entries, key=lambda entry: -entry.median().get("rps", 0.0)):
        median = entry.median()
        if not median:
            lines.append(f"| {entry.title} | failed: {cell(entry.failures[-1])} | | | | | | |")
            continue
        lines.append(
            f"| {entry.title} | {median['rps']:.0f} | {median['p50_ms']:.0f} | {median['p99_ms']:.0f} | "
            f"{sum(measured.errors for measured in entry.rounds)} | {median['single_p50_ms']:.1f} | "
            f"{median['cpu_s_per_1000']:.2f} | {median['mean_deviation']:.3f}, {median['worst_deviation']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def cell(text: str, limit: int = 200) -> str:
    """Text that breaks no table."""
    return " ".join(text.replace("|", "/").split())[:limit]


def plot(entries: Sequence[Entry], ceiling: Ceiling, title: str, path: Path) -> None:
    """Bars of answers a second, each round a dot; SVG."""
    from matplotlib.figure import Figure

    shown = sorted((entry for entry in entries if entry.rounds), key=lambda entry: entry.median()["rps"])
    figure = Figure(figsize=(8, 0.45 * len(shown) + 1.2), layout="constrained")
    axis = figure.subplots()
    colours = ["tab:blue" if entry.name.startswith("ours") else "lightgrey" for entry in shown]
    axis.barh([entry.title for entry in shown], [entry.median()["rps"] for entry in shown], color=colours)
    for entry in shown:
        axis.plot([measured.rps for measured in entry.rounds], [entry.title] * len(entry.rounds), "k.", markersize=4)
    if ceiling.rps:
        axis.axvline(statistics.median(ceiling.rps), color="tab:red", label="no server, one thread")
        axis.legend(frameon=False, loc="lower right")
    axis.set_title(title, loc="left", fontsize="medium")
    axis.set_xlabel("answers a second")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
