"""Models of several libraries answer rows together; each row's features are computed once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from marctl_handlers.archive import load
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.features import Features
from marctl_handlers.tasks.tabular.classification import probabilities
from marctl_handlers.tasks.tabular.reference import plain_scores
from tests.handlers.loading import ask
from tests.tiny_tables import ROW, SAVED, model_folder

ROWS: list[dict[str, Any]] = [ROW, {**ROW, "home": "own"}, {"amount": 100, "age": 80}, {**ROW, "amount": 1e6}]
FAULTY = {**ROW, "amount": "many"}


@pytest.fixture
def loans(tmp_path: Path) -> tuple[Pipeline, np.ndarray[Any, Any]]:
    """An ensemble of every kind of model, and the mean of what the models' own libraries say: (rows, labels)."""
    plain = []
    for kind in SAVED:
        folder = tmp_path / "members" / "loans" / kind
        settings = model_folder(kind, folder / "model")
        (folder / "model-config.yaml").write_text(yaml.safe_dump({"handler": {"task": "tabular", **settings}}))
        scores = plain_scores(folder / "model", [{"features": row} for row in ROWS])
        plain.append(probabilities(scores, logits=settings.get("output") == "logit"))
    members = [{"version": f"loans/{kind}"} for kind in SAVED]
    return load(tmp_path, Model("loans", "2.0"), {"task": "ensemble", "members": members}), np.mean(plain, axis=0)


def test_the_average_is_that_of_the_models_own_libraries(loans: tuple[Pipeline, Any]) -> None:
    pipeline, mean = loans
    answers = ask(pipeline, [{"features": row} for row in ROWS])
    assert [code for code, _ in answers] == [200] * len(ROWS)
    np.testing.assert_allclose([answer["probabilities"] for _, answer in answers], mean, atol=2e-6)
    assert answers[0][1]["members"] == list(SAVED)
    assert [answer["imputed"] for _, answer in answers] == [[], [], ["income", "home"], []]
    assert [answer["clipped"] for _, answer in answers] == [[], [], [], ["amount"]]


def test_features_are_computed_once_for_all_members(
    loans: tuple[Pipeline, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    resolve = Features.resolve

    def counted(self: Features, rows: Sequence[Any]) -> Any:
        passes.append(len(rows))
        return resolve(self, rows)

    monkeypatch.setattr(Features, "resolve", counted)
    ask(loans[0], [{"features": row} for row in ROWS])
    assert passes == [len(ROWS)]


def test_a_faulty_row_is_its_sender_s_error_and_no_member_s(loans: tuple[Pipeline, Any]) -> None:
    pipeline, _ = loans
    (code, error), (fine, answer) = ask(pipeline, [{"features": FAULTY}, {"features": ROW}])
    assert (code, fine, answer["failed"]) == (422, 200, [])
    assert "$.features.amount" in error["detail"]
    assert pipeline.totals()["handler_member_failures_total"] == 0


def test_an_explanation_is_the_weighted_sum_of_the_members_and_adds_up(tmp_path: Path) -> None:
    """Of the ensemble's own probability."""
    kinds, weights, alone = ("torch", "xgboost"), (0.25, 0.75), []
    options = {"method": "shapley", "target": "probability"}
    body = json.dumps({"features": ROW, "explain": options}).encode()
    for kind in kinds:
        folder = tmp_path / "members" / "loans" / kind
        handler = {"task": "tabular", **model_folder(kind, folder / "model")}
        (folder / "model-config.yaml").write_text(yaml.safe_dump({"handler": handler}))
        pipeline = load(folder, Model("loans", kind), {**handler, "explanations": {}})
        [reply] = pipeline.answer([Request(body, "id", explain=True)])
        alone.append(json.loads(reply.body)["explanations"][0])
    members = [{"version": f"loans/{kind}", "weight": w} for kind, w in zip(kinds, weights, strict=True)]
    section = {"task": "ensemble", "members": members, "explanations": {}}
    [reply] = load(tmp_path, Model("loans", "2.0"), section).answer([Request(body, "id", explain=True)])
    answer = json.loads(reply.body)
    [found] = answer["explanations"]
    for i, feature in enumerate(found["features"]):
        expected = sum(w * one["features"][i]["score"] for w, one in zip(weights, alone, strict=True))
        assert (feature["feature"], feature["score"]) == (
            alone[0]["features"][i]["feature"],
            pytest.approx(expected, abs=2e-6),
        )
    assert found["value"] == pytest.approx(answer["prediction"], abs=2e-6)
    total = sum(feature["score"] for feature in found["features"])
    assert total == pytest.approx(found["value"] - found["baseline_value"], abs=1e-4)
    assert answer["members"] == list(kinds)
