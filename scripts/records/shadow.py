"""Shadow answers compared with the live ones, joined on the prediction id."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
SIDES = ("live", "shadow")
Z95 = statistics.NormalDist().inv_cdf(0.975)
COLUMNS = [
    *("prediction_id", "time", "model", "version", "prediction", "confidence", "probabilities", "latency_ms"),
    *("cache", "fallback_from", "shadow", "input", "input_hash", "label"),
]


@dataclass(frozen=True)
class Pair:
    """One question, answered by the live version, whose answer the client got, and by the shadow."""

    live: Row
    shadow: Row

    @property
    def agrees(self) -> bool:
        return bool(self.live["prediction"] == self.shadow["prediction"])

    @property
    def shift(self) -> float:
        """How much more the shadow believes in the live choice: its probability minus the live version's."""
        choice = self.live["prediction"]
        return float(self.shadow["probabilities"][choice] - self.live["probabilities"][choice])

    @property
    def distance(self) -> float:
        """Total variation between the two answers' probabilities, 0 to 1."""
        both = zip(self.live["probabilities"], self.shadow["probabilities"], strict=True)
        return float(sum(abs(a - b) for a, b in both) / 2)

    @property
    def label(self) -> int | None:
        """The true label, where it is known."""
        found = self.live["label"]
        return None if found is None else int(found)


@dataclass(frozen=True)
class Comparison:
    """All pairs of one live version and one shadow of it."""

    model: str
    live: str
    shadow: str
    pairs: list[Pair]


@dataclass(frozen=True)
class Joined:
    """`unpaired`: shadow answers whose live one is not in the log; `ambiguous`: those whose id was used twice."""

    comparisons: list[Comparison]
    unpaired: int
    ambiguous: int


def join(table: pa.Table) -> Joined:
    """Pairs by model and versions; `table` has COLUMNS, answers without a prediction are left out."""
    live: dict[tuple[str, str], list[Row]] = defaultdict(list)
    shadows: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in copied(table).to_pylist():
        if row["prediction"] is None or row["probabilities"] is None:
            continue
        if row["shadow"]:
            shadows[row["model"], row["prediction_id"], row["version"]].append(row)
        else:
            live[row["model"], row["prediction_id"]].append(row)
    found: dict[tuple[str, str, str], list[Pair]] = defaultdict(list)
    unpaired = ambiguous = 0
    for (model, prediction_id, version), copies in shadows.items():
        answers = live.get((model, prediction_id), [])
        seen = answer_seen(answers)
        if not answers:
            unpaired += len(copies)
        elif seen is None or len(copies) > 1 or not same_question(seen, copies[0]):
            ambiguous += len(copies)
        else:
            found[model, seen["version"], version].append(Pair(seen, copies[0]))
    return Joined([Comparison(*names, pairs) for names, pairs in sorted(found.items())], unpaired, ambiguous)


def copied(table: pa.Table) -> pa.Table:
    """The answers to requests that a shadow answered too: often a small part of a large log."""
    import pyarrow.compute as pc

    ids = table.filter(table["shadow"])["prediction_id"]
    return table.select(COLUMNS).filter(pc.is_in(table["prediction_id"], value_set=ids.combine_chunks()))


def answer_seen(answers: Sequence[Row]) -> Row | None:
    """The one that the client got: a version that was too slow may have answered too, after its stand-in."""
    stood_in = [answer for answer in answers if answer["fallback_from"] is not None]
    found = stood_in or answers
    return found[0] if len(found) == 1 else None


def same_question(one: Row, other: Row) -> bool:
    """Not sure where inputs are not logged, but never of different sizes."""
    return len(one["probabilities"]) == len(other["probabilities"]) and one["input_hash"] == other["input_hash"]


def summary(comparison: Comparison, strongest: int) -> dict[str, Any]:
    """The figures of one comparison; intervals are 95 %, None where there is too little for one."""
    pairs = comparison.pairs
    agreed = sum(pair.agrees for pair in pairs)
    labelled = [pair for pair in pairs if pair.label is not None]
    return {
        "model": comparison.model,
        "live": comparison.live,
        "shadow": comparison.shadow,
        "pairs": len(pairs),
        "since": isoformat(min(pair.live["time"] for pair in pairs)),
        "until": isoformat(max(pair.live["time"] for pair in pairs)),
        "agreed": agreed,
        "agreement": agreed / len(pairs),
        "agreement_interval": wilson(agreed, len(pairs)),
        "score_shift": mean([pair.shift for pair in pairs]),
        "distance_median": statistics.median(pair.distance for pair in pairs),
        "choices": choices(pairs),
        "latency_ms": {
            "live": quantiles([pair.live["latency_ms"] for pair in pairs]),
            "shadow": quantiles([pair.shadow["latency_ms"] for pair in pairs]),
            "difference": mean([pair.shadow["latency_ms"] - pair.live["latency_ms"] for pair in pairs]),
        },
        "cached": {
            "live": sum(pair.live["cache"] in ("hit", "stale") for pair in pairs),
            "shadow": sum(pair.shadow["cache"] in ("hit", "stale") for pair in pairs),
        },
        "labelled": accuracy(labelled) if labelled else None,
        "strongest_disagreements": [disagreement(pair) for pair in disagreements(pairs)[:strongest]],
    }


def disagreements(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs of different choices, the furthest apart first."""
    return sorted((pair for pair in pairs if not pair.agrees), key=lambda pair: -pair.distance)


def disagreement(pair: Pair) -> dict[str, Any]:
    return {
        "prediction_id": pair.live["prediction_id"],
        "time": isoformat(pair.live["time"]),
        "distance": pair.distance,
        "live": {name: pair.live[name] for name in ("prediction", "confidence", "probabilities")},
        "shadow": {name: pair.shadow[name] for name in ("prediction", "confidence", "probabilities")},
        "label": pair.label,
        "input": pair.live["input"] or pair.shadow["input"],
    }


def choices(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """How often each choice was taken, by place."""
    counts = {side: Counter(str(getattr(pair, side)["prediction"]) for pair in pairs) for side in SIDES}
    return {side: dict(sorted(counted.items())) for side, counted in counts.items()}


def accuracy(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Where the true label is known: who is right how often. The difference is of pairs, so its interval is too."""
    right = {side: sum(getattr(pair, side)["prediction"] == pair.label for pair in pairs) for side in SIDES}
    gains = [
        float((pair.shadow["prediction"] == pair.label) - (pair.live["prediction"] == pair.label)) for pair in pairs
    ]
    return {
        "pairs": len(pairs),
        "live": right["live"] / len(pairs),
        "live_interval": wilson(right["live"], len(pairs)),
        "shadow": right["shadow"] / len(pairs),
        "shadow_interval": wilson(right["shadow"], len(pairs)),
        "difference": mean(gains),
    }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a share. Source: Wilson 1927, JASA 22, p. 209."""
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval (normal; None below 30 values, where that would be too narrow)."""
    centre = statistics.fmean(values)
    if len(values) < 30:
        return {"mean": centre, "interval": None}
    half = Z95 * statistics.stdev(values, centre) / math.sqrt(len(values))
    return {"mean": centre, "interval": (centre - half, centre + half)}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99; the nearest value of the sample."""
    ordered = sorted(values)
    return {f"p{q}": ordered[math.ceil(q / 100 * len(ordered)) - 1] for q in (50, 95, 99)}


def isoformat(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
