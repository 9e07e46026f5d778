"""Shadow answers compared with the live ones, joined on the prediction id.

What is compared, the columns say that each model's task declares: its first column is the prediction.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from marctl.records.declarations import Declarations
from marctl_handlers.core.columns import LogColumn

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
SIDES = ("live", "shadow")
Z95 = statistics.NormalDist().inv_cdf(0.975)
COLUMNS = [
    *("prediction_id", "time", "model", "version", "code", "error", "handler_ms"),
    *("cache", "fallback_from", "shadow", "input", "input_hash", "true_label"),
]
"""Besides those that the tasks declare."""
VALUES_SHOWN = 20


@dataclass(frozen=True)
class Pair:
    """One question, answered by the live version, whose answer the client got, and by the shadow."""

    columns: tuple[LogColumn, ...]
    live: Row
    shadow: Row

    @property
    def primary(self) -> LogColumn:
        return self.columns[0]

    @property
    def agrees(self) -> bool:
        return equal(self.primary, self.live[self.primary.name], self.shadow[self.primary.name])

    @property
    def scores(self) -> tuple[float, float] | None:
        """How the live version and the shadow score the live version's prediction; None without such scores."""
        column = scores_column(self.columns)
        if column is None:
            return None
        place, lists = self.live[self.primary.name], (self.live[column.name], self.shadow[column.name])
        if any(values is None or not 0 <= place < len(values) for values in lists):
            return None
        # The column is one of floats where another model's prediction is a float.
        live, shadow = (float(values[int(place)]) for values in lists)
        return live, shadow

    @property
    def shift(self) -> float | None:
        """The shadow's score of the live version's prediction, minus the live version's."""
        return None if self.scores is None else self.scores[1] - self.scores[0]

    def difference(self, column: LogColumn) -> float | None:
        """Shadow minus live, of a float column; of a list the total variation, half the sum of its differences."""
        live, shadow = self.live[column.name], self.shadow[column.name]
        if live is None or shadow is None:
            return None
        if column.type != "floats":
            return float(shadow - live)
        if len(live) != len(shadow):
            return None
        return float(sum(abs(a - b) for a, b in zip(live, shadow, strict=True)) / 2)

    @property
    def distance(self) -> float | None:
        """How far the answers are apart, by the column that tells best; None where none is of numbers."""
        lists = [column for column in self.columns if column.type == "floats"]
        numbers = [column for column in self.columns if column.type == "float"]
        for column in (*lists, *numbers):
            if (found := self.difference(column)) is not None:
                return abs(found)
        return None

    @property
    def label(self) -> Any:
        """The true label; None where it is not known, or is nothing that the prediction can be."""
        label, kind = self.live["true_label"], self.primary.type
        fits = isinstance(label, str) == (kind == "str") and kind != "floats"
        return label if fits else None

    def error(self, side: str) -> float:
        """A side's distance from the true label: of a float the absolute difference, else 0 if it is right, or 1."""
        said = getattr(self, side)[self.primary.name]
        if self.primary.type == "float":
            return abs(float(said - self.label))
        return float(not equal(self.primary, said, self.label))


@dataclass(frozen=True)
class Comparison:
    """All pairs of one live version and one shadow of it. `failed`: questions that one side or both did not answer."""

    model: str
    live: str
    shadow: str
    columns: tuple[LogColumn, ...]
    pairs: list[Pair] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Joined:
    """`unpaired`: shadow answers whose live one is not in the log; `ambiguous`: those whose id was used twice."""

    comparisons: list[Comparison]
    unpaired: int
    ambiguous: int


def join(table: pa.Table, declarations: Declarations) -> Joined:
    """Pairs by model and versions; `table` has COLUMNS and the declared ones."""
    live: dict[tuple[str, str], list[Row]] = defaultdict(list)
    shadows: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in copied(table).to_pylist():
        if row["shadow"]:
            shadows[row["model"], row["prediction_id"], row["version"]].append(row)
        else:
            live[row["model"], row["prediction_id"]].append(row)
    found: dict[tuple[str, str, str], Comparison] = {}
    unpaired = ambiguous = 0
    for (model, prediction_id, version), copies in shadows.items():
        answers = live.get((model, prediction_id), [])
        columns = tuple(c for c in declarations.of_model(model).columns if c.name in table.column_names)
        seen = answer_seen(answers)
        if not answers:
            unpaired += len(copies)
        elif seen is None or len(copies) > 1 or not same_question(columns, seen, copies[0]):
            ambiguous += len(copies)
        elif columns:
            names = (model, seen["version"], version)
            add(found.setdefault(names, Comparison(*names, columns)), seen, copies[0])
    return Joined([found[names] for names in sorted(found)], unpaired, ambiguous)


def add(comparison: Comparison, live: Row, shadow: Row) -> None:
    """A pair, or the sides that failed."""
    primary = comparison.columns[0].name
    failed = [side for side, row in zip(SIDES, (live, shadow), strict=True) if row[primary] is None]
    comparison.failed.update(failed)
    if not failed:
        comparison.pairs.append(Pair(comparison.columns, live, shadow))


def copied(table: pa.Table) -> pa.Table:
    """The answers to requests that a shadow answered too: often a small part of a large log."""
    import pyarrow.compute as pc

    ids = table.filter(table["shadow"])["prediction_id"]
    return table.filter(pc.is_in(table["prediction_id"], value_set=ids.combine_chunks()))


def answer_seen(answers: Sequence[Row]) -> Row | None:
    """The one that the client got: the failed version's own record, or its late answer, is in the log beside it."""
    stood_in = [answer for answer in answers if answer["fallback_from"] is not None]
    found = stood_in or answers
    return found[0] if len(found) == 1 else None


def same_question(columns: Sequence[LogColumn], one: Row, other: Row) -> bool:
    """As far as it can be told where inputs are not logged: scores of different lengths are of different questions."""
    scores = scores_column(columns)
    lengths = {len(row[scores.name]) for row in (one, other) if scores is not None and row[scores.name] is not None}
    hashes = {row["input_hash"] for row in (one, other) if row["code"] == 200}
    return len(lengths) <= 1 and len(hashes) <= 1


def scores_column(columns: Sequence[LogColumn]) -> LogColumn | None:
    """The list of which the prediction is a place, if a task declares one."""
    return next((column for column in columns if column.scores_of == columns[0].name), None)


def equal(column: LogColumn, one: Any, other: Any) -> bool:
    """Within the column's tolerance, for numbers."""
    if column.type == "floats":
        return len(one) == len(other) and all(abs(a - b) <= column.tolerance for a, b in zip(one, other, strict=True))
    if column.type in ("int", "float"):
        return bool(abs(one - other) <= column.tolerance)
    return bool(one == other)


def summary(comparison: Comparison, strongest: int) -> dict[str, Any]:
    """The figures of one comparison; intervals are 95 %, None where there is too little for one."""
    pairs = comparison.pairs
    agreed = sum(pair.agrees for pair in pairs)
    labelled = [pair for pair in pairs if pair.label is not None]
    times = [(pair.live["handler_ms"], pair.shadow["handler_ms"]) for pair in pairs]
    distances = [pair.distance for pair in pairs if pair.distance is not None]
    shifts = [pair.shift for pair in pairs if pair.shift is not None]
    return {
        "model": comparison.model,
        "live": comparison.live,
        "shadow": comparison.shadow,
        "compared": comparison.columns[0].name,
        "pairs": len(pairs),
        "failed": {side: comparison.failed[side] for side in SIDES},
        "since": isoformat(min(pair.live["time"] for pair in pairs)) if pairs else None,
        "until": isoformat(max(pair.live["time"] for pair in pairs)) if pairs else None,
        "agreed": agreed,
        "agreement": agreed / len(pairs) if pairs else None,
        "agreement_interval": wilson(agreed, len(pairs)) if pairs else None,
        "score_shift": mean(shifts) if shifts else None,
        "distance_median": statistics.median(distances) if distances else None,
        "differences": differences(comparison),
        "values": values(comparison),
        "latency_ms": {
            "live": quantiles([live for live, _ in times if live is not None]),
            "shadow": quantiles([shadow for _, shadow in times if shadow is not None]),
            "difference": mean([shadow - live for live, shadow in times if None not in (live, shadow)]),
        },
        "cached": {
            "live": sum(pair.live["cache"] in ("hit", "stale") for pair in pairs),
            "shadow": sum(pair.shadow["cache"] in ("hit", "stale") for pair in pairs),
        },
        "labelled": accuracy(labelled) if labelled else None,
        "strongest_disagreements": [disagreement(pair) for pair in disagreements(pairs)[:strongest]],
    }


def differences(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """By column of numbers: the mean of `Pair.difference`."""
    found = {}
    for column in comparison.columns:
        if column.type in ("float", "floats"):
            known = [pair.difference(column) for pair in comparison.pairs]
            found[column.name] = mean([value for value in known if value is not None])
    return found


def disagreements(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs of different predictions, the furthest apart first."""
    return sorted((pair for pair in pairs if not pair.agrees), key=lambda pair: -(pair.distance or 0.0))


def disagreement(pair: Pair) -> dict[str, Any]:
    names = [column.name for column in pair.columns]
    return {
        "prediction_id": pair.live["prediction_id"],
        "time": isoformat(pair.live["time"]),
        "distance": pair.distance,
        "live": {name: pair.live[name] for name in names},
        "shadow": {name: pair.shadow[name] for name in names},
        "label": pair.label,
        "input": pair.live["input"] or pair.shadow["input"],
    }


def values(comparison: Comparison) -> dict[str, dict[str, int]] | None:
    """How often each side predicted each value, the most frequent ones; None for predictions that are measures."""
    primary = comparison.columns[0]
    if primary.type in ("float", "floats"):
        return None
    counts = {side: Counter(str(getattr(p, side)[primary.name]) for p in comparison.pairs) for side in SIDES}
    return {side: dict(sorted(counted.most_common(VALUES_SHOWN))) for side, counted in counts.items()}


def accuracy(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Where the true label is known: the share that each side has right, or a float's mean absolute error (`measure`).

    The difference is of pairs, so its interval is, too.
    """
    errors = {side: [pair.error(side) for pair in pairs] for side in SIDES}
    changes = [shadow - live for live, shadow in zip(errors["live"], errors["shadow"], strict=True)]
    if pairs[0].primary.type == "float":
        means = {side: statistics.fmean(errors[side]) for side in SIDES}
        return {"measure": "mean absolute error", "pairs": len(pairs), **means, "difference": mean(changes)}
    right = {side: round(len(pairs) - sum(errors[side])) for side in SIDES}
    return {
        "measure": "share right",
        "pairs": len(pairs),
        **{side: right[side] / len(pairs) for side in SIDES},
        **{f"{side}_interval": wilson(right[side], len(pairs)) for side in SIDES},
        "difference": mean([-change for change in changes]),
    }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a share. Source: Wilson 1927, JASA 22, p. 209."""
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval (normal; None below 30 values, where that would be too narrow); None of no value."""
    if not values:
        return {"mean": None, "interval": None}
    centre = statistics.fmean(values)
    if len(values) < 30:
        return {"mean": centre, "interval": None}
    half = Z95 * statistics.stdev(values, centre) / math.sqrt(len(values))
    return {"mean": centre, "interval": (centre - half, centre + half)}


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99; the nearest value of the sample, None of an empty one."""
    ordered = sorted(values)
    return {f"p{q}": ordered[math.ceil(q / 100 * len(ordered)) - 1] if ordered else None for q in (50, 95, 99)}


def isoformat(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
