"""What stands in a store, and whether it is what a training file says: by the commands that people type."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from marctl.cli import main
from marctl_handlers.redis.link import FEATURES_URL_VARIABLE
from tests.handlers.features.stored_rows import FRESHNESS_S, specification
from tests.redis_servers import TestRedis

Marctl = Callable[..., Result]
DAY_S = 86400


@pytest.fixture
def marctl(redis_server: TestRedis, tmp_path: Path) -> Marctl:
    redis_server.client.flushall()
    spec = tmp_path / "spec.json"
    spec.write_bytes(msgspec.json.encode(specification()))

    def run(*arguments: str) -> Result:
        places = ["--spec", str(spec), "--state", str(tmp_path / "state")]
        environ = {FEATURES_URL_VARIABLE: redis_server.url}
        return CliRunner().invoke(main, ["features", *arguments, *places], env=environ)

    return run


def told(done: Result) -> Any:
    return json.loads(done.stdout)


def test_get_tells_value_age_and_what_a_model_is_given(marctl: Marctl, redis_server: TestRedis) -> None:
    stored = {
        "income": "5",
        "home": "\x1b[31mcastle",
        "children": "many",
        "@time": time.time() - 2 * DAY_S - FRESHNESS_S,
    }
    redis_server.client.hset("customer:1", mapping=stored)
    done = marctl("get", "customer=1")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["customer:1"]
    assert lines[2] == ["income", "5", "stale", "2", "d", "1000"]
    assert lines[4] == ["children", "many", "invalid", "2", "d", "0"]
    assert "\x1b" not in done.stdout
    other = told(marctl("get", "shop=a", "--json"))
    assert other == {
        "key": "shop:a",
        "features": [{"feature": "open", "stored": None, "state": "missing", "age_s": None, "used": False}],
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("customer", "expected customer=ID or shop=ID"),
        ("house=1", "expected customer=ID or shop=ID"),
        ("customer=a", 'customer: expected an integer, got "a"'),
        ("customer=" + "9" * 5000, "customer: expected an integer"),
        ("shop=a b", "shop: expected text without spaces"),
    ],
)
def test_a_wrong_entity_is_told(marctl: Marctl, word: str, said: str) -> None:
    done = marctl("get", word)
    assert done.exit_code == 1
    assert said in done.stderr


def test_what_was_pushed_has_no_skew(marctl: Marctl, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("customer,income,home,children,label\n1,1200.5,owner,2,good\n2,,rent,0,bad\n")
    pushed = marctl("push", str(path))
    assert pushed.stdout.startswith("2 rows of customer, 3 features each")
    assert "passed over, because they are no features of customer: label" in pushed.stderr
    done = marctl("check", str(path))
    assert done.exit_code == 0, done.output
    assert "no feature differs" in done.stdout


def test_skew_is_told_feature_by_feature(marctl: Marctl, redis_server: TestRedis, tmp_path: Path) -> None:
    """A value that changed, one that is gone, one too old, one that cannot be read, one that the file lacks."""
    path = tmp_path / "train.csv"
    path.write_text("customer,income,home,children\n1,1000,owner,2\n2,2000,rent,0\n3,3000,,0\n4,4000,rent,\n")
    now = time.time()
    for customer, stored in {
        1: {"income": "1000.0000001", "home": "rent", "children": "2"},
        2: {"income": "2000", "children": "none"},
        3: {"income": "3000", "home": "rent", "children": "0", "@time": 1},
    }.items():
        redis_server.client.hset(f"customer:{customer}", mapping={"@time": now, **stored})
    done = marctl("check", str(path), "--json")
    assert done.exit_code == 1
    content = told(done)
    assert content["beyond"] == ["income", "home", "children"]
    names = ("differing", "missing", "stale", "invalid", "extra")
    counts = {row["feature"]: [row[name] for name in names] for row in content["features"]}
    assert counts == {"income": [2, 1, 1, 0, 0], "home": [4, 2, 0, 0, 1], "children": [1, 0, 0, 1, 0]}
    assert content["features"][1]["example"] == "row 1, customer 1: owner in the file, rent in the store"
    assert marctl("check", str(path), "--limit", "1").exit_code == 0


def test_a_file_of_two_entities_needs_a_choice(marctl: Marctl, tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    path.write_text("customer,shop,income,open\n1,a,5,true\n")
    done = marctl("push", str(path))
    assert done.exit_code == 1
    assert "more than one of the entities customer, shop; name one with --entity" in done.stderr
    assert marctl("push", str(path), "--entity", "shop").exit_code == 0
    assert told(marctl("get", "shop=a", "--json"))["features"][0]["used"] is True


def test_without_a_store_the_cure_is_told(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_bytes(msgspec.json.encode(specification()))
    words = ["features", "get", "customer=1", "--spec", str(spec), "--state", str(tmp_path / "state")]
    done = CliRunner().invoke(main, words, env={FEATURES_URL_VARIABLE: "", "REDIS_URL": ""})
    assert (done.exit_code, "marctl up" in done.stderr) == (1, True)
    away = CliRunner().invoke(main, words, env={FEATURES_URL_VARIABLE: "unix:///nowhere.sock"})
    assert (away.exit_code, "the feature store at unix:///nowhere.sock" in away.stderr) == (1, True)
    assert CliRunner().invoke(main, ["features", "get", "customer=1"]).exit_code == 2
