"""The cache of a whole stack: asked at the gateway, kept in a real Redis, which is then broken in every way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import requests

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl_handlers.redis.cache import PREFIX
from tests.handlers.redis.test_cache import OWN_FIELDS
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.questions import some_questions

pytestmark = pytest.mark.live
KINDS = {"1.0": "bert", "2.0": "roberta"}


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Iterator[Site]:
    """Two versions of quiz; the gateway sends all to 2.0."""
    made = make_site()
    for version, kind in KINDS.items():
        build(adopt(tiny_model(kind), "quiz", version, made.folder / "recipes", precision="float32"), made.store)
    made.up()
    made.call("route", "split", "quiz", "2.0=100")
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def status(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.call("status")
    return found


@pytest.fixture(scope="module")
def client(status: dict[str, Any]) -> redis.Redis:
    return redis.Redis.from_url(status["redis"])


@pytest.fixture
def ask(status: dict[str, Any]) -> Callable[..., requests.Response]:
    def ask(question: Any, version: str = "", **headers: str) -> requests.Response:
        path = f"/predictions/quiz/{version}".rstrip("/")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(status["gateway"] + path, json=question, headers=named, timeout=30)

    return ask


def fresh_questions() -> Iterator[dict[str, Any]]:
    for seed in range(1000):
        yield from some_questions(20, seed=seed)


questions = fresh_questions()
"""Each is asked by one test alone."""


def bare(answer: requests.Response) -> bytes:
    return OWN_FIELDS.sub(b"", answer.content)


def test_the_second_answer_is_the_first_ones_bytes(ask: Callable[..., requests.Response]) -> None:
    question = next(questions)
    first, again, fresh = ask(question), ask(question), ask(question, Cache_Control="no-cache")
    assert [answer.headers["x-cache"] for answer in (first, again, fresh)] == ["miss", "hit", "miss"]
    assert bare(first) == bare(again) == bare(fresh)
    assert first.json()["prediction_id"] != again.json()["prediction_id"]
    assert again.headers["x-model-version"] == "2.0"


def test_versions_do_not_share_answers(ask: Callable[..., requests.Response]) -> None:
    question = next(questions)
    answers = {version: [ask(question, version) for _ in range(2)] for version in KINDS}
    states = {version: [answer.headers.get("x-cache") for answer in pair] for version, pair in answers.items()}
    assert states == {"1.0": ["miss", "hit"], "2.0": ["miss", "hit"]}
    assert answers["1.0"][1].json()["probabilities"] != answers["2.0"][1].json()["probabilities"]


def test_of_500_equal_requests_at_once_few_reach_the_model(site: Site, ask: Callable[..., requests.Response]) -> None:
    """One, unless a busy moment of this machine made the worker leave Redis alone; and one is the test's own."""
    question = next(questions)

    def figures() -> dict[str, Any]:
        """With those of all that was asked up to now: a worker reports with the first batch after a second."""
        time.sleep(1.1)
        ask(next(questions))
        return settled(lambda: next(r for r in site.call("cache", "stats")["versions"] if r["version"] == "2.0"))

    before = figures()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: ask(question), range(500)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({bare(answer) for answer in answers}) == 1
    after = figures()
    assert after["hits"] + after["misses"] - before["hits"] - before["misses"] == 501
    assert 2 <= after["computed"] - before["computed"] <= 6


def settled(figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Reports take a moment through TorchServe's log reader."""
    before: dict[str, Any] = {}
    while (now := figures()) != before:
        before = now
        time.sleep(0.5)
    return now


def test_a_purge_forgets_one_version_or_all(site: Site, ask: Callable[..., requests.Response]) -> None:
    question = next(questions)
    for version in ("1.0", "2.0"):
        ask(question, version)
    assert site.call("cache", "purge", "quiz", "2.0")["purged"] >= 1
    assert [ask(question, version).headers["x-cache"] for version in ("1.0", "2.0")] == ["hit", "miss"]
    assert site.call("cache", "purge", "quiz")["purged"] >= 2
    assert [ask(question, version).headers["x-cache"] for version in ("1.0", "2.0")] == ["miss", "miss"]
    assert re.search(r"^quiz +2\.0 +1 ", site.run("cache", "stats").stdout, re.MULTILINE)


def test_garbage_is_not_served(client: redis.Redis, ask: Callable[..., requests.Response]) -> None:
    question = next(questions)
    known = ask(question)
    for key in client.keys(f"{PREFIX}:quiz:2.0:*"):
        client.set(key, b"\x95garbage")
    answers = [ask(question), ask(question)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit"]
    assert {bare(answer) for answer in answers} == {bare(known)}


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_when_a_version_is_silent_its_last_answer_comes_from_another_versions_worker(
    site: Site, ask: Callable[..., requests.Response], tmp_path: Path
) -> None:
    policy = {"quiz": {"split": {"2.0": 100}, "fallback": ["stale"], "timeout_s": 4}}
    (tmp_path / "traffic.yaml").write_text(json.dumps(policy))
    site.call("route", "set", str(tmp_path / "traffic.yaml"))
    known_question, new_question = next(questions), next(questions)
    known = ask(known_question)
    with stopped(site.versions()["quiz 2.0"]["pids"]):
        stale, unknown = ask(known_question), ask(new_question)
    assert (stale.status_code, stale.headers["x-fallback"], stale.headers["x-cache"]) == (200, "stale", "stale")
    assert stale.headers["x-model-version"] == "2.0"
    assert bare(stale) == bare(known)
    assert (unknown.status_code, unknown.json()["error"], unknown.headers["retry-after"]) == (503, "unavailable", "1")
    until(lambda: ask(next(questions)).headers.get("x-fallback") is None)


def test_predictions_go_on_while_redis_is_frozen_and_after_it_was_killed(
    status: dict[str, Any], client: redis.Redis, ask: Callable[..., requests.Response]
) -> None:
    question = next(questions)
    known = ask(question)

    def all_good() -> bool:
        answers = [ask(question) for _ in range(10)] + [ask(next(questions))]
        same = {bare(answer) for answer in answers[:10]} == {bare(known)}
        return same and {answer.status_code for answer in answers} == {200}

    with stopped([status["redis_pid"]]):
        assert all_good()
        assert ask(question).headers["x-cache"] == "miss"
    until(lambda: ask(question).headers["x-cache"] == "hit")
    psutil.Process(status["redis_pid"]).kill()
    assert all_good()
    assert ask(question).headers["x-cache"] == "miss"
