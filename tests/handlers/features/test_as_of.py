"""History joined without a look ahead, beside a slow reading of the definition."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from marctl_handlers.features.as_of import as_of
from tests.handlers.features.stored_rows import FRESHNESS_S, specification


def slowly(rows: list[dict[str, Any]], customer: int, time_s: float) -> dict[str, Any]:
    known = [row for row in rows if row["customer"] == customer and row["time"] <= time_s]
    if not known:
        return {"income": None, "children": None}
    last = max(enumerate(known), key=lambda pair: (pair[1]["time"], pair[0]))[1]
    too_old = time_s - last["time"] > FRESHNESS_S
    return {"income": None if too_old else last["income"], "children": last["children"]}


def test_each_row_gets_what_was_known_at_its_time() -> None:
    draw = random.Random(7)
    rows = [
        {
            "customer": draw.randrange(20),
            "time": float(draw.randrange(20_000)),
            "income": draw.choice([None, draw.random()]),
            "children": i,
        }
        for i in range(500)
    ]
    asked = [(draw.randrange(25), float(draw.randrange(25_000))) for _ in range(500)]
    asked += [(row["customer"], row["time"]) for row in rows[:50]]
    ids, times_s = zip(*asked, strict=True)
    found = as_of(pa.Table.from_pylist(rows), specification(), "customer", ids, times_s)
    assert found.to_pylist() == [slowly(rows, *each) for each in asked]


def test_times_may_be_timestamps_and_a_null_replaces_a_value() -> None:
    times = [datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in (1, 2)]
    table = pa.table({"shop": ["a", "a"], "at": times, "open": [True, None]})
    asked_s = [times[0].timestamp() + 1, times[1].timestamp(), times[0].timestamp() - 1]
    found = as_of(table, specification(), "shop", ["a", "a", "a"], asked_s, time_column="at")
    assert found.column("open").to_pylist() == [True, None, None]
    assert as_of(table, specification(), "shop", [], [], time_column="at").num_rows == 0


@pytest.mark.parametrize(
    "columns", [{"time": [1.0], "income": [1.0]}, {"customer": [1], "income": [1]}, {"customer": [1], "time": [1]}]
)
def test_a_table_that_lacks_a_column_is_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="column"):
        as_of(pa.table(columns), specification(), "customer", [1], [1])
