"""Explanations through the gateway, by workers of their own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.recipe import RECIPE_FILE, Version, read_version
from marctl.gateway.openapi import document
from tests.declared import declared_of
from tests.handlers.tasks.multiple_choice.explain.asking import scores
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.live.test_openapi import CONFORMS

pytestmark = pytest.mark.live

GOOD = {"question": "What do people use to cut bread?", "choices": ["a knife", "a cloud"]}
QUICK = GOOD | {"explain": {"method": "gradient_x_input"}}
SLOW = GOOD | {"explain": {"method": "shapley", "samples": 512, "choices": "all"}}
QUEUE = 2


def explaining(version: Version) -> Version:
    """The same with workers that explain, whose queue is short."""
    path = version.folder / RECIPE_FILE
    explanations = {"workers": 1, "queue_size": QUEUE, "batch_size": 1}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"explanations": explanations}))
    return read_version(version.folder)


Early = dict[str, requests.Response]


@pytest.fixture(scope="module")
def started(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Iterator[tuple[Site, Early]]:
    """quiz 1.0 explains, quiz 2.0 does not; users are sent to both. With what was answered while explainers loaded."""
    site = make_site()
    recipes = site.folder / "recipes"
    build(explaining(adopt(tiny_model("bert"), "quiz", "1.0", recipes, precision="float32")), site.store)
    build(adopt(tiny_model("bert"), "quiz", "2.0", recipes, precision="float32"), site.store)
    with site.popen(*site.up_arguments, "--detach") as up:
        assert up.stderr is not None
        told = next(
            found for line in up.stderr if (found := re.search(r"served at (\S+); explainers still load", line))
        )
        paths = ("explanations", "predictions")
        early = {path: post(f"{told[1]}/{path}/quiz/1.0", QUICK if path == "explanations" else GOOD) for path in paths}
        up.communicate()
    assert up.returncode == 0
    yield site, early
    site.run("down")


@pytest.fixture(scope="module")
def quiz(started: tuple[Site, Early]) -> Site:
    return started[0]


def test_predictions_are_served_while_explainers_load(started: tuple[Site, Early]) -> None:
    """Whoever asks for an explanation is told to try again."""
    _, early = started
    assert early["predictions"].status_code == 200
    refused = early["explanations"]
    assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (503, "no_worker", "1")


@pytest.fixture(scope="module")
def gateway(quiz: Site) -> str:
    return str(quiz.call("status")["gateway"])


def post(url: str, body: Any, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(url, json=body, headers=named, timeout=90)


def test_each_request_of_a_burst_gets_its_own_explanation_or_error(gateway: str) -> None:
    bodies = [QUICK, GOOD | {"explain": {"method": "magic"}}, GOOD | {"choices": ["one"]}]
    got = [post(f"{gateway}/explanations/quiz/1.0", body) for body in bodies]
    assert [reply.status_code for reply in got] == [200, 422, 422]
    assert {reply.headers["x-model-version"] for reply in got} == {"1.0"}
    body = {"instances": [QUICK, *bodies, QUICK]}
    several = post(f"{gateway}/v1/models/quiz:explain", body, x_model_version="1.0").json()["predictions"]
    alone = scores(got[0].json()["explanations"][0])
    for place in (0, 1, 4):
        assert scores(several[place]["explanations"][0]) == pytest.approx(alone, abs=1e-3)
    assert [several[place]["error"] for place in (2, 3)] == ["invalid_request"] * 2


def test_explanation_is_of_the_prediction_and_model_that_was_asked(gateway: str) -> None:
    predicted = post(f"{gateway}/predictions/quiz/1.0", GOOD).json()
    explained = post(f"{gateway}/explanations/quiz/1.0", QUICK).json()
    for name in ("model", "model_version", "prediction", "label"):
        assert explained[name] == predicted[name]
    assert explained["probabilities"] == pytest.approx(predicted["probabilities"], abs=1e-5)


def test_explanations_follow_the_split_and_a_version_without_them_says_so(quiz: Site, gateway: str) -> None:
    quiz.call("route", "split", "quiz", "1.0=50", "2.0=50")
    try:
        users = [f"user-{i}" for i in range(40)]
        predicted = [post(f"{gateway}/predictions/quiz", GOOD, x_user_id=u).headers["x-model-version"] for u in users]
        explained = [post(f"{gateway}/explain", {"model": "quiz", "features": QUICK}, x_user_id=u) for u in users]
    finally:
        quiz.call("route", "split", "quiz", "--default")
    assert [reply.headers["x-model-version"] for reply in explained] == predicted
    assert set(predicted) == {"1.0", "2.0"}
    codes = {(reply.headers["x-model-version"], reply.status_code) for reply in explained}
    assert codes == {("1.0", 200), ("2.0", 501)}


def test_a_full_queue_refuses_at_once_and_predictions_go_on(quiz: Site, gateway: str) -> None:
    url = f"{gateway}/explanations/quiz/1.0"
    with ThreadPoolExecutor(12) as pool:
        busy = [pool.submit(post, url, SLOW) for _ in range(12)]
        replies: list[requests.Response] = []
        started = time.monotonic()
        predicted = post(f"{gateway}/predictions/quiz/1.0", GOOD)
        waited_s = time.monotonic() - started
        replies = [future.result() for future in busy]
    codes = [reply.status_code for reply in replies]
    assert set(codes) == {200, 503}
    assert codes.count(200) <= 2 * (QUEUE + 1)
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert refused.headers["retry-after"]
    assert refused.json()["error"] == "unavailable"
    assert refused.json()["detail"].startswith("the queue of this version is full")
    assert refused.elapsed < max(reply.elapsed for reply in replies if reply.status_code == 200)
    assert predicted.status_code == 200
    assert waited_s < max(reply.elapsed for reply in replies if reply.status_code == 200).total_seconds()


def test_explaining_workers_stand_back_at_the_processor(quiz: Site) -> None:
    nice = {name: {psutil.Process(pid).nice() for pid in row["pids"]} for name, row in quiz.versions().items()}
    [own] = nice["quiz 1.0"]
    assert nice["quiz-explain 1.0"] == {min(own + 19, 19)}
    assert set(nice) == {"quiz 1.0", "quiz 2.0", "quiz-explain 1.0"}


def test_every_explanation_is_one_that_the_schema_knows(gateway: str) -> None:
    """Questions and options as a fuzzer makes them, always for the version that explains."""
    whole = document({"quiz": ["1.0"]}, declared_of(quiz="multiple_choice"))
    operation = schemathesis.openapi.from_dict(whole)["/explanations/quiz/{version}"]["POST"]
    seen = []

    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        case.path_parameters = {"version": "1.0"}
        answer = case.call(base_url=gateway, timeout=90)
        case.validate_response(answer, checks=CONFORMS)
        seen.append(answer.status_code)

    ask()
    assert seen.count(200) > len(seen) / 4, seen
    assert set(seen) <= {200, 413, 422}  # a valid request may ask for more work than the version takes


def test_pages_come_where_they_are_asked_for(gateway: str) -> None:
    url = f"{gateway}/explanations/quiz/1.0"
    by_header = post(url, QUICK, accept="text/html,application/xhtml+xml;q=0.9")
    by_option = post(
        url, GOOD | {"explain": {"method": "gradient_x_input", "format": "html"}}, accept="application/json"
    )
    for page in (by_header, by_option):
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.text.startswith("<!doctype html>")
    assert post(url, QUICK, accept="*/*").json()["explanations"]


def test_figures_tell_how_many_explanations_there_were(quiz: Site, gateway: str) -> None:
    def counted() -> bool:
        post(f"{gateway}/explanations/quiz/1.0", QUICK)
        page = requests.get(f"{gateway}/metrics", timeout=10).text
        line = next(line for line in page.splitlines() if line.startswith("handler_explanations_total{"))
        return 'model="quiz-explain"' in line and float(line.rpartition(" ")[2]) >= 10

    until(counted)


def test_explaining_workers_can_be_stopped_alone_and_go_with_their_version(quiz: Site, gateway: str) -> None:
    assert quiz.run("unregister", "quiz-explain", "1.0").returncode == 1
    assert quiz.default() == ["quiz 2.0"]
    assert not quiz.call("scale", "quiz-explain", "1.0", "0")["default"]
    assert post(f"{gateway}/explanations/quiz/1.0", QUICK).status_code == 503
    assert post(f"{gateway}/predictions/quiz/1.0", GOOD).status_code == 200
    quiz.call("unregister", "quiz", "1.0")
    assert set(quiz.versions()) == {"quiz 2.0"}
    assert post(f"{gateway}/explanations/quiz/2.0", QUICK).status_code == 501


def test_any_version_that_explains_can_go_while_another_one_does(
    make_site: Callable[..., Site], tiny_model: Callable[[str], Path]
) -> None:
    """TorchServe keeps the default version of a model that has others, and makes the first registered one that."""
    site = make_site()
    for version in ("1.0", "2.0"):
        adopted = adopt(tiny_model("bert"), "quiz", version, site.folder / "recipes", precision="float32")
        build(explaining(adopted), site.store)
    site.up()
    gateway = site.call("status")["gateway"]
    for leaves, stays, comes_back in (("1.0", "2.0", True), ("2.0", "1.0", False)):
        site.call("default", "quiz", stays)
        site.call("unregister", "quiz", leaves)
        assert set(site.versions()) == {f"quiz {stays}", f"quiz-explain {stays}"}
        assert post(f"{gateway}/explanations/quiz/{stays}", QUICK).status_code == 200
        if comes_back:
            site.call("register", str(site.store / f"quiz-{leaves}.mar"))
    site.call("down")
