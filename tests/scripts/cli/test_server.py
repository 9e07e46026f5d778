"""What `up` and `status` say of a version is what it gets, and what its workers do."""

from __future__ import annotations

import pytest

from marctl.cli.server import place, traffic, workers
from marctl.gateway.policies import Traffic
from marctl.stack.document import Model, Version
from marctl.stack.look import traffic_of


def model(policy: Traffic | None) -> Model:
    versions = {name: Version(archive="sha256:" + "0" * 64, file=f"quiz-{name}.mar", workers=1) for name in "12"}
    return Model(default="2", versions=versions, traffic=policy)


@pytest.mark.parametrize(
    ("policy", "first", "second"),
    [
        (None, ("", "0 %"), (" (default)", "100 %")),
        (Traffic(split={"1": 4, "2": 1}), (" (80 %)", "80 %"), (" (default, 20 %)", "20 %")),
        (Traffic(split={"1": 1}), (" (100 %)", "100 %"), (" (default, 0 %)", "0 %")),
        (Traffic(split={"2": 5}, shadow={"1": 10}), ("", "0 %, 10 % copies"), (" (default)", "100 %")),
    ],
)
def test_each_version_is_told_with_its_share(
    policy: Traffic | None, first: tuple[str, str], second: tuple[str, str]
) -> None:
    for version, told in (("1", first), ("2", second)):
        row = {"default": version == "2", **traffic_of(model(policy), version)}
        assert (place(row), traffic(row)) == told


def test_workers_that_explain_have_no_share_of_their_own() -> None:
    assert traffic(traffic_of(None, "1")) == ""


@pytest.mark.parametrize(
    ("ready", "asked", "pids", "told"),
    [
        (0, 1, [71], "0/1 loading"),
        (1, 2, [71, 72], "1/2 loading"),
        (2, 2, [71, 72], "2/2"),
        (0, 1, [], "0/1"),  # nobody is left, and none has been started again
        (0, 0, [], "0/0"),
    ],
)
def test_a_worker_that_does_not_answer_yet_is_told_to_load(ready: int, asked: int, pids: list[int], told: str) -> None:
    assert workers({"workers_ready": ready, "workers_asked": asked, "pids": pids}) == told
