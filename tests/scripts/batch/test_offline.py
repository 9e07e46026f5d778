"""Stored features joined as of each row's time, against a slow loop over the whole history."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marctl.batch.archive import Description, Field
from marctl.batch.formats.block import ArrowBlock, PlainBlock
from marctl.batch.offline import Histories
from marctl.batch.questions import Questions
from marctl.core.errors import UserError
from marctl_handlers.features import specification_of

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY_S = 86_400.0
FIELDS = (
    Field("features", required=False, scalar=False),
    Field("income", required=False, scalar=True, feature="number", entity="customer", freshness_s=7 * DAY_S),
    Field("home", required=False, scalar=True, feature="category", entity="customer"),
    Field("amount", required=False, scalar=True, feature="number"),
)
CUSTOMER = {"name": "customer", "key": "customer:{customer}"}
SPECIFICATION = specification_of(
    [
        {"name": "income", "type": "number", "default": 0, "freshness_s": 7 * DAY_S, "entity": CUSTOMER},
        {"name": "home", "type": "category", "categories": ["own", "rent"], "transform": "one_hot", "entity": CUSTOMER},
        {"name": "amount", "type": "number"},
    ]
)


def history(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "customer": draw.randrange(20),
            "time": START + timedelta(hours=draw.randrange(24 * 60), microseconds=i),
            "income": draw.choice([None, float(i)]),
            "home": draw.choice([None, "own", "rent"]),
        }
        for i in range(500)
    ]


def as_of(known: list[dict[str, Any]], customer: int, moment: datetime) -> dict[str, Any]:
    """The slow way: the latest row that was known at that moment; income at most a week old."""
    rows = [row for row in known if row["customer"] == customer and row["time"] <= moment]
    if not rows:
        return {}
    latest = max(rows, key=lambda row: row["time"])
    found = {"home": latest["home"]}
    if moment - latest["time"] <= timedelta(days=7):
        found["income"] = latest["income"]
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def known() -> list[dict[str, Any]]:
    return history(random.Random(2))


@pytest.fixture
def histories(known: list[dict[str, Any]], tmp_path: Path) -> Histories:
    path = tmp_path / "customers.parquet"
    pq.write_table(pa.Table.from_pylist(known), path)
    return Histories({"customer": str(path)}, SPECIFICATION, "asked_at")


def test_nothing_that_came_later_is_seen_and_nothing_too_old_is_used(
    histories: Histories, known: list[dict[str, Any]]
) -> None:
    draw = random.Random(3)
    rows = [
        {"customer": draw.randrange(25), "asked_at": START + timedelta(minutes=draw.randrange(80_000))}
        for _ in range(800)
    ]
    rows += [{"customer": row["customer"], "asked_at": row["time"]} for row in known]  # the very moment
    rows += [{"customer": r["customer"], "asked_at": r["time"] - timedelta(microseconds=1)} for r in known]
    block = ArrowBlock(np.arange(len(rows)), pa.Table.from_pylist(rows))
    assert histories.of(block) == [as_of(known, row["customer"], row["asked_at"]) for row in rows]


@pytest.mark.parametrize(
    "text", ["2024-02-01T12:00:00Z", "2024-02-01T13:00:00+01:00", "2024-02-01 12:00:00", "1706788800"]
)
def test_times_may_be_text_in_any_zone_or_seconds(histories: Histories, known: list[dict[str, Any]], text: str) -> None:
    block = PlainBlock(np.arange(1), {"customer": [3], "asked_at": [text]}, {}, False)
    assert histories.of(block) == [as_of(known, 3, datetime(2024, 2, 1, 12, tzinfo=UTC))]


def test_a_row_without_a_time_is_told_and_harms_no_other(histories: Histories) -> None:
    block = PlainBlock(np.arange(3), {"customer": [3] * 3, "asked_at": [None, "soon", "2024-02-01"]}, {}, False)
    first, second, third = histories.of(block)
    assert first == "asked_at: the row has no time, which says what was known of its entities"
    assert second == "asked_at: expected a time such as 2024-05-01T12:00:00Z, got 'soon'"
    assert isinstance(third, dict)


class Row(msgspec.Struct):
    features: dict[str, Any] = {}


def test_what_the_row_brings_goes_before_what_is_stored(histories: Histories, known: list[dict[str, Any]]) -> None:
    moment = START + timedelta(days=30)
    stored = as_of(known, 4, moment)
    table = pa.table(
        {"customer": [4, 4], "asked_at": [moment, moment], "home": ["family", None], "amount": [5.0, float("nan")]}
    )
    questions = Questions(Row, FIELDS, {}, histories)
    first, second = questions.of(ArrowBlock(np.arange(2), table))
    assert first.features == {**stored, "home": "family", "amount": 5.0}
    assert second.features == stored


def test_cells_of_a_csv_become_what_the_features_are() -> None:
    fields = (
        Field("features", required=False, scalar=False),
        *(
            Field(name, required=False, scalar=True, feature=kind)
            for name, kind in (("a", "number"), ("b", "integer"), ("c", "boolean"), ("d", "category"), ("e", "number"))
        ),
    )
    cells = {"a": ["1.5"], "b": ["7"], "c": ["True"], "d": ["7"], "e": ["x"], "features": [None]}
    [row] = Questions(Row, fields, {}).of(PlainBlock(np.arange(1), cells, {}, True))
    assert row.features == {"a": 1.5, "b": 7, "c": True, "d": "7", "e": "x"}


def test_a_file_that_is_no_history_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"customer": [1], "when": [START]}), path)
    with pytest.raises(UserError, match="no column 'time'"):
        Histories({"customer": str(path)}, SPECIFICATION, "asked_at")
    with pytest.raises(UserError, match="no such entity; there is customer"):
        Description(FIELDS, ()).stored("merchant")
