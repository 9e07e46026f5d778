"""Every way in which a row can be wrong has one stated outcome, and is that row's alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from marctl_handlers.features import Features, specification_of

SPECIFICATION = specification_of(
    [
        {"name": "income", "type": "number", "range": [0, 1000], "unit": "EUR"},
        {"name": "debt", "type": "number", "range": [0, 100], "outside": "clip", "missing": "mean", "fill": 7.5},
        {"name": "children", "type": "integer", "range": [0, 20], "default": 2},
        {"name": "married", "type": "boolean", "missing": "keep"},
        {"name": "home", "type": "category", "categories": ["rent", "own"], "default": "own", "transform": "one_hot"},
        {
            "name": "job",
            "type": "category",
            "categories": ["fixed", "free"],
            "unknown": "refuse",
            "missing": "keep",
            "transform": "ordinal",
        },
        {"name": "city", "type": "category", "missing": "keep", "transform": {"kind": "hash", "buckets": 4}},
        {
            "name": "burden",
            "type": "number",
            "derived": {"operation": "ratio", "of": ["debt", "income"]},
            "missing": "keep",
        },
    ]
)
FEATURES = Features(SPECIFICATION)
GOOD = {"income": 100, "debt": 50.0, "children": 1, "married": True, "home": "rent", "job": "free", "city": "Rome"}
NAMES = [feature.name for feature in SPECIFICATION.features]


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name not in names}


def settled(row: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Values, and what was imputed and clipped."""
    found = FEATURES.resolve([row])
    assert not found.faults
    [imputed], [clipped] = (found.names(marks, SPECIFICATION.features) for marks in (found.imputed, found.clipped))
    return FEATURES.shown(found, 0), imputed, clipped


def test_a_good_row_is_taken_as_it_is() -> None:
    values, imputed, clipped = settled(GOOD)
    assert {name: values[name] for name in without("city")} == without("city")
    assert values["burden"] == 0.5
    assert not imputed
    assert not clipped


@pytest.mark.parametrize(
    ("name", "filled"), [("debt", 7.5), ("children", 2), ("married", None), ("home", "own"), ("city", None)]
)
def test_a_missing_value_follows_its_rule_and_is_marked(name: str, filled: Any) -> None:
    nan = {**GOOD, name: float("nan")} if SPECIFICATION[name].type in ("number", "integer") else without(name)
    for row in (without(name), {**GOOD, name: None}, nan):
        values, imputed, _ = settled(row)
        assert values[name] == filled
        assert imputed == [name]


def test_an_unknown_category_counts_as_missing_where_the_rule_says_so() -> None:
    values, imputed, _ = settled({**GOOD, "home": "castle"})
    assert values["home"] == "own"
    assert imputed == ["home"]


def test_a_value_outside_of_the_range_is_clipped_and_marked_where_the_rule_says_so() -> None:
    values, _, clipped = settled({**GOOD, "debt": 1e300 / 1e270})
    assert values["debt"] == 100
    assert clipped == ["debt"]


def test_a_ratio_by_zero_is_a_missing_value() -> None:
    values, imputed, _ = settled({**GOOD, "income": 0})
    assert values["burden"] is None
    assert imputed == ["burden"]


def test_a_boundary_of_the_range_is_within_it() -> None:
    assert settled({**GOOD, "income": 0})[0]["income"] == 0
    assert settled({**GOOD, "income": 1000})[0]["income"] == 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"income": "12"}, 'expected a number, got "12"'),
        ({"income": True}, "expected a number, got true"),
        ({"income": [1]}, "expected a number, got a list"),
        ({"income": {"a": 1}}, "expected a number, got an object"),
        ({"income": 10**400}, "expected a finite number, at most 3.4e+38, got a number too large"),
        ({"income": 1e39}, "expected a finite number, at most 3.4e+38, got 1e39"),
        ({"income": float("inf")}, "expected a finite number, at most 3.4e+38, got a number too large"),
        ({"debt": float("-inf")}, "expected a finite number, at most 3.4e+38, got a number too large"),
        ({"income": 1001}, "expected 0 to 1000 EUR, got 1001"),
        ({"income": None}, "missing; expected a value"),
        ({"children": 1.5}, "expected an integer, got 1.5"),
        ({"children": -1}, "expected 0 to 20, got -1"),
        ({"married": 1}, "expected true or false, got 1"),
        ({"married": "yes"}, 'expected true or false, got "yes"'),
        ({"home": 3}, "expected text, got 3"),
        ({"home": ["rent"]}, "expected text, got a list"),
        ({"home": "x" * 1_000_000}, "expected at most 1,000 characters, got 1,000,000"),
        ({"city": "x" * 1_000_000}, "expected at most 1,000 characters, got 1,000,000"),
        ({"job": "astronaut"}, 'expected one of "fixed", "free", got "astronaut"'),
        ({"incme": 3}, "no such feature; did you mean `income`?"),
        ({"burden": 3}, "is computed from other features; leave it out"),
    ],
)
def test_a_fault_is_told_of_its_row_and_feature_and_harms_no_neighbour(change: dict[str, Any], said: str) -> None:
    [name] = change
    found = FEATURES.resolve([GOOD, {**GOOD, **change}, GOOD])
    assert found.faults == {1: [(name, said)]}
    alone = FEATURES.resolve([GOOD])
    for i in (0, 2):
        np.testing.assert_array_equal(found.values[:, i], alone.values[:, 0])
        assert not found.imputed[:, i].any()


def test_all_faults_of_a_row_are_told() -> None:
    row = {**without("income"), "children": "2", "x": 1, "job": "astronaut"}
    assert [name for name, _ in FEATURES.resolve([row]).faults[0]] == ["income", "children", "job", "x"]


def test_integers_may_be_written_with_a_point() -> None:
    assert settled({**GOOD, "children": 3.0})[0]["children"] == 3


def test_a_lone_surrogate_is_a_category_like_any_other() -> None:
    assert not FEATURES.resolve([{**GOOD, "city": "\ud800"}]).faults


def test_a_batch_gives_what_its_rows_give_one_by_one() -> None:
    rows = [GOOD, without("debt"), {**GOOD, "home": "castle"}, {**GOOD, "debt": 1e9}, {**GOOD, "income": "12"}]
    together = FEATURES.encode(FEATURES.resolve(rows))
    for i, row in enumerate(rows[:-1]):
        np.testing.assert_array_equal(together[i], FEATURES.encode(FEATURES.resolve([row]))[0])


def test_no_rows_are_no_rows() -> None:
    assert FEATURES.encode(FEATURES.resolve([])).shape == (0, len(FEATURES.columns))


def test_a_batch_costs_less_than_one_look_at_every_cell() -> None:
    """Vectorized: 32 rows take less than a third of what 32 batches of one take."""
    rows = [GOOD] * 32

    def spent(batches: list[list[dict[str, Any]]]) -> float:
        started = time.process_time()
        for _ in range(20):
            for batch in batches:
                FEATURES.encode(FEATURES.resolve(batch))
        return time.process_time() - started

    spent([rows])
    assert spent([rows]) < spent([[row] for row in rows]) / 3
