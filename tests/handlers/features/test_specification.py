"""A specification is read whole, and all its faults are told at once, each with its feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from marctl_handlers.core.errors import LoadError
from marctl_handlers.features import FeaturesInvalid, read_features, specification_of, write_features

NUMBER = {"name": "income", "type": "number"}
HOME = {"name": "home", "type": "category", "transform": "one_hot"}
A = {"name": "a", "type": "number"}


def faults(*features: Any) -> list[str]:
    with pytest.raises(FeaturesInvalid) as caught:
        specification_of({"features": list(features)})
    return caught.value.faults


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({**NUMBER, "typ": 1}, "unknown field `typ`"),
        ({**NUMBER, "type": "money"}, "'money'"),
        ({**NUMBER, "range": [5, 1]}, "income.range: 5.0 is above 1.0"),
        ({**NUMBER, "range": [0, float("nan")]}, "nan: expected a number"),
        ({**NUMBER, "outside": "clip"}, "income.outside: clip needs a range"),
        ({**NUMBER, "missing": "default"}, "income.missing: default needs a `default`"),
        ({**NUMBER, "default": "x"}, 'income.default: expected a number, got "x"'),
        ({**NUMBER, "range": [0, 1], "default": 2}, "income.default: expected 0 to 1, got 2.0"),
        ({**NUMBER, "default": 1, "missing": "mean"}, "would never be used"),
        ({**NUMBER, "transform": "one_hot"}, "expected clip, log, standardise in this order"),
        ({**NUMBER, "transform": ["standardise", "log"]}, "expected clip, log, standardise in this order"),
        ({**NUMBER, "transform": "log"}, "log needs a range whose lower end"),
        ({**NUMBER, "transform": "logarithm"}, "'logarithm'"),
        ({**NUMBER, "transform": {"kind": "bucket", "edges": [2, 1]}}, "the edges of bucket must rise"),
        ({**NUMBER, "transform": {"kind": "clip", "low": 2, "high": 1}}, "clip from 2.0 to 1.0"),
        ({**NUMBER, "categories": ["a"]}, "belongs to categories"),
        ({**HOME, "transform": []}, "exactly one of one_hot, ordinal and hash"),
        ({**HOME, "categories": ["a", "a"]}, "stands more than once"),
        ({**HOME, "categories": ["a"], "default": "b"}, '"b" is none of the categories'),
        ({**HOME, "range": [0, 1]}, "home.range: belongs to numbers"),
        ({**HOME, "monotone": "increasing"}, "no order"),
        ({**HOME, "transform": "hash", "categories": ["a"]}, "hash takes any category"),
        ({**HOME, "transform": "hash", "missing": "most_frequent"}, "give a default"),
        ({**A, "derived": {"operation": "ratio", "of": ["a", "b"]}}, "'b' is no numeric feature"),
        ({**A, "derived": {"operation": "ratio", "of": ["a"]}}, "length >= 2"),
        ("income", "expected `object`, got `str`"),
    ],
)
def test_a_fault_is_told_with_its_feature(feature: Any, said: str) -> None:
    assert said in "\n".join(faults(feature)).replace("Object contains", "").replace("Expected", "expected")


def test_all_faults_are_told_at_once() -> None:
    assert len(faults({**NUMBER, "range": [5, 1]}, {**HOME, "transform": []}, A, A)) == 3


def test_features_made_of_each_other_are_refused_with_their_cycle() -> None:
    one = {"name": "one", "type": "number", "derived": {"operation": "sum", "of": ["two", "a"]}}
    two = {"name": "two", "type": "number", "derived": {"operation": "sum", "of": ["one", "a"]}}
    [fault] = faults(A, one, two)
    assert "cycle" in fault
    assert "one" in fault
    assert "two" in fault


def test_yaml_that_contains_itself_is_refused() -> None:
    content = yaml.safe_load("features: &again\n  - {name: a, type: number, description: *again}")
    with pytest.raises(FeaturesInvalid, match=r"features\[0\] \(a\)"):
        specification_of(content)


@pytest.mark.parametrize("content", [None, [], {}, {"features": {}}, "x", {"features": []}])
def test_what_is_no_list_of_features_is_refused(content: Any) -> None:
    with pytest.raises(FeaturesInvalid, match="expected"):
        specification_of(content)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    wanted = specification_of([{**NUMBER, "range": [0, None], "transform": ["log"], "default": 1}, HOME, A][1:])
    write_features(wanted, tmp_path)
    assert read_features(tmp_path) == wanted


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"features": [{"name": "a"}]}'])
def test_a_damaged_file_stops_the_load(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "features.json").write_bytes(content)
    with pytest.raises(LoadError, match=r"features\.json"):
        read_features(tmp_path)


def test_a_missing_file_stops_the_load(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"features\.json is missing"):
        read_features(tmp_path)
