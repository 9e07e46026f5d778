from __future__ import annotations

from pathlib import Path

import pytest

from marctl.gateway.policies import Traffic, TrafficInvalid, check, dump, parse, read

SERVED = {"mcqa": ["1.0", "1.9", "1.10"], "embed": ["1.0"]}
WHOLE = """
mcqa:
  split: {"1.9": 80, "1.10": 20}
  sticky: x-session
  experiment: choices-v2
  shadow: {"1.0": 12.5}
  fallback: ["1.9", "1.0"]
  timeout_s: 10
"""


def faults(text: str) -> list[str]:
    with pytest.raises(TrafficInvalid) as caught:
        parse(text, "traffic.yaml", SERVED)
    return [line.strip() for line in str(caught.value).splitlines()]


def test_a_whole_document_is_read() -> None:
    policy = parse(WHOLE, "x", SERVED)["mcqa"]
    assert policy.split == {"1.9": 80, "1.10": 20}
    assert (policy.sticky, policy.experiment, policy.timeout_s) == ("x-session", "choices-v2", 10)
    assert (policy.shadow, policy.fallback) == ({"1.0": 12.5}, ["1.9", "1.0"])


def test_only_the_split_must_be_said() -> None:
    policy = parse('mcqa: {split: {"1.9": 1}}', "x", SERVED)["mcqa"]
    assert (policy.sticky, policy.experiment, policy.shadow, policy.fallback) == ("x-user-id", "", {}, [])


def test_what_is_dumped_is_read_again() -> None:
    policies = parse(WHOLE, "x", SERVED)
    assert parse(dump(policies), "x", SERVED) == policies


def test_all_faults_are_told_at_once_with_their_places() -> None:
    found = faults('mcqa: {split: {"1.9": -1}, sticky: X User, shadow: {"1.0": 0}, colour: red, fallback: 1.0}')
    assert found[0] == "traffic.yaml: 5 faults"
    assert found[1].startswith("mcqa: Additional properties")
    assert [line.split(":")[0] for line in found[2:]] == [
        "mcqa.fallback",
        "mcqa.shadow.1.0",
        "mcqa.split.1.9",
        "mcqa.sticky",
    ]


def test_versions_that_are_not_there_are_told_with_those_that_are() -> None:
    found = faults('mcqa: {split: {"9": 1, "1.9": 0}, fallback: ["8", "1.0", "1.0"]}')
    assert found[1:] == [
        "mcqa.split: version 9 is not served; there are: 1.0, 1.10, 1.9",
        "mcqa.fallback: version 8 is not served; there are: 1.0, 1.10, 1.9",
        "mcqa.fallback: version 1.0 stands there more than once",
    ]


def test_a_model_that_is_not_there_is_told() -> None:
    assert faults('other: {split: {"1": 1}}')[1] == "other: no such model is served; there are: embed, mcqa"


def test_weights_that_are_all_zero_are_refused() -> None:
    assert faults('mcqa: {split: {"1.9": 0}}')[1] == "mcqa.split: all weights are 0; nobody would answer"


def test_a_version_without_quotes_is_refused_because_yaml_reads_a_number() -> None:
    assert faults("mcqa: {split: {1.10: 1}}")[1] == (
        'mcqa.split.1.1: YAML reads this key as float; write "1.1" with quotes'
    )


@pytest.mark.parametrize("text", ["", "[]", "7", "mcqa: 7", "mcqa:", "{}"])
def test_what_is_no_document_is_refused(text: str) -> None:
    assert "fault" in faults(text)[0]


def test_what_is_no_yaml_is_refused() -> None:
    assert "not YAML" in faults("mcqa: {")[0]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrafficInvalid, match=r"gone\.yaml"):
        read(tmp_path / "gone.yaml")


def test_a_document_that_was_put_together_is_checked_too() -> None:
    with pytest.raises(TrafficInvalid, match=r"mcqa\.split\.1\.9: -1 is less than"):
        check("mcqa", Traffic(split={"1.9": -1}), SERVED)


def test_the_rungs_of_a_version_are_those_below_it() -> None:
    policy = Traffic(split={"3": 1}, fallback=["2", "1"])
    assert [policy.fallbacks_after(version) for version in ("3", "2", "1")] == [["2", "1"], ["1"], []]


def test_a_version_that_goes_leaves_every_place() -> None:
    policy = Traffic(split={"1": 1, "2": 1}, shadow={"2": 5, "3": 5}, fallback=["2", "1"])
    assert policy.without("2") == Traffic(split={"1": 1}, shadow={"3": 5}, fallback=["1"])


def test_nothing_is_left_of_a_document_whose_last_version_goes() -> None:
    assert Traffic(split={"1": 1, "2": 0}).without("1") is None


def test_stale_is_a_rung_but_no_version() -> None:
    policy = parse('mcqa: {split: {"1.9": 1}, fallback: ["1.0", stale]}', "x", SERVED)["mcqa"]
    assert policy.versions == {"1.9", "1.0"}
    assert (policy.fallbacks_after("1.9"), policy.fallbacks_after("1.0")) == (["1.0", "stale"], ["stale"])
    rest = policy.without("1.0")
    assert rest is not None
    assert rest.fallback == ["stale"]


def test_stale_stands_at_the_end_and_needs_another_version() -> None:
    assert faults('mcqa: {split: {"1.9": 1}, fallback: [stale, "1.0"]}')[1:] == [
        "mcqa.fallback: stale must be the last entry; there is nothing to try after it"
    ]
    assert faults('embed: {split: {"1.0": 1}, fallback: [stale]}')[1:] == [
        "embed.fallback: stale is answered by a worker of another version, and 1.0 is the only one"
    ]
