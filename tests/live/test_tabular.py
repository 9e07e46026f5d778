"""Models for tables that a user brings as a file are built, served and asked like any other."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psutil
import pytest
import requests

from tests.live.conftest import MARCTL, PROJECT, Site
from tests.live.envoys import until
from tests.tiny_tables import LABELS, ROW, SAVED, specification, stored_specification

pytestmark = pytest.mark.live
LOGGED = ("label", "prediction", "confidence", "probabilities", "imputed")
STORED = "stored"
"""A version whose features may stand in the store."""


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Iterator[Site]:
    """A version of every kind of tests/tiny_tables.py, each made by `marctl build --from`."""
    made = make_site()
    made.folder.mkdir(exist_ok=True)
    (made.folder / "features.yaml").write_bytes(msgspec.yaml.encode(specification()))
    for kind, (name, save, settings) in SAVED.items():
        folder = made.folder / "files" / kind
        folder.mkdir(parents=True)
        save(folder / name)
        options = [f"--set={key}={value}" for key, value in {"labels": json.dumps(LABELS), **settings}.items()]
        build_from(made, folder / name, kind, *options, *(["--explain"] if kind == "xgboost" else []))
    (made.folder / "stored.yaml").write_bytes(msgspec.yaml.encode(stored_specification()))
    labels = f"--set=labels={json.dumps(LABELS)}"
    build_from(made, made.folder / "files" / "xgboost" / SAVED["xgboost"][0], STORED, labels, features="stored.yaml")
    made.up()
    yield made
    made.run("down")


def build_from(site: Site, file: Any, name: str, *options: str, features: str = "features.yaml") -> None:
    command = [*MARCTL, "build", "--from", str(file), "--features", str(site.folder / features)]
    command += ["--name", name, "--version", "1.0", "--recipes", str(site.folder / "recipes")]
    done = subprocess.run([*command, "--store", str(site.store), *options], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def gateway(site: Site) -> str:
    return str(site.call("status")["gateway"])


def ask(url: str, body: Any) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(url, data=data, headers={"content-type": "application/json"}, timeout=30)


@pytest.mark.parametrize("kind", SAVED)
def test_every_runtime_answers_in_every_form(gateway: str, kind: str) -> None:
    plain = ask(f"{gateway}/predictions/{kind}", {"features": ROW})
    assert plain.status_code == 200, plain.text
    answer = plain.json()
    fields = ["prediction", "label", "confidence", "probabilities", "imputed", "clipped"]
    assert list(answer) == ["prediction_id", "model", "model_version", *fields, "latency_ms"]
    named = ask(f"{gateway}/v1/predict", {"model": kind, "features": ROW}).json()
    several = ask(f"{gateway}/v1/models/{kind}:predict", {"instances": [{"features": ROW}]}).json()["predictions"]
    for other in (named, *several):
        assert {name: other[name] for name in fields} == {name: answer[name] for name in fields}


def test_an_explanation_is_answered_as_data_as_a_page_and_at_a_terminal(site: Site, gateway: str) -> None:
    answer = ask(f"{gateway}/v1/models/xgboost:explain", {"instances": [{"features": ROW}]}).json()["predictions"][0]
    [found] = answer["explanations"]
    assert found["method"] == "tree_shap"
    assert found["complete"]
    assert sum(one["score"] for one in found["features"]) == pytest.approx(
        found["value"] - found["baseline_value"], abs=1e-4
    )
    page = ask(f"{gateway}/explanations/xgboost", {"features": ROW, "explain": {"format": "html"}})
    assert page.headers["content-type"].startswith("text/html")
    assert all(reason.partition(" ")[0] in page.text for reason in found["reasons"])
    words = [f"{name}={value}" for name, value in ROW.items()]
    told = site.run("ask", "--model", "xgboost", *words, "--explain", "--method", "tree_shap").stdout
    assert found["reasons"][0] in told


def test_bad_rows_are_told_their_faults_among_good_ones(gateway: str) -> None:
    good = json.dumps({"features": ROW}).encode()
    bad = [
        (good.replace(b"1500", b"NaN"), "`$.features.income`: expected a finite number, got NaN"),
        (good.replace(b"1500", b"1e400"), "`$.features.income`: expected a finite number"),
        (good.replace(b"1500", b'"12"'), '`$.features.income`: expected a number, got "12"'),
        (good.replace(b"rent", b"x" * 900_000), "`$.features.home`: expected at most 1,000 characters"),
        (good.replace(b"home", b"castle"), "`$.features.castle`: no such feature"),
        (good[:-1] + b', "entity": {"customer": "a\\nb"}}', "`$.entity.customer`: no feature is stored"),
    ]
    with ThreadPoolExecutor(16) as pool:
        bodies = [body for pair in [(good, body) for body, _ in bad] * 8 for body in pair]
        replies = list(pool.map(lambda body: ask(f"{gateway}/predictions/xgboost", body), bodies))
    assert [reply.status_code for reply in replies] == [200, 422] * (len(bad) * 8)
    for reply, (_, said) in zip(replies[1::2], bad * 8, strict=True):
        assert reply.json()["error"] == "invalid_request"
        assert said in reply.json()["detail"]


def test_an_equal_row_is_answered_from_the_cache(gateway: str) -> None:
    row = {**ROW, "amount": 123.25}
    first = ask(f"{gateway}/predictions/sklearn", {"features": row})

    def again() -> bool:
        second = ask(f"{gateway}/predictions/sklearn", {"features": dict(reversed(row.items()))})
        return second.headers["x-cache"] == "hit" and second.json()["prediction"] == first.json()["prediction"]

    until(again)


def test_the_log_keeps_label_and_probabilities(site: Site, gateway: str) -> None:
    answer = ask(f"{gateway}/predictions/torch", {"features": {**ROW, "amount": 77.5, "home": None}}).json()
    assert answer["imputed"] == ["home"]

    def logged() -> bool:
        lines = site.run("log", "tail", "--model", "torch", "--json").stdout.splitlines()
        kept = {one["prediction_id"]: one["outcome"] for one in map(json.loads, lines)}.get(answer["prediction_id"], {})
        return all(kept.get(name) == answer[name] for name in LOGGED)

    until(logged)


def test_the_documentation_describes_the_rows(gateway: str) -> None:
    schemas = requests.get(f"{gateway}/openapi.json", timeout=30).json()["components"]["schemas"]
    assert set(schemas["xgboost.Features"]["properties"]) == {"model", "features", "entity"}
    assert set(schemas["xgboost.Question"]["properties"]) == {"features", "entity"}


def ask_for(gateway: str, customer: int, **features: Any) -> Any:
    body = {"entity": {"customer": customer}, "features": {"amount": ROW["amount"], **features}}
    reply = ask(f"{gateway}/predictions/{STORED}", body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def push(site: Site, *lines: str) -> None:
    path = site.folder / "customers.csv"
    path.write_text("\n".join(["customer,income,age,home", *lines]) + "\n")
    site.call("features", "push", STORED, "1.0", str(path), "--store", str(site.store))


def test_a_customer_stands_for_stored_features(site: Site, gateway: str) -> None:
    """Also where an equal request was answered before, with older ones."""
    push(site, f"1,{ROW['income']},{ROW['age']},{ROW['home']}")
    whole = ask(f"{gateway}/predictions/{STORED}", {"features": ROW}).json()
    answer = ask_for(gateway, 1)
    assert (answer["prediction"], answer["imputed"]) == (whole["prediction"], [])
    assert ask_for(gateway, 1, income=50_000)["prediction"] < answer["prediction"]
    time.sleep(1)  # stamps are whole seconds
    push(site, f"1,50000,{ROW['age']},{ROW['home']}")
    assert ask_for(gateway, 1)["prediction"] < answer["prediction"]
    unknown = ask(f"{gateway}/predictions/{STORED}", {"entity": {"customer": 404}, "features": {"amount": 1}})
    assert unknown.status_code == 422
    assert "customer:404 has no usable age in the feature store" in unknown.json()["detail"]
    instances = [{"entity": {"customer": 1}, "features": {"amount": 1}}, {"entity": {"customer": "1\n"}}]
    good, bad = ask(f"{gateway}/v1/models/{STORED}:predict", {"instances": instances}).json()["predictions"]
    assert good["imputed"] == []
    assert "$.instances[1].entity.customer" in bad["detail"]


def test_answers_go_on_without_the_feature_store_which_comes_back_with_its_features(site: Site, gateway: str) -> None:
    push(site, "2,1234,40,own")
    assert ask_for(gateway, 2)["imputed"] == []
    time.sleep(2)  # it writes to disk each second
    store = psutil.Process(site.call("status")["features_pid"])
    store.suspend()
    try:
        told = [ask_for(gateway, 2, age=40) for _ in range(10)]
    finally:
        store.kill()
    assert all(row["imputed"] == ["income", "home"] for row in told)
    away = ask(f"{gateway}/predictions/{STORED}", {"entity": {"customer": 2}, "features": {"amount": 1}})
    assert away.status_code in (200, 503)
    until(lambda: ask_for(gateway, 2, age=40)["imputed"] == [], 30)
    name = f'handler_features_unanswered_total{{model="{STORED}",version="1.0"}} '

    def counted() -> bool:
        page = requests.get(f"{gateway}/metrics", timeout=30).text
        return any(float(line.removeprefix(name)) >= 10 for line in page.splitlines() if line.startswith(name))

    until(counted)
