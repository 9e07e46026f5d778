"""What the table says that resolve.lua reads; what Envoy makes of it is proved in tests/live."""

from __future__ import annotations

import pytest

from marctl.core.explainers import explainer_of
from marctl.gateway.policies import Traffic
from marctl.gateway.traffic import keepers, line, ranges, resolver, takes_labels

SERVED = {"mcqa": {"1.9", "1.10", "2.0"}, explainer_of("mcqa"): {"2.0"}}


def test_a_models_traffic_is_one_line() -> None:
    policy = Traffic(
        split={"1.9": 80, "2.0": 20},
        experiment="v2",
        sticky="x-session",
        shadow={"1.10": 0.25},
        fallback=["1.9", "stale"],
        timeout_s=8,
    )
    assert line("mcqa", SERVED, policy) == (
        "mcqa versions=1.9,1.10,2.0 explainers=2.0 split=2.0:2000,1.9:8000 sticky=x-session experiment=v2 "
        "shadow=1.10:2500 fallback=1.9,stale timeout_ms=8000 explain_ms=60000 labels=1.9 keepers=1.10,2.0"
    )


def test_versions_in_shared_workers_have_their_address_in_the_line() -> None:
    at = {("mcqa", "2.0"): "_shared-1/1/mcqa/2.0", (explainer_of("mcqa"), "2.0"): "_shared-2-explain/1/mcqa/2.0"}
    told = line("mcqa", SERVED, Traffic(split={"2.0": 1}), at).split()
    assert "at=2.0:_shared-1%2F1%2Fmcqa%2F2.0" in told
    assert "explains_at=2.0:_shared-2-explain%2F1%2Fmcqa%2F2.0" in told


def test_no_name_can_be_taken_for_something_else() -> None:
    """Not for a field, a further line, nor the end of the table."""
    name = "a b=c,d:e\n]]f%"
    told = line(name, {name: {"1"}}, Traffic(split={"1": 1}))
    assert told.split()[0] == "a%20b%3Dc%2Cd%3Ae%0A%5D%5Df%25"
    assert "\n" not in told


def test_explainers_are_no_models_of_their_own() -> None:
    code = resolver(SERVED, {"mcqa": Traffic(split={"2.0": 1})})["typed_config"]["default_source_code"]["inline_string"]
    table = code.split("[[")[1].split("]]")[0]
    assert [row.split()[0] for row in table.strip().splitlines()] == ["mcqa"]


def test_the_newest_version_comes_first_and_the_sum_is_constant() -> None:
    """Or a ramp would move users who are in it."""
    assert ranges({"1.9": 80, "1.10": 20}) == [("1.10", 2000), ("1.9", 8000)]
    assert ranges({"1.10": 1, "1.9": 2}) == [("1.10", 3333), ("1.9", 6667)]


@pytest.mark.parametrize("weights", [{"1": 1, "2": 1, "3": 1}, {"1": 0.1, "2": 99.9}, {"1": 7, "2": 11, "3": 13}])
def test_weights_always_sum_up(weights: dict[str, float]) -> None:
    assert sum(weight for _, weight in ranges(weights)) == 10_000


def test_a_version_of_weight_zero_gets_nothing() -> None:
    assert ranges({"1": 5, "2": 0}) == [("1", 10_000)]


def test_labels_go_where_most_traffic_goes() -> None:
    assert takes_labels(Traffic(split={"1.9": 50, "1.10": 50, "2.0": 1})) == "1.10"


def test_another_versions_answer_is_looked_up_by_those_with_the_least_to_do() -> None:
    assert keepers(["1", "2", "3"], Traffic(split={"2": 1}, fallback=["1", "stale"])) == ["3", "2"]
    assert keepers(["1"], Traffic(split={"1": 1})) == ["1"]
