"""Conditions on columns, against the same written as Python."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from marctl.batch.where import BadCondition, Condition

ROWS = [
    {"amount": 5, "region": "EU", "note": None},
    {"amount": 250, "region": "EU", "note": "x"},
    {"amount": None, "region": "UK", "note": "y"},
    {"amount": 101, "region": "US", "note": None},
]
COLUMNS = {name: pa.array([row[name] for row in ROWS]) for name in ROWS[0]}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("amount > 100", [1, 3]),
        ("100 < amount <= 250", [1, 3]),
        ("amount > 100 and region == 'EU'", [1]),
        ("amount < 100 or note is not None", [0, 1, 2]),
        ("region in ('UK', 'US')", [2, 3]),
        ("region not in ['UK', 'US']", [0, 1]),
        ("not amount > 100", [0]),
        ("note is None", [0, 3]),
        ("amount == 5.0", [0]),
        ("amount > -1 and not (region == 'EU')", [3]),
    ],
)
def test_selects_the_rows_that_meet_it_and_none_where_a_value_is_missing(text: str, rows: list[int]) -> None:
    assert Condition(text).mask(COLUMNS).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    "text",
    [
        "",
        "amount",
        "amount >",
        "1 > 0",
        "__import__('os').system('id')",
        "amount > open('/etc/passwd')",
        "a.b > 1",
        "amount > (lambda: 1)()",
        "amount is 5",
        "[x for x in y]",
        "(" * 300 + "a" + ")" * 300,
        "region in 'EU'",
    ],
)
def test_refuses_what_is_no_condition_and_runs_nothing_of_it(text: str, tmp_path: Path) -> None:
    if text == "amount":  # a column of booleans may stand alone
        with pytest.raises(BadCondition, match="does not fit"):
            Condition(text).mask({"amount": pa.array(["x"])})
        return
    with pytest.raises(BadCondition, match="expected a condition such as"):
        Condition(text)


def test_says_which_columns_it_does_not_fit() -> None:
    with pytest.raises(BadCondition, match=r"region is string"):
        Condition("region > 5").mask(COLUMNS)
