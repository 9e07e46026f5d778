"""Scores are Shapley values, checked against a sum over all sets by their definition; they add up, in words, too."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost

from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.features import Features, resolve_table, specification_of, write_features
from marctl_handlers.features.tables import rows_of
from marctl_handlers.tasks.tabular.classification import probabilities
from marctl_handlers.tasks.tabular.explain.answer import FeatureScore
from marctl_handlers.tasks.tabular.explain.reasons import reasons_of
from tests.handlers.tasks.tabular.loading import load_tabular
from tests.tiny_tables import ROW, SAVED, loans, model_folder, save_xgboost, specification

BACKGROUND = 7
NAMES = ["income", "amount", "age", "home"]


@pytest.fixture(scope="session")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pipeline]:
    """A version of a kind of tests/tiny_tables.py whose workers explain, with a background of seven loans."""
    made: dict[str, Pipeline] = {}

    def make(kind: str) -> Pipeline:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "model"
            settings = model_folder(kind, folder)
            write_background(folder)
            made[kind] = load_tabular(folder, **settings, explanations={})
        return made[kind]

    return make


def write_background(folder: Path) -> None:
    rows = rows_of(loans()[0].slice(0, BACKGROUND), specification())
    (folder / "background.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def explain(pipeline: Pipeline, *bodies: Any, **headers: str) -> list[tuple[int, Any]]:
    requests = [
        Request(json.dumps(body).encode(), f"id-{i}", explain=True, headers=headers) for i, body in enumerate(bodies)
    ]
    replies = pipeline.answer(requests)
    return [(reply.code, json.loads(reply.body)) for reply in replies]


def explanation(pipeline: Pipeline, row: Any = ROW, **options: Any) -> Any:
    [(code, answer)] = explain(pipeline, {"features": row, "explain": options})
    assert code == 200, answer
    [found] = answer["explanations"]
    return found


def scores(found: Any) -> list[float]:
    assert [one["feature"] for one in found["features"]] == NAMES
    return [one["score"] for one in found["features"]]


def by_definition(players: int, value: Callable[[frozenset[int]], float]) -> list[float]:
    """Shapley 1953: the mean gain of a player over all sets of the others, weighted by their sizes."""
    found = []
    for player in range(players):
        others = [other for other in range(players) if other != player]
        total = 0.0
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for chosen in itertools.combinations(others, size):
                total += weight * (value(frozenset({*chosen, player})) - value(frozenset(chosen)))
        found.append(total)
    return found


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("target", ["logit", "probability"])
def test_shapley_scores_are_those_of_the_definition(
    explained: Callable[[str], Pipeline], kind: str, target: str
) -> None:
    pipeline = explained(kind)
    task = pipeline.task
    features: Features = task.features
    background = resolve_table(features, loans()[0].slice(0, BACKGROUND))
    own = features.resolve([ROW])

    def value(present: frozenset[int]) -> float:
        """The mean over the background, mixed feature by feature before it is encoded."""
        mixed = background.values.copy()
        mixed[sorted(present)] = own.values[sorted(present)]
        encoded = features.encode(with_values(background, mixed))
        shares = probabilities(task.model.scores(encoded), logits=task.settings.output == "logit")[:, 1]
        return float(np.mean(np.log(shares / (1 - shares)) if target == "logit" else shares))

    found = explanation(pipeline, method="shapley", target=target)
    np.testing.assert_allclose(scores(found), by_definition(4, value), atol=2e-5)
    assert found["exact"]
    assert found["complete"]
    assert found["baseline"] == "7 training rows"
    assert found["baseline_value"] == pytest.approx(value(frozenset()), abs=1e-5)
    assert found["value"] == pytest.approx(value(frozenset(range(4))), abs=1e-5)


def with_values(resolved: Any, values: Any) -> Any:
    return type(resolved)(values, resolved.imputed, resolved.clipped, {})


def expectation(node: dict[str, Any], x: Any, present: frozenset[int]) -> float:
    """Of one tree, absent columns averaged by its training rows: algorithm 1 of Lundberg et al. 2018, 1802.03888."""
    if "leaf" in node:
        return float(node["leaf"])
    children = {child["nodeid"]: child for child in node["children"]}
    yes, no = children[node["yes"]], children[node["no"]]
    column = int(node["split"][1:])
    if column in present:
        return expectation(yes if x[column] < np.float32(node["split_condition"]) else no, x, present)
    both = yes["cover"] + no["cover"]
    return float(sum(child["cover"] * expectation(child, x, present) for child in (yes, no)) / both)


def test_tree_shap_scores_are_those_of_the_definition(explained: Callable[[str], Pipeline]) -> None:
    task = explained("xgboost").task
    x = task.features.encode(task.features.resolve([ROW]))[0]
    trees = [json.loads(tree) for tree in task.model.booster.get_dump(with_stats=True, dump_format="json")]

    def value(present: frozenset[int]) -> float:
        return sum(expectation(tree, x, present) for tree in trees)

    columns = by_definition(len(x), value)
    found = explanation(explained("xgboost"))
    assert found["method"] == "tree_shap"
    np.testing.assert_allclose(scores(found), [*columns[:3], sum(columns[3:])], atol=1e-4)
    base = task.model.booster.predict(xgboost.DMatrix(x[None]), output_margin=True)[0] - value(frozenset(range(len(x))))
    assert found["baseline_value"] == pytest.approx(base + value(frozenset()), abs=1e-4)


@pytest.mark.parametrize("kind", SAVED)
def test_scores_add_up_to_the_change_and_the_answer_is_the_predictions(
    explained: Callable[[str], Pipeline], kind: str
) -> None:
    [(_, plain)] = [(r.code, json.loads(r.body)) for r in explained(kind).answer([request({"features": ROW})])]
    [(_, answer)] = explain(explained(kind), {"features": ROW})
    [found] = answer.pop("explanations")
    assert sum(scores(found)) == pytest.approx(found["value"] - found["baseline_value"], abs=1e-4)
    assert found["complete"]
    assert found["label"] == "bad"
    share = plain["prediction"]
    assert found["value"] == pytest.approx(math.log(share / (1 - share)), abs=1e-4)
    assert {k: v for k, v in answer.items() if k != "latency_ms"} == {
        k: v for k, v in plain.items() if k != "latency_ms"
    }


def request(body: Any) -> Request:
    return Request(json.dumps(body).encode(), "id-0")


@pytest.mark.parametrize("options", [{}, {"method": "shapley"}, {"method": "shapley", "target": "probability"}])
def test_the_other_label_has_the_opposite_scores(explained: Callable[[str], Pipeline], options: Any) -> None:
    bad = explanation(explained("xgboost"), **options)
    good = explanation(explained("xgboost"), **options, label="good")
    assert good["label"] == "good"
    np.testing.assert_allclose(scores(good), [-score for score in scores(bad)], atol=1e-5)


def test_many_features_are_sampled_with_their_standard_errors(tmp_path: Path) -> None:
    features = [{"name": f"x{i}", "type": "number"} for i in range(14)]
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 14)).astype(np.float32)
    y = x[:, 0] * 2 + x[:, 1] * x[:, 2]
    trained = xgboost.train({"nthread": 1, "objective": "reg:squarederror"}, xgboost.DMatrix(x, y), 10)
    trained.save_model(folder / "model.json")
    write_features(specification_of(features), folder)
    pipeline = load_tabular(folder, task="tabular_regression", explanations={})
    row = {f"x{i}": float(x[0, i]) for i in range(14)}
    found = explanation(pipeline, row, method="shapley", samples=64)
    assert not found["exact"]
    assert found["steps"] == 64
    assert found["complete"]
    assert found["baseline"] == "typical row"
    assert all(one["standard_error"] >= 0 for one in found["features"])
    trees = explanation(pipeline, row)
    assert trees["method"] == "tree_shap"
    assert trees["target"] == "value"
    assert max(trees["features"], key=lambda one: abs(one["score"]))["feature"] == "x0"


def test_several_classes_explain_the_chosen_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_xgboost(folder / "model.json", target=np.arange(300) % 3, objective="multi:softprob", num_class=3)
    write_features(specification(), folder)
    pipeline = load_tabular(folder, labels=["a", "b", "c"], explanations={})
    [(_, answer)] = explain(pipeline, {"features": ROW})
    [found] = answer["explanations"]
    assert found["label"] == answer["label"]
    margins = pipeline.task.model.margins(pipeline.task.features.encode(pipeline.task.features.resolve([ROW])))[0]
    assert found["value"] == pytest.approx(float(margins.max()), abs=1e-4)
    other = explanation(pipeline, label="b")
    assert other["value"] == pytest.approx(float(margins[1]), abs=1e-4)


def test_features_are_shown_as_the_model_was_given_them(explained: Callable[[str], Pipeline]) -> None:
    found = explanation(explained("sklearn"), {"amount": 1e6, "age": 30, "home": "castle"})
    by_name = {one["feature"]: one for one in found["features"]}
    assert by_name["income"]["value"] == pytest.approx(specification()["income"].fill)
    assert by_name["income"]["imputed"]
    assert by_name["income"]["unit"] == "EUR"
    assert by_name["amount"]["value"] == 50_000
    assert by_name["amount"]["clipped"]
    assert by_name["age"]["protected"]
    assert by_name["home"]["imputed"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "occlusion"}, "$.explain.method"),
        ({"target": "margin"}, "$.explain.target"),
        ({"target": "value"}, "Expected logit or probability, got 'value' - at `$.explain.target`"),
        ({"label": "x" * 100_000}, "Expected one of good, bad, got 'xxx"),
        ({"samples": 1}, "$.explain.samples"),
        ({"samples": 100_000}, "Expected `int` <= 512, got 100000 - at `$.explain.samples`"),
        ({"samples": 4, "method": "tree_shap"}, "`samples` belongs to the method shapley"),
        ({"target": "probability", "method": "tree_shap"}, "tree_shap explains a logit"),
        ({"more": 1}, "unknown field `more`"),
        (3, "$.explain"),
    ],
)
def test_options_that_a_version_lacks_are_refused(
    explained: Callable[[str], Pipeline], options: Any, said: str
) -> None:
    bad, good = explain(explained("xgboost"), {"features": ROW, "explain": options}, {"features": ROW})
    assert bad[0] == 422
    assert said in bad[1]["detail"]
    assert len(bad[1]["detail"]) < 1000
    assert good[0] == 200


def test_tree_shap_is_refused_where_there_are_no_trees(explained: Callable[[str], Pipeline]) -> None:
    [(code, answer)] = explain(explained("torch"), {"features": ROW, "explain": {"method": "tree_shap"}})
    assert code == 422
    assert "a method that this model has (shapley)" in answer["detail"]


def test_bad_rows_are_refused_among_good_ones(explained: Callable[[str], Pipeline]) -> None:
    rows = [{"features": {**ROW, "age": 7}}, {"features": ROW}, {"features": {"income": "x"}}]
    found = explain(explained("xgboost"), *rows, {"instances": rows})
    assert [code for code, _ in found] == [422, 200, 422, 200]
    first, second, third = found[3][1]["predictions"]
    assert first["detail"] == "`$.instances[0].features.age`: expected 18 to 120, got 7"
    assert second["explanations"]
    assert third["error"] == "invalid_request"


def test_after_the_deadline_one_explanation_is_still_made(explained: Callable[[str], Pipeline]) -> None:
    explainer = explained("torch").explainer
    assert explainer is not None
    from marctl_handlers.tasks.tabular.explain.request import ExplainQuestion

    found = explainer.task.predict([ExplainQuestion(ROW), ExplainQuestion(ROW)], time.monotonic() - 1)
    assert found[0] is not None
    assert found[1] is None


@pytest.mark.parametrize("content", [b"{}\n", b'{"age": 7}\n', b"{\n", b"\xff\n", b"", b"[1]\n"])
def test_a_damaged_background_stops_the_load(tmp_path: Path, content: bytes) -> None:
    settings = model_folder("xgboost", tmp_path / "model")
    (tmp_path / "model" / "background.jsonl").write_bytes(content)
    with pytest.raises(LoadError, match=r"background\.jsonl"):
        load_tabular(tmp_path / "model", **settings, explanations={})


def test_a_page_shows_reasons_bars_and_what_was_sent_safely(explained: Callable[[str], Pipeline]) -> None:
    body = json.dumps({"features": {**ROW, "home": "<script>"}, "explain": {"format": "html"}}).encode()
    accepting = Request(json.dumps({"features": ROW}).encode(), "b", explain=True, headers={"accept": "text/html"})
    replies = explained("xgboost").answer([Request(body, "a", explain=True), accepting])
    for reply in replies:
        assert reply.content_type.startswith("text/html")
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")
        page = reply.body.decode()
        assert "What speaks for “bad”?" in page
        assert "<li>" in page
        assert "<svg" in page
        assert "script" not in page


@pytest.mark.parametrize(
    ("one", "target", "said"),
    [
        (("income", 1200.0, -0.6, "EUR"), "logit", "income of 1,200 EUR lowers the odds of bad by a factor of 1.82"),
        (("home", "rent", 0.12), "probability", "home of rent raises the probability of bad by 12 percentage points"),
        (("married", True, -2.5), "value", "married of true lowers the prediction by 2.5"),
        (("age", 30, 20.0), "logit", "age of 30 raises the odds of bad by a factor of more than 1,000"),
    ],
)
def test_reasons_are_told_in_words(one: Any, target: Any, said: str) -> None:
    assert reasons_of([FeatureScore(*one)], target, "bad") == [said]


def test_reasons_are_the_heaviest_features_that_weigh_enough() -> None:
    found = [FeatureScore(name, 1, score) for name, score in (("a", 0.001), ("b", -3.0), ("c", 1.0), ("d", 2.0))]
    assert [reason[0] for reason in reasons_of(found, "value", "")] == ["b", "d", "c"]
    gap = FeatureScore("a", None, 1.0, imputed=True)
    assert reasons_of([gap], "value", "") == ["a, which is missing or unknown, raises the prediction by 1"]
    assert not reasons_of([FeatureScore("a", 1, 0.0)], "value", "")
