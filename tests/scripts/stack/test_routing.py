from __future__ import annotations

import pytest

from marctl.gateway.policies import Traffic
from marctl.stack.document import Document, Model, Version
from marctl.stack.routing import routing


def document(traffic: Traffic | None, *versions: str) -> Document:
    content = Version(archive="sha256:" + "0" * 64, file="x.mar", workers=1, explainers=1)
    return Document({"mcqa": Model(default=versions[0], versions=dict.fromkeys(versions, content), traffic=traffic)})


ALL = {("mcqa", version) for version in ("1", "2", "3")}
SPLIT = Traffic(split={"1": 95, "2": 5}, shadow={"3": 10}, fallback=["1", "stale"], experiment="e")


def test_what_answers_is_routed_as_declared() -> None:
    served, policies, _ = routing(document(SPLIT, "1", "2", "3"), {*ALL, ("mcqa-explain", "1")})
    assert served == {"mcqa": {"1", "2", "3"}, "mcqa-explain": {"1"}}
    assert policies == {"mcqa": SPLIT}


def test_explainers_that_load_are_routed_so_that_whoever_asks_them_is_told_to_wait() -> None:
    both = {*ALL, ("mcqa-explain", "1")}
    served, *_ = routing(document(SPLIT, "1", "2", "3"), both, loading={("mcqa-explain", "2"), ("mcqa-explain", "9")})
    assert served == {"mcqa": {"1", "2", "3"}, "mcqa-explain": {"1", "2"}}


@pytest.mark.parametrize(
    ("missing", "split"), [("1", {"2": 5}), ("3", {"1": 95, "2": 5})], ids=["nobody stands in", "shadow"]
)
def test_a_version_that_does_not_answer_is_left_out_for_the_time_being(missing: str, split: dict[str, float]) -> None:
    served, policies, _ = routing(document(SPLIT, "1", "2", "3"), ALL - {("mcqa", missing)})
    policy = policies["mcqa"]
    assert policy.split == split
    assert missing not in {*policy.shadow, *policy.fallback, *served["mcqa"]}
    assert policy.experiment == "e"


def test_a_version_with_a_fallback_that_answers_keeps_its_place() -> None:
    """The gateway falls back for it, and says so in the answer, the log and the counts."""
    served, policies, _ = routing(document(SPLIT, "1", "2", "3"), ALL - {("mcqa", "2")})
    assert (served["mcqa"], policies["mcqa"]) == ({"1", "2", "3"}, SPLIT)
    split = Traffic(split={"3": 1}, fallback=["2", "1"])
    served, policies, _ = routing(document(split, "1", "2", "3"), {("mcqa", "1")})
    assert (policies["mcqa"].split, policies["mcqa"].fallback) == ({"3": 1}, ["2", "1"])
    assert served["mcqa"] == {"1", "2", "3"}


def test_without_anyone_of_the_split_the_next_best_answers() -> None:
    split = Traffic(split={"3": 1}, fallback=["stale"])
    assert routing(document(split, "1", "2", "3"), {("mcqa", "1"), ("mcqa", "2")})[1]["mcqa"].split == {"1": 100}
    assert routing(document(split, "1", "2", "3"), {("mcqa", "2")})[1]["mcqa"].split == {"2": 100}
    assert routing(document(None, "1", "2", "3"), {("mcqa", "2"), ("mcqa", "3")})[1]["mcqa"].split == {"3": 100}


def test_a_model_of_which_nobody_answers_keeps_its_routes() -> None:
    """So that clients are told that it is unavailable, not that there is no such model."""
    assert routing(document(SPLIT, "1", "2", "3"), set())[:2] == ({"mcqa": {"1", "2", "3"}}, {"mcqa": SPLIT})


def test_the_gateway_is_told_where_versions_in_shared_workers_are() -> None:
    at = {("mcqa", "1"): "_shared-1/1/mcqa/1", ("gone", "1"): "_shared-1/1/gone/1"}
    assert routing(document(SPLIT, "1", "2", "3"), ALL, at)[2] == {("mcqa", "1"): "_shared-1/1/mcqa/1"}
