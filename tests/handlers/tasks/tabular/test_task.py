"""Rows are scored as the model's own library scores them; a bad row is told all its faults, and harms no neighbour."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from marctl_handlers.core.calibration import Temperature, softmax
from marctl_handlers.core.errors import HandlerError, LoadError, Unavailable
from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.features import Entity, Specification, write_features
from marctl_handlers.tasks.tabular.classification import probabilities
from marctl_handlers.tasks.tabular.reference import plain_scores
from marctl_handlers.tasks.tabular.schema import ClassificationSettings, Question
from tests.handlers.loading import ask
from tests.handlers.tasks.tabular.loading import load_tabular
from tests.tiny_tables import LABELS, ROW, SAVED, model_folder, save_torch, save_xgboost, specification

Make = Callable[[str], Pipeline]
ROWS = [ROW, {**ROW, "home": "own"}, {"amount": 100, "age": 80}, {**ROW, "amount": 1e6}, {**ROW, "home": "castle"}]


def raw(pipeline: Pipeline, *bodies: str) -> list[tuple[int, Any]]:
    found = pipeline.answer([Request(body.encode(), f"id-{i}") for i, body in enumerate(bodies)])
    return [(reply.code, json.loads(reply.body)) for reply in found]


@pytest.mark.parametrize("kind", SAVED)
def test_probabilities_are_those_of_the_models_own_library(tabular: Make, tmp_path: Path, kind: str) -> None:
    settings = model_folder(kind, tmp_path / "model")
    plain = plain_scores(tmp_path / "model", [{"features": row} for row in ROWS])
    wanted = probabilities(plain, logits=settings.get("output") == "logit")
    for i, (code, answer) in enumerate(ask(tabular(kind), [{"features": row} for row in ROWS])):
        assert code == 200
        np.testing.assert_allclose(answer["probabilities"], wanted[i], atol=2e-6)
        assert answer["prediction"] == answer["probabilities"][1]
        assert answer["label"] == LABELS[answer["prediction"] >= 0.5]
        assert answer["confidence"] == max(answer["probabilities"])


def test_the_yardstick_takes_a_request_without_any_feature(tmp_path: Path) -> None:
    """As a sample is written where everything has a stand-in."""
    model_folder("xgboost", tmp_path / "model")
    spread = [msgspec.structs.replace(f, missing="default", default=f.stand_in or 50) for f in specification().features]
    write_features(Specification(tuple(spread)), tmp_path / "model")
    whole, absent = plain_scores(tmp_path / "model", [{"features": {}}, {}])
    assert whole == absent


def test_an_answer_tells_what_was_imputed_and_clipped(tabular: Make) -> None:
    found = [answer for _, answer in ask(tabular("xgboost"), [{"features": row} for row in ROWS])]
    assert [answer["imputed"] for answer in found] == [[], [], ["income", "home"], [], ["home"]]
    assert [answer["clipped"] for answer in found] == [[], [], [], ["amount"], []]


@pytest.mark.parametrize(
    "body",
    [
        {"features": ROW},
        {"model": "loans", "features": ROW},
        {"features": ROW, "entity": {}},
        {"model": "loans", "features": ROW, "entity": {}},
    ],
)
def test_every_form_of_a_request_gets_the_same_answer(tabular: Make, body: dict[str, Any]) -> None:
    [(code, answer)], [(_, plain)] = ask(tabular("xgboost"), [body]), ask(tabular("xgboost"), [{"features": ROW}])
    assert code == 200
    assert answer["probabilities"] == plain["probabilities"]


def test_several_rows_are_answered_in_order_and_a_bad_one_in_its_place(tabular: Make) -> None:
    rows = [{"features": row} for row in (ROW, {**ROW, "age": 7}, ROW)]
    [(code, answer)] = ask(tabular("xgboost"), [{"instances": rows}])
    assert code == 200
    one, bad, other = answer["predictions"]
    assert one["probabilities"] == other["probabilities"]
    assert bad == {
        "error": "invalid_request",
        "detail": "`$.instances[1].features.age`: expected 18 to 120, got 7",
    }


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ('"income": "12"', '`$.features.income`: expected a number, got "12"'),
        ('"income": NaN', "`$.features.income`: expected a finite number, got NaN"),
        ('"income": 1e400', "`$.features.income`: expected a finite number, got a number too large"),
        ('"income": -Infinity', "`$.features.income`: expected a finite number, got a number too large"),
        (
            f'"income": {"9" * 400}',
            "`$.features.income`: expected a number that is exact, at most 9,007,199,254,740,992",
        ),
        ('"income": 9007199254740993', "`$.features.income`: expected a number that is exact"),
        ('"income": 1e20', "`$.features.income`: expected 0 to 100000 EUR, got 1e20"),
        ('"income": 1e39', "`$.features.income`: expected a finite number, at most 3.4e+38, got 1e39"),
        ('"income": -1', "`$.features.income`: expected 0 to 100000 EUR, got -1"),
        ('"income": {"a": 1}', "`$.features.income`: expected a number, got an object"),
        ('"age": 30.5', "`$.features.age`: expected an integer, got 30.5"),
        ('"age": null', "`$.features.age`: missing; expected a value"),
        ('"home": true', "`$.features.home`: expected text, got true"),
        (f'"home": "{"x" * 900_000}"', "`$.features.home`: expected at most 1,000 characters, got 900,000"),
        ('"incme": 3', "`$.features.incme`: no such feature; did you mean `income`?"),
        (f'"{"y" * 900_000}": 3', f"`$.features.{'y' * 60}`: no such feature"),
        (
            '"income": "a", "age": 7, "x": 1',
            '`$.features.income`: expected a number, got "a"; `$.features.age`: expected 18 to 120, got 7; '
            "`$.features.x`: no such feature",
        ),
        (
            '"income": NaN, "age": "7"',
            "`$.features.income`: expected a finite number, got NaN; leave out what is missing, or send null; "
            '`$.features.age`: expected an integer, got "7"',
        ),
    ],
)
def test_every_fault_of_a_row_is_told_with_its_field_and_neighbours_are_answered(
    tabular: Make, cells: str, said: str
) -> None:
    good = json.dumps({"features": ROW})
    bad = good[:-2] + f", {cells}}}}}"
    (code, answer), *others = raw(tabular("xgboost"), bad, good, f'{{"instances": [{good}, {bad}]}}')
    assert code == 422
    assert answer["error"] == "invalid_request"
    assert answer["detail"].startswith(said)
    assert len(answer["detail"]) < 1000
    assert others[0][0] == others[1][0] == 200
    first, second = others[1][1]["predictions"]
    assert first["label"] == others[0][1]["label"]
    assert second["detail"].startswith(said.replace("$.", "$.instances[1]."))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", 400),
        ("{", 400),
        ('{"features": {"income": 12,}}', 400),
        ("[" * 100_000, 422),
        ("NaN", 400),
        ("[NaN]", 422),
        ('{"income": NaN}', 400),
        ('{"instances": NaN}', 400),
        ("[]", 422),
        ("{}", 422),
        ('{"features": []}', 422),
        ('{"features": null}', 422),
        ('{"income": 12}', 422),
        ('{"features": {}, "more": 1}', 422),
        ('{"instances": []}', 422),
        ('{"instances": [1, {}]}', 200),
        ('{"entity": {"customer": 123}}', 422),
        ('{"entity": {"customer": "a\\nb"}, "features": {}}', 422),
        ('{"entity": {"customer": NaN}, "features": {}}', 422),
    ],
)
def test_what_is_no_row_is_refused(tabular: Make, body: str, code: int) -> None:
    (found, answer), (good, _) = raw(tabular("xgboost"), body, json.dumps({"features": ROW}))
    assert found == code, answer
    assert good == 200


def test_too_many_faults_are_counted_quickly(tabular: Make) -> None:
    many = json.dumps({"features": {f"x{i}": i for i in range(90_000)}})
    started = time.process_time()
    [(code, answer)] = raw(tabular("xgboost"), many)
    assert time.process_time() - started < 1
    assert code == 422
    assert answer["detail"].endswith("and 89,982 more")


@pytest.mark.parametrize(
    "cells", ['"income": "\\ud800"', '"home": "\\udfff"', '"\\ud800": 1', '"home": "\\ud800", "age": NaN']
)
def test_a_lone_surrogate_is_no_json(tabular: Make, cells: str) -> None:
    good = json.dumps({"features": ROW})
    (code, _), (other, _) = raw(tabular("xgboost"), good[:-2] + f", {cells}}}}}", good)
    assert (code, other) == (400, 200)


def test_large_requests_wait_for_small_ones(tabular: Make) -> None:
    large = json.dumps({"instances": [{"features": ROW}] * 1024})
    pipeline = tabular("xgboost")
    found = raw(pipeline, large, json.dumps({"features": ROW}), large)
    assert [code for code, _ in found] == [200, 200, 503]
    assert raw(pipeline, large.replace("[{", "[{}, {", 1))[0][0] == 413


def test_a_row_that_breaks_the_model_is_the_only_one_that_fails(tabular: Make, monkeypatch: Any) -> None:
    pipeline = tabular("torch")
    scores = pipeline.task.model.scores
    monkeypatch.setattr(
        pipeline.task.model, "scores", lambda x: np.where(x[:, :1] > 5, np.nan, scores(x)) if len(x) else scores(x)
    )
    codes = [code for code, _ in ask(pipeline, [{"features": {**ROW, "income": i}} for i in (1500, 100_000, 1000)])]
    assert codes == [200, 500, 200]


def test_stored_features_stand_under_those_of_the_request(tmp_path: Path) -> None:
    asked: list[Any] = []

    class Store:
        def complete(self, questions: Any) -> Any:
            asked.append([entity for _, entity in questions])
            stored = {"income": 1500, "amount": 1.0, "age": 30, "home": "rent"}
            away = Unavailable("the store is away")
            return [{**stored, **sent} if entity["customer"] == 1 else away for sent, entity in questions]

        def totals(self) -> dict[str, int]:
            return {}

    folder = tmp_path / "model"
    settings = model_folder("xgboost", folder)
    entity = Entity("customer", "customer:{customer}")
    stored = [msgspec.structs.replace(feature, entity=entity) for feature in specification().features]
    write_features(Specification(tuple(stored)), folder)
    pipeline = load_tabular(folder, **settings)
    [(code, answer)] = ask(pipeline, [{"entity": {"customer": 1}}])
    assert code == 422
    assert "send all features" in answer["detail"]
    pipeline.task.store = Store()
    bodies = [
        {"entity": {"customer": 1}, "features": {"amount": 9000.5}},
        {"features": ROW},
        {"entity": {"customer": 2}},
        {"entity": {"customer": 1}, "features": {"age": "x"}},
        {"entity": {"customer": "1"}},
        {"entity": {"customer": "a\nb", "merchant": 1}},
        {"entity": {"customer": {}}},
    ]
    found = ask(pipeline, bodies)
    assert asked == [[{"customer": 1}, {"customer": 2}, {"customer": 1}]]
    assert [code for code, _ in found] == [200, 200, 503, 422, 422, 422, 422]
    assert found[0][1]["probabilities"] == found[1][1]["probabilities"]
    assert found[4][1]["detail"] == '`$.entity.customer`: expected an integer, got "1"'
    assert found[5][1]["detail"].endswith("`$.entity.merchant`: no such entity; there is customer")
    assert found[6][1]["detail"] == "`$.entity.customer`: expected an integer, got an object or a list"
    assert found[3][1]["detail"] == '`$.features.age`: expected an integer, got "x"'


def test_an_offline_caller_gets_the_servers_answers(tabular: Make) -> None:
    pipeline = tabular("sklearn")
    found = pipeline.predict([Question(ROW), Question({"age": "x"}), Question(ROW, {"customer": 1})])
    assert found[0].label in LABELS  # type: ignore[union-attr]
    assert all(isinstance(one, HandlerError) for one in found[1:])


@pytest.mark.parametrize(
    "calibration",
    [
        {"method": "platt", "slope": 0.5, "intercept": -1.0},
        {"method": "isotonic", "uncalibrated": [0.0, 1.0], "calibrated": [0.1, 0.6]},
    ],
)
def test_probabilities_are_calibrated_and_the_threshold_is_of_these(
    tabular: Make, tmp_path: Path, calibration: dict[str, Any]
) -> None:
    settings = model_folder("xgboost", tmp_path / "model")
    pipeline = load_tabular(tmp_path / "model", **settings, calibration=calibration)
    [(_, plain)], [(_, answer)] = (ask(one, [{"features": ROW}]) for one in (tabular("xgboost"), pipeline))
    p = plain["prediction"]
    wanted = 1 / (1 + math.exp(-(0.5 * math.log(p / (1 - p)) - 1))) if "slope" in calibration else 0.1 + 0.5 * p
    assert answer["prediction"] == pytest.approx(wanted, abs=1e-5)
    assert answer["probabilities"] == pytest.approx([1 - wanted, wanted], abs=1e-5)
    assert answer["label"] == LABELS[wanted >= 0.5]


def test_several_classes_are_calibrated_by_a_temperature(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_xgboost(folder / "model.ubj", target=np.arange(300) % 3, objective="multi:softprob", num_class=3)
    write_features(specification(), folder)
    plain = load_tabular(folder, labels=["a", "b", "c"])
    cooler = load_tabular(folder, labels=["a", "b", "c"], calibration={"method": "temperature", "temperature": 2.0})
    assert plain.task.gives_probabilities_of == "choices"
    [(_, before)], [(_, after)] = (ask(one, [{"features": ROW}]) for one in (plain, cooler))
    assert after["probabilities"] == pytest.approx(
        softmax(np.log(before["probabilities"]).tolist(), Temperature(2.0)), abs=1e-5
    )
    assert after["label"] == before["label"]
    with pytest.raises(LoadError, match="a temperature calibrates three"):
        load_tabular(folder, labels=["a", "b", "c"], calibration={"method": "platt", "slope": 0.5, "intercept": -1.0})


def test_words_of_a_command_line_are_features(tabular: Make) -> None:
    task = type(tabular("xgboost").task)
    asked = task.request_from_words(["income=1500", "amount=9000.5", "age=30", "home=rent"])
    assert asked == {"features": ROW}
    assert task.request_from_words(['{"features": {}}']) == {"features": {}}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        task.request_from_words(["income"])
    [(_, answer)] = ask(tabular("xgboost"), [{"features": {"amount": 1e6, "age": 30}}])
    shown = task.show(asked, answer)
    assert shown.endswith("\n  imputed: income, home\n  clipped: amount")


def test_costs_set_the_threshold() -> None:
    section = {"task": "tabular", "costs": {"false_positive": 1, "false_negative": 4}}
    assert ClassificationSettings.load(section).cut == pytest.approx(0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"labels": ["a", "a"]},
        {"labels": ["a"]},
        {"labels": ["a", "b", "c"], "threshold": 0.5},
        {"threshold": 0.5, "costs": {"false_positive": 1, "false_negative": 4}},
        {"threshold": 1.5},
        {"costs": {"false_positive": 0, "false_negative": 4}},
        {"output": "odds"},
    ],
)
def test_settings_that_contradict_themselves_stop_the_load(settings: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        ClassificationSettings.load({"task": "tabular", **settings})


def test_the_threshold_decides_the_label(tabular: Make, tmp_path: Path) -> None:
    settings = model_folder("xgboost", tmp_path / "model")
    [(_, plain)] = ask(tabular("xgboost"), [{"features": ROW}])
    for threshold, label in ((plain["prediction"] - 0.01, "bad"), (plain["prediction"] + 0.01, "good")):
        pipeline = load_tabular(tmp_path / "model", **settings, threshold=threshold)
        [(_, answer)] = ask(pipeline, [{"features": ROW}])
        assert answer["label"] == label
        assert answer["confidence"] == answer["probabilities"][LABELS.index(label)]


def test_several_classes_are_told_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    target = np.arange(300) % 3
    save_xgboost(folder / "model.ubj", target=target, objective="multi:softprob", num_class=3)
    write_features(specification(), folder)
    labels = ["low", "middle", "high"]
    [(_, answer)] = ask(load_tabular(folder, labels=labels), [{"features": ROW}])
    assert answer["label"] == labels[int(np.argmax(answer["probabilities"]))]
    assert answer["prediction"] == answer["confidence"] == max(answer["probabilities"])
    with pytest.raises(LoadError, match="the model gives 3 numbers a row, `labels` names 2"):
        load_tabular(folder)
    with pytest.raises(LoadError, match="the model gives 3 numbers a row, expected 1"):
        load_tabular(folder, task="tabular_regression")


def test_logits_of_two_classes_are_made_probabilities(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_torch(folder / "model.pt", outputs=2)
    write_features(specification(), folder)
    [(_, answer)] = ask(load_tabular(folder, output="logit"), [{"features": ROW}])
    logits = plain_scores(folder, [{"features": ROW}])[0]
    wanted = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-6)


def test_logits_that_are_taken_for_probabilities_are_no_answer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    settings = model_folder("torch", folder)
    [(code, _)] = ask(load_tabular(folder, **settings | {"output": "probability"}), [{"features": ROW}])
    assert code == 500


def test_a_regression_answers_with_its_value(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_xgboost(folder / "model.json", target=np.linspace(0, 5, 300), objective="reg:squarederror")
    write_features(specification(), folder)
    found = ask(load_tabular(folder, task="tabular_regression"), [{"features": ROW}, {"features": {"age": 7}}])
    [[wanted]] = plain_scores(folder, [{"features": ROW}])
    assert found[0][1]["prediction"] == pytest.approx(wanted, abs=1e-5)
    assert [code for code, _ in found] == [200, 422]


def test_outcomes_survive_the_cache_and_fit_their_question(tabular: Make) -> None:
    task = tabular("xgboost").task
    [outcome] = task.predict([Question(ROW)], float("inf"))
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(outcome), type=task.outcome_type)
    assert kept == outcome
    assert task.fits(Question(ROW), kept)
    assert not task.fits(Question(ROW), msgspec.structs.replace(kept, probabilities=[1.0]))
