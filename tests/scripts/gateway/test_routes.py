"""What the routes say; what Envoy makes of them is proved in tests/live."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.gateway.policies import Traffic
from scripts.gateway.routes import fallback_routes, gateway_routes, patience, ranges

SERVED = {"mcqa": {"1.0", "2.0"}}


def routes(policy: Traffic) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway_routes(SERVED, {"mcqa": policy})["virtual_hosts"][0]["routes"]
    return found


def split_of(policy: Traffic) -> dict[str, Any]:
    found: dict[str, Any] = next(
        r["route"] for r in routes(policy) if r["match"] == {"path": "/predictions/mcqa"} and "route" in r
    )
    return found


def test_the_newest_version_comes_first_and_the_sum_is_constant() -> None:
    """Or a ramp would move users who are in it."""
    assert ranges({"1.9": 80, "1.10": 20}) == [("1.10", 2000), ("1.9", 8000)]
    assert ranges({"1.10": 1, "1.9": 2}) == [("1.10", 3333), ("1.9", 6667)]


@pytest.mark.parametrize("weights", [{"1": 1, "2": 1, "3": 1}, {"1": 0.1, "2": 99.9}, {"1": 7, "2": 11, "3": 13}])
def test_weights_always_sum_up(weights: dict[str, float]) -> None:
    assert sum(weight for _, weight in ranges(weights)) == 10_000


def test_a_version_of_weight_zero_gets_nothing() -> None:
    assert ranges({"1": 5, "2": 0}) == [("1", 10_000)]


def test_the_salt_stands_before_what_is_hashed() -> None:
    header = split_of(Traffic(split={"1.0": 1}, experiment="v2", sticky="x-session"))["hash_policy"][0]["header"]
    assert header["header_name"] == "x-session"
    assert header["regex_rewrite"]["substitution"] == "v2/\\1"


def test_a_copied_share_is_exact_to_a_millionth() -> None:
    policy = split_of(Traffic(split={"1.0": 1}, shadow={"2.0": 0.25}))["request_mirror_policies"][0]
    assert policy["runtime_fraction"]["default_value"] == {"numerator": 2500, "denominator": "MILLION"}


def test_without_a_fallback_nothing_that_was_begun_is_asked_again() -> None:
    policy = patience(10, fallback=False)["retry_policy"]
    assert (policy["retry_on"], policy["num_retries"]) == ("connect-failure,reset-before-request", 1)


def test_each_rung_has_half_the_time_of_the_one_above() -> None:
    policy = Traffic(split={"3": 1}, fallback=["2", "1"], timeout_s=8)
    found = fallback_routes({"m": {"1", "2", "3"}}, {"m": policy})["virtual_hosts"][0]["routes"]
    fallbacks = [r["route"]["timeout"] for r in found if "x-fallback" in str(r.get("response_headers_to_add"))]
    assert fallbacks == ["2.020s", "4.020s", "4.020s"]


def test_the_last_rungs_failure_is_a_503() -> None:
    found = fallback_routes(SERVED, {"mcqa": Traffic(split={"2.0": 1}, fallback=["1.0"])})
    last = [r for r in found["virtual_hosts"][0]["routes"] if r.get("direct_response")]
    assert [r["match"]["safe_regex"]["regex"] for r in last] == ["^/predictions/mcqa/1\\.0$"]


def test_a_request_under_way_to_a_version_that_is_withdrawn_still_falls_back() -> None:
    policy = Traffic(split={"1.0": 1}, fallback=["1.0"])
    last = fallback_routes({"mcqa": {"1.0"}}, {"mcqa": policy})["virtual_hosts"][0]["routes"][-1]
    assert last["match"]["safe_regex"]["regex"] == "^/predictions/mcqa/[^/]+$"
    assert last["route"]["cluster"] == "mcqa|1.0|guarded"
