"""The log of a whole stack: asked at the gateway, written by workers, drained, compared, labelled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.recipe import read_version
from marctl.records.reader import read
from tests.handlers.loading import ask, load
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.questions import FLOAT32_BOUND, some_questions

pytestmark = pytest.mark.live
QUESTIONS = some_questions(150, seed=11)
KINDS = {"1.0": "bert", "2.0": "roberta"}
TOKENS = 126


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Iterator[Site]:
    """Two versions of quiz that answer differently; 2.0 gets a copy of each request."""
    made = make_site()
    for version, kind in KINDS.items():
        folder = adopt(tiny_model(kind), "quiz", version, made.folder / "recipes", precision="float32").folder
        recipe = yaml.safe_load((folder / "model.yaml").read_text()) | {"log": {"input": "whole"}}
        (folder / "model.yaml").write_text(yaml.safe_dump(recipe))
        build(read_version(folder), made.store)
    made.up()
    made.call("route", "split", "quiz", "1.0=100")
    made.call("route", "shadow", "quiz", "2.0=100")
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def url(site: Site) -> str:
    return str(site.call("status")["gateway"])


@pytest.fixture(scope="module")
def answers(site: Site, url: str) -> dict[str, Any]:
    """What the clients were told, by prediction id."""

    def ask(i: int) -> Any:
        headers = {"x-request-id": f"order-{i}", "x-user-id": f"user-{i % 10}"}
        got = requests.post(f"{url}/predictions/quiz", json=QUESTIONS[i], headers=headers, timeout=60)
        return got.json() | {"cache": got.headers["x-cache"]}

    with ThreadPoolExecutor(8) as clients:
        told = list(clients.map(ask, range(len(QUESTIONS))))
    return {answer["prediction_id"]: answer for answer in told}


@pytest.fixture(scope="module")
def log(site: Site, answers: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the drained log."""
    drained = [0]

    def all_there() -> bool:
        drained[0] += site.call("log", "drain")["predictions"]
        return drained[0] >= 2 * len(QUESTIONS)

    until(all_there, 60)
    assert drained[0] == 2 * len(QUESTIONS), "the version's own samples must not be in the log"
    return list(read(site.state / "log").to_pylist())


def in_process(tiny_model: Callable[[str], Path], kind: str) -> list[dict[str, Any]]:
    return [answer for _, answer in ask(load(tiny_model(kind), max_tokens=TOKENS), QUESTIONS)]


def test_every_answer_is_in_the_log_as_the_client_got_it(log: list[dict[str, Any]], answers: dict[str, Any]) -> None:
    live = {row["prediction_id"]: row for row in log if not row["shadow"]}
    assert live.keys() == answers.keys()
    for name, row in live.items():
        told = answers[name]
        assert (row["version"], row["prediction"]) == (told["model_version"], told["prediction"])
        assert (row["probabilities"], row["handler_ms"]) == (told["probabilities"], told["latency_ms"])
        assert row["cache"] == told["cache"]
        assert json.loads(row["input"]) == QUESTIONS[int(name.removeprefix("order-"))]
    assert len({row["user"] for row in log}) == 10
    assert not any("user-" in row["user"] for row in log)


def test_every_copy_is_in_the_log_and_marked(log: list[dict[str, Any]]) -> None:
    shadows = [row for row in log if row["shadow"]]
    assert {row["version"] for row in shadows} == {"2.0"}
    assert {row["role"] for row in log} == {"split", "shadow"}
    assert len({row["prediction_id"] for row in shadows}) == len(shadows) == len(QUESTIONS)


def test_no_record_of_a_worker_is_missing(log: list[dict[str, Any]]) -> None:
    numbers: dict[str, list[int]] = {}
    for row in log:
        numbers.setdefault(row["writer"], []).append(row["sequence"])
    assert len(numbers) == 2
    assert all(sorted(found) == list(range(1, len(found) + 1)) for found in numbers.values())


def test_the_report_says_what_both_versions_say_in_process(
    site: Site, log: list[dict[str, Any]], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    report = site.call("shadow", "report", "--model", "quiz", "--html", str(tmp_path / "shadow.html"))
    [found] = report["comparisons"]
    live, shadow = (in_process(tiny_model, kind) for kind in KINDS.values())
    pairs = list(zip(live, shadow, strict=True))
    agreed = sum(a["prediction"] == b["prediction"] for a, b in pairs)
    assert 0 < agreed < len(pairs), "the versions must differ somewhere, or this proves nothing"
    assert (found["live"], found["shadow"], found["pairs"], found["agreed"]) == ("1.0", "2.0", len(pairs), agreed)
    shifts = [b["probabilities"][a["prediction"]] - a["probabilities"][a["prediction"]] for a, b in pairs]
    assert found["score_shift"]["mean"] == pytest.approx(sum(shifts) / len(shifts), abs=FLOAT32_BOUND)
    assert (report["unpaired"], report["ambiguous"]) == (0, 0)
    strongest = found["strongest_disagreements"][0]
    i = int(strongest["prediction_id"].removeprefix("order-"))
    assert json.loads(strongest["input"]) == QUESTIONS[i]
    assert (strongest["live"]["prediction"], strongest["shadow"]["prediction"]) == (
        live[i]["prediction"],
        shadow[i]["prediction"],
    )
    page = (tmp_path / "shadow.html").read_text()
    assert "<svg" in page
    assert strongest["prediction_id"] in page
    assert not re.findall(r'(?:src|href)="(?!#)', page.replace('xlink:href="#', ""))


def test_labels_from_the_gateway_and_the_shell_are_joined(site: Site, url: str, log: list[dict[str, Any]]) -> None:
    body = {"prediction_id": "order-3", "label": 0, "model": "quiz"}
    got = requests.post(f"{url}/feedback", json=body, timeout=30)
    assert (got.status_code, got.json()) == (202, body)
    bad = requests.post(f"{url}/feedback", json=body | {"label": "x"}, timeout=30)
    assert (bad.status_code, bad.json()["error"]) == (422, "invalid_request")
    assert site.call("log", "label", "--id", "order-4", "--label", "1") == {"labels": 1}
    until(lambda: site.call("log", "drain") is not None and len(labelled(site)) == 4, 30)
    assert labelled(site) == {
        ("order-3", "1.0"): 0,
        ("order-3", "2.0"): 0,
        ("order-4", "1.0"): 1,
        ("order-4", "2.0"): 1,
    }
    [found] = site.call("shadow", "report")["comparisons"]
    assert found["labelled"]["pairs"] == 2


def labelled(site: Site) -> dict[tuple[str, str], int]:
    rows = read(site.state / "log").to_pylist()
    return {(row["prediction_id"], row["version"]): row["true_label"] for row in rows if row["true_label"] is not None}


def test_a_stand_in_is_logged_as_one(site: Site, url: str, log: list[dict[str, Any]]) -> None:
    site.call("route", "split", "quiz", "2.0=100")
    site.call("route", "shadow", "quiz", "--off")
    site.call("route", "fallback", "quiz", "1.0")
    management = site.call("status")["management"]
    requests.put(f"{management}/models/quiz/2.0?min_worker=0&max_worker=0&synchronous=true", timeout=60)
    headers = {"x-request-id": "fallen"}
    got = requests.post(f"{url}/predictions/quiz", json=QUESTIONS[0], headers=headers, timeout=60)
    assert got.headers["x-fallback"] == "1.0"
    until(lambda: "fallen" in site.run("log", "tail").stdout, 30)
    done = site.run("log", "tail", "-n", "1", "--json")
    row = json.loads(done.stdout)
    assert (row["prediction_id"], row["version"], row["fallback_from"], row["shadow"]) == (
        "fallen",
        "1.0",
        "2.0",
        False,
    )
    assert "for 2.0" in site.run("log", "tail", "-n", "1").stdout


def test_the_metrics_page_counts_what_was_written(site: Site, url: str, log: list[dict[str, Any]]) -> None:
    page = ""

    def counted() -> bool:
        nonlocal page
        requests.post(f"{url}/predictions/quiz/1.0", json=QUESTIONS[0], timeout=30)
        page = requests.get(f"{url}/metrics", timeout=30).text
        written = re.findall(r'^handler_log_written_total\{[^}]*version="1.0"[^}]*\} (\S+)$', page, re.MULTILINE)
        return [float(value) >= len(QUESTIONS) for value in written] == [True]

    until(counted)
    assert not re.findall(r"^handler_log_dropped_total\{[^}]*\} [1-9]", page, re.MULTILINE)
