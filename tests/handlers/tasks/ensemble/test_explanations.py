"""An ensemble's explanation is the weighted sum of its members', of the choice that the ensemble made."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from tests.handlers import loading
from tests.handlers.tasks.ensemble.laid_out import lay_out, members_of, open_ensemble
from tests.tiny_models import save_tiny

LIMITS = {"max_steps": 64, "max_samples": 64, "max_words": 32}
WEIGHTS = (0.35, 0.65)
QUESTION = {"question": "What do people use to cut bread?", "choices": ["a knife", "a pillow", "a cloud"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Their tokenizers cut texts in different ways, and they choose differently."""
    folder = tmp_path_factory.mktemp("models")
    return {"quiz/1.0": save_tiny("bert", folder / "a", seed=4), "quiz/2.0": save_tiny("roberta", folder / "b")}


@pytest.fixture(scope="module")
def pipeline(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return open_ensemble(lay_out(tmp_path_factory.mktemp("root"), models), *WEIGHTS, explanations=LIMITS)


def explain(pipeline: Pipeline, question: dict[str, Any] = QUESTION, **options: Any) -> dict[str, Any]:
    body = json.dumps(question | {"explain": options}).encode()
    [reply] = pipeline.answer([Request(body, "id", explain=True)])
    answer: dict[str, Any] = json.loads(reply.body)
    assert reply.code == 200, answer
    return answer


@pytest.fixture(scope="module")
def members(models: dict[str, Path]) -> list[Pipeline]:
    """Each by itself."""
    return [loading.load(model, explanations=LIMITS) for model in models.values()]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("integrated_gradients", "probability"),
        ("shapley", "margin"),
        ("occlusion", "logit"),
        ("gradient_x_input", "margin"),
    ],
)
def test_scores_are_the_weighted_sum_of_the_members(
    pipeline: Pipeline, members: list[Pipeline], method: str, target: str
) -> None:
    answer = explain(pipeline, method=method, target=target)
    assert (answer["members"], answer["failed"]) == (["1.0", "2.0"], [])
    [found] = answer["explanations"]
    against = {"against": found["against"]} if target == "margin" else {}
    options = {"method": method, "target": target, "choices": [answer["prediction"]], **against}
    others = [explain(member, **options) for member in members]
    expected: dict[tuple[str, int, int], float] = {}
    for weight, other in zip(WEIGHTS, others, strict=True):
        for word in other["explanations"][0]["words"]:
            place = word["field"], word["start"], word["end"]
            expected[place] = expected.get(place, 0.0) + weight * word["score"]
    given = {(word["field"], word["start"], word["end"]): word["score"] for word in found["words"]}
    assert given == pytest.approx(expected, abs=1e-5)
    for name in ("value", "baseline_value"):
        sums = sum(w * other["explanations"][0][name] for w, other in zip(WEIGHTS, others, strict=True))
        assert found[name] == pytest.approx(sums, abs=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "shapley"])
def test_scores_add_up_to_the_change_of_the_ensemble_s_own_probability(pipeline: Pipeline, method: str) -> None:
    answer = explain(pipeline, method=method, target="probability", choices="all")
    assert [one["value"] for one in answer["explanations"]] == pytest.approx(answer["probabilities"], abs=1e-5)
    for one in answer["explanations"]:
        total = sum(word["score"] for word in one["words"])
        assert total == pytest.approx(one["value"] - one["baseline_value"] + one["delta"], abs=1e-4)
        assert one["complete"] == (abs(one["delta"]) <= one["delta_bound"])
        assert method == "integrated_gradients" or one["delta"] == pytest.approx(0, abs=1e-4)


def test_the_chosen_choice_is_the_ensemble_s_also_to_a_member_that_chose_another(
    pipeline: Pipeline, members: list[Pipeline]
) -> None:
    texts = ["a knife", "a pillow", "a cloud", "juice", "the lake", "Why not 42?"]
    for choices in combinations(texts, 3):
        question = QUESTION | {"choices": list(choices)}
        own = {explain(member, question, method="gradient_x_input")["prediction"] for member in members}
        if len(own) == 2:
            break
    else:
        pytest.fail("the fixture's members never differ")
    answer = explain(pipeline, question, method="gradient_x_input")
    assert [one["choice"] for one in answer["explanations"]] == [answer["prediction"]]


def test_a_member_that_cannot_explain_leaves_it_to_the_rest(
    pipeline: Pipeline, members: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explain_none(*_: Any) -> Any:
        raise RuntimeError("broken")

    task: Any = pipeline.explainer and pipeline.explainer.task
    first, _ = members_of(pipeline)
    monkeypatch.setattr(task._explainers[first], "explain", explain_none)
    answer = explain(pipeline, method="shapley", target="probability")
    assert (answer["members"], answer["failed"]) == (["2.0"], ["1.0"])
    other = explain(members[1], method="shapley", target="probability", choices=[answer["prediction"]])
    assert answer["explanations"][0]["words"] == other["explanations"][0]["words"]


def test_bad_options_and_pages_are_as_a_member_has_them(pipeline: Pipeline) -> None:
    bad = json.dumps(QUESTION | {"explain": {"n_steps": 65}}).encode()
    page = json.dumps(QUESTION | {"explain": {"format": "html"}}).encode()
    asked = [Request(body, "id", explain=True) for body in (bad, page)]
    refused, shown = pipeline.answer(asked)
    assert (refused.code, shown.code) == (422, 200)
    assert b"Expected `int` <= 64, got 65 - at `$.explain.n_steps`" in refused.body
    assert shown.body.startswith(b"<!doctype html>")
