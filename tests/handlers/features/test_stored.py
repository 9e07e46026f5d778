"""What other writers may leave in a store, and what a model is given of it."""

from __future__ import annotations

from typing import Any

import pytest

from marctl_handlers.features import Features, specification_of
from marctl_handlers.features.stored import State, StoredForm, text_of
from tests.handlers.features.stored_rows import FRESHNESS_S, specification

NOW = 1_763_725_123.0
FORM = StoredForm(specification().stored("customer"))


def texts(**fields: Any) -> list[bytes | None]:
    """As HMGET gives them; `time` and `time_income` are the stamps."""
    stamps = {"@time": "time", "@time:income": "time_income"}
    found = [fields.get(stamps.get(field, field)) for field in FORM.fields]
    return [None if value is None else str(value).encode("utf-8", "surrogateescape") for value in found]


def states(row: list[bytes | None]) -> dict[str, State]:
    names = [feature.name for feature in FORM.features]
    return dict(zip(names, FORM.states(row, FORM.fresh(row, NOW)), strict=True))


def test_plain_text_becomes_values_of_the_feature_s_type() -> None:
    row = texts(income="1.2e3", home="owner", children="2", time=NOW)
    assert FORM.fresh(row, NOW) == {"income": 1200.0, "home": "owner", "children": 2.0}
    assert set(states(row).values()) == {State.FRESH}


@pytest.mark.parametrize("text", ["twelve", "nan", "inf", "-1e999", "1e7", "-1", "1,5", "0x10", "true", "\udcff"])
def test_a_value_that_the_specification_refuses_is_left_out(text: str) -> None:
    row = texts(income=text, time=NOW)
    assert FORM.fresh(row, NOW) == {}
    assert states(row)["income"] is State.INVALID


def test_a_count_is_whole_and_a_text_is_text() -> None:
    assert FORM.fresh(texts(children="2.0"), NOW) == {"children": 2.0}
    assert FORM.fresh(texts(children="2.5", home="\udcff"), NOW) == {}


def test_an_unknown_category_is_the_specification_s_to_judge() -> None:
    """It counts as missing and is marked, as one that a request brings."""
    row = FORM.fresh(texts(home="castle"), NOW)
    resolved = Features(specification()).resolve([{**row, "amount": 1}])
    assert "home" in resolved.names(resolved.imputed, specification().features)[0]


def test_no_text_is_no_value() -> None:
    row = texts(income="", home=None, time=NOW)
    assert FORM.fresh(row, NOW) == {}
    assert set(states(row).values()) == {State.MISSING}


@pytest.mark.parametrize(
    ("stamps", "usable"),
    [
        ({"time": NOW - FRESHNESS_S + 1}, True),
        ({"time": NOW - FRESHNESS_S - 1}, False),
        ({}, False),
        ({"time": "yesterday"}, False),
        ({"time": "nan"}, False),
        ({"time": NOW + 30}, True),
        ({"time": NOW * 1000}, False),
        ({"time": 0, "time_income": NOW}, True),
        ({"time": NOW, "time_income": 0}, True),
        ({"time": 0, "time_income": 0}, False),
    ],
)
def test_a_value_that_is_too_old_or_of_unknown_age_counts_as_missing(stamps: dict[str, Any], usable: bool) -> None:
    row = texts(income=5, children=1, **stamps)
    assert FORM.fresh(row, NOW) == ({"income": 5.0} if usable else {}) | {"children": 1.0}
    assert states(row)["income"] is (State.FRESH if usable else State.STALE)


def test_ages_are_told_where_they_are_known() -> None:
    assert FORM.ages(texts(income=5, time=NOW - 7), NOW) == [7.0, 7.0, 7.0]
    every = StoredForm(specification().stored("customer"), ages=True)
    row = [str(NOW - 7).encode() if field == "@time" else b"1" if ":" not in field else None for field in every.fields]
    assert every.ages(row, NOW) == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("number", 0.1), ("number", -3.0), ("number", 1e300), ("integer", 7), ("boolean", False), ("category", "a b")],
)
def test_what_is_written_is_what_is_read(kind: str, value: Any) -> None:
    outside = {"transform": "hash"} if kind == "category" else {}
    feature = specification_of(
        [{"name": "f", "type": kind, **outside, "entity": {"name": "e", "key": "e:{e}"}}]
    ).features[0]
    read = StoredForm([feature]).fresh([text_of(feature, value).encode()], NOW)
    assert read == ({"f": value} if value != 1e300 else {})  # beyond what models compute in
