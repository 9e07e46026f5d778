"""Several versions answer together: what they say, and what is left when some of them fail."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import convert
from safetensors.torch import load_file, save_file

from marctl_handlers.archive import load
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.ensemble.combine import stack, vote
from marctl_handlers.tasks.ensemble.learn import stack_weights
from marctl_handlers.tasks.multiple_choice.reference import plain_answers
from tests.handlers.loading import ask, send
from tests.handlers.tasks.ensemble.laid_out import lay_out, members_of, open_ensemble
from tests.tiny_models import save_tiny

QUESTIONS: list[dict[str, Any]] = [
    {"question": "What do people use to cut bread?", "choices": ["a knife", "a pillow", "a cloud"]},
    {"question": "Where might he go?", "choices": ["the lake", "a spoon"], "context": "There is a light rain today."},
    {"question": "Which is juice?", "choices": ["orange", "milk", "bread", "42"]},
]
POISON = {"question": "poison", "choices": ["a", "b"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with one tokenizer, and one with another."""
    folder = tmp_path_factory.mktemp("models")
    first, second = save_tiny("bert", folder / "first"), folder / "second"
    shutil.copytree(first, second)
    weights = load_file(first / "model.safetensors")
    torch.manual_seed(5)
    noisy = {name: value + value.std(correction=0) * torch.randn_like(value) for name, value in weights.items()}
    save_file(noisy, second / "model.safetensors", {"format": "pt"})
    return {"quiz/1.0": first, "quiz/1.1": second, "quiz/2.0": save_tiny("roberta", folder / "third")}


@pytest.fixture(scope="module")
def plain(models: dict[str, Path]) -> list[list[list[float]]]:
    """Plain transformers' probabilities, by model and question; one question at a time."""
    return [[row["probabilities"] for row in plain_answers(model, QUESTIONS, 64)] for model in models.values()]


@pytest.fixture
def pipeline(models: dict[str, Path], tmp_path: Path) -> Pipeline:
    return open_ensemble(lay_out(tmp_path, models), 0.2, 0.3, 0.5)


def fail(pipeline: Pipeline, index: int, monkeypatch: pytest.MonkeyPatch, on: str = "") -> None:
    """Make a member raise for questions that contain a text."""
    task = members_of(pipeline)[index].task
    original = task.predict_from

    def predict_from(questions: Any, features: Any, deadline: float) -> Any:
        if any(on in question.question for question in questions):
            raise RuntimeError("the member is broken")
        return original(questions, features, deadline)

    monkeypatch.setattr(task, "predict_from", predict_from)


def test_the_average_is_that_of_plain_transformers(pipeline: Pipeline, plain: list[list[list[float]]]) -> None:
    answers = ask(pipeline, QUESTIONS)
    for i, (code, answer) in enumerate(answers):
        expected = 0.2 * np.array(plain[0][i]) + 0.3 * np.array(plain[1][i]) + 0.5 * np.array(plain[2][i])
        assert code == 200
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert answer["prediction"] == int(expected.argmax())
        assert answer["label"] == QUESTIONS[i]["choices"][answer["prediction"]]
        assert (answer["members"], answer["failed"]) == (["1.0", "1.1", "2.0"], [])
        assert (answer["model"], answer["model_version"]) == ("quiz", "3.0")


def test_a_vote_counts_first_choices(models: dict[str, Path], plain: list[list[list[float]]], tmp_path: Path) -> None:
    pipeline = open_ensemble(lay_out(tmp_path, models), combine="vote")
    for i, (_, answer) in enumerate(ask(pipeline, QUESTIONS)):
        votes = np.bincount([int(np.argmax(rows[i])) for rows in plain], minlength=len(QUESTIONS[i]["choices"]))
        np.testing.assert_allclose(answer["probabilities"], votes / 3, atol=2e-6)


def test_a_tied_vote_is_decided_by_the_mean() -> None:
    found = vote([[0.6, 0.4, 0.0], [0.05, 0.95, 0.0]], [1.0, 1.0])
    assert found.index(max(found)) == 1
    np.testing.assert_allclose(found, [0.5, 0.5, 0.0], atol=1e-5)


def test_a_stack_multiplies_powers_and_silences_nobody() -> None:
    rows = np.array([[0.7, 0.3], [0.4, 0.6]])
    expected = np.prod(rows ** [[0.5], [1.5]], axis=0)
    np.testing.assert_allclose(stack(rows.tolist(), [0.5, 1.5]), expected / expected.sum(), rtol=1e-12)
    assert sum(stack([[0.0, 1.0], [1.0, 0.0]], [1.0, 1.0])) == pytest.approx(1)


def test_a_stack_s_learned_weights_are_those_that_the_labels_were_drawn_with() -> None:
    """And a member that knows nothing gets next to none."""
    draw = np.random.default_rng(3)
    good = draw.dirichlet([1, 1, 1], 20_000)
    noise = draw.dirichlet([1, 1, 1], 20_000)
    true = good**1.7 / (good**1.7).sum(1, keepdims=True)
    labels = (draw.random((len(true), 1)) > true.cumsum(1)).sum(1)
    weights = stack_weights([good.tolist(), noise.tolist()], labels.tolist())
    assert weights[0] == pytest.approx(1.7, abs=0.08)
    assert weights[1] == pytest.approx(0, abs=0.04)


def test_a_stack_is_served_with_its_learned_weights(
    models: dict[str, Path], plain: list[list[list[float]]], tmp_path: Path
) -> None:
    root = lay_out(tmp_path, models)
    with pytest.raises(LoadError, match=r"stack.json has no weight for quiz/1.0; learn them with `marctl train`"):
        open_ensemble(root, combine="stack")
    (root / "model").mkdir()
    (root / "model" / "stack.json").write_text('{"quiz/1.0": 0.1, "quiz/1.1": 1.2, "quiz/2.0": 0.4}')
    with pytest.raises(LoadError, match="weights of a stack are learned; remove `weight`"):
        open_ensemble(root, 0.5, combine="stack")
    pipeline = open_ensemble(root, combine="stack")
    for i, (_, answer) in enumerate(ask(pipeline, QUESTIONS)):
        powers = np.prod([np.array(rows[i]) ** w for rows, w in zip(plain, (0.1, 1.2, 0.4), strict=True)], axis=0)
        np.testing.assert_allclose(answer["probabilities"], powers / powers.sum(), atol=1e-5)


def test_texts_are_tokenized_once_for_all_members_of_one_tokenizer(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for member in members_of(pipeline):
        encoder, name = member.task.encoder, member.name
        original = encoder.tokenize
        monkeypatch.setattr(
            encoder, "tokenize", lambda texts, name=name, original=original: (asked.append(name), original(texts))[1]
        )
    ask(pipeline, QUESTIONS)
    assert asked == ["1.0", "2.0"]


# --- members that fail


def test_a_member_that_does_not_load_leaves_the_rest_to_answer(
    models: dict[str, Path], plain: list[list[list[float]]], tmp_path: Path
) -> None:
    root = lay_out(tmp_path, models)
    (root / "members" / "quiz" / "1.1" / "model").unlink()
    pipeline = open_ensemble(root, 0.2, 0.3, 0.5)
    for i, (_, answer) in enumerate(ask(pipeline, QUESTIONS)):
        expected = (0.2 * np.array(plain[0][i]) + 0.5 * np.array(plain[2][i])) / 0.7
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert (answer["members"], answer["failed"]) == (["1.0", "2.0"], ["1.1"])
    assert pipeline.totals()["handler_members_missing"] == 1


def test_a_member_that_answers_its_own_samples_wrongly_is_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    root = lay_out(tmp_path, models)
    sample = [{"request": QUESTIONS[0], "expected": {"prediction": 0, "probabilities": [0.0, 0.0, 1.0]}}]
    (root / "members" / "quiz" / "2.0" / "samples.json").write_text(json.dumps(sample))
    [(_, answer)] = ask(open_ensemble(root), QUESTIONS[:1])
    assert (answer["members"], answer["failed"]) == (["1.0", "1.1"], ["2.0"])


def test_no_member_loaded_is_a_load_error_that_names_each_reason(models: dict[str, Path], tmp_path: Path) -> None:
    root = lay_out(tmp_path, models)
    for version in models:
        (root / "members" / version / "model").unlink()
        (root / "members" / version / "model").mkdir()
    with pytest.raises(LoadError, match=r"none of its members could be loaded: 1\.0: .*; 1\.1: .*; 2\.0: model/"):
        open_ensemble(root)
    shutil.rmtree(root / "members" / "quiz" / "1.0")
    for name in ("1.1", "2.0"):
        (root / "members" / "quiz" / name / "model-config.yaml").write_text("}")
    with pytest.raises(LoadError, match=r"none of its members can be read: quiz/1\.1: model-config"):
        open_ensemble(root)


def test_a_question_that_breaks_one_member_breaks_it_for_that_question_alone(
    pipeline: Pipeline, plain: list[list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(pipeline, 1, monkeypatch, on="poison")
    answers = ask(pipeline, [QUESTIONS[0], POISON, QUESTIONS[1]])
    assert [answer["failed"] for _, answer in answers] == [[], ["1.1"], []]
    assert [answer["members"] for _, answer in answers][1] == ["1.0", "2.0"]
    expected = 0.2 * np.array(plain[0][1]) + 0.3 * np.array(plain[1][1]) + 0.5 * np.array(plain[2][1])
    np.testing.assert_allclose(answers[2][1]["probabilities"], expected, atol=1e-5)
    assert pipeline.totals()["handler_member_failures_total"] == 1


def test_a_question_that_breaks_every_member_is_its_own_failure(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        fail(pipeline, index, monkeypatch, on="poison")
    assert [code for code, _ in ask(pipeline, [QUESTIONS[0], POISON, QUESTIONS[1]])] == [200, 500, 200]


def test_a_device_that_computes_nothing_any_more_ends_the_worker(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict_from(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(members_of(pipeline)[0].task, "predict_from", predict_from)
    assert [code for code, _ in ask(pipeline, QUESTIONS)] == [503, 503, 503]
    assert pipeline.broken


def test_a_slow_member_leaves_time_for_the_others(models: dict[str, Path], tmp_path: Path) -> None:
    pipeline = open_ensemble(lay_out(tmp_path, models), batch_seconds=0.6)
    slow, second, third = members_of(pipeline)
    second.seconds = third.seconds = 0.05
    untils: dict[str, float] = {}

    def predict_from(questions: Any, features: Any, deadline: float) -> Any:
        untils["slow"] = deadline
        time.sleep(max(deadline - time.monotonic(), 0))
        return [None] * len(questions)

    slow.task.predict_from = predict_from
    began = time.monotonic()
    answers = ask(pipeline, QUESTIONS)
    assert 0.2 < untils["slow"] - began < 0.35, "half of the time at most is kept for the others"
    assert [(code, answer["failed"]) for code, answer in answers] == [(200, ["1.0"])] * 3


def test_members_whose_turn_comes_after_the_deadline_are_not_asked(models: dict[str, Path], tmp_path: Path) -> None:
    pipeline = open_ensemble(lay_out(tmp_path, models), batch_seconds=0.05)
    first, second, _ = members_of(pipeline)
    predict_from = first.task.predict_from
    first.task.predict_from = lambda *a: (predict_from(*a), time.sleep(0.1))[0]
    second.task.predict_from = lambda *_: pytest.fail("time is over")
    assert [answer["failed"] for _, answer in ask(pipeline, QUESTIONS)] == [["1.1", "2.0"]] * 3


def test_no_member_in_time_is_out_of_time(pipeline: Pipeline) -> None:
    for member in members_of(pipeline):
        member.task.predict_from = lambda questions, *_: [None] * len(questions)
    assert [code for code, _ in ask(pipeline, QUESTIONS)] == [504] * 3


def test_an_answer_without_all_members_is_not_kept(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [convert(question, pipeline.task.question_type) for question in QUESTIONS]
    fail(pipeline, 0, monkeypatch, on="juice")
    lasts = [pipeline.task.lasts(outcome) for outcome in pipeline.task.predict(questions, float("inf"))]
    assert lasts == [True, True, False]


# --- limits


def test_the_strictest_member_s_limits_hold(models: dict[str, Path], tmp_path: Path) -> None:
    root = lay_out(tmp_path, models)
    config = root / "members" / "quiz" / "2.0" / "model-config.yaml"
    config.write_text(config.read_text().replace("4096", "100") + "  max_instances: 3\n")
    pipeline = open_ensemble(root)
    long = {"question": "bread " * 40, "choices": ["a", "b", "c"]}
    (code, answer), (fine, _) = ask(pipeline, [long, QUESTIONS[0]])
    assert (code, fine) == (413, 200)
    assert "tokens; one request may bring at most 100" in answer["detail"]
    [(code, _)] = ask(pipeline, [{"instances": QUESTIONS + QUESTIONS[:1]}])
    assert code == 413


def test_cost_is_that_of_all_members(pipeline: Pipeline) -> None:
    questions = [convert(question, pipeline.task.question_type) for question in QUESTIONS]
    members = [member.task for member in members_of(pipeline)]
    assert pipeline.task.cost(questions) == sum(member.cost(questions) for member in members)
    assert pipeline.settings.max_cost == 3 * 4096


def test_bad_requests_are_told_as_by_a_member(pipeline: Pipeline) -> None:
    answers = ask(pipeline, [{"question": "Where?", "choices": ["here", 3]}, b"{", QUESTIONS[0]])
    assert [code for code, _ in answers] == [422, 400, 200]
    assert "$.choices[1]" in answers[0][1]["detail"]


# --- what cannot be together


def test_members_with_other_questions_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    root = lay_out(tmp_path, models)
    config = root / "members" / "quiz" / "2.0" / "model-config.yaml"
    config.write_text(config.read_text().replace("multiple_choice", "embedding"))
    with pytest.raises(LoadError, match=r"Embedding .* and MultipleChoice .* cannot answer together"):
        open_ensemble(root)


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        (None, r"members: expected a list of \{version: MODEL/VERSION\}, two or more, got None"),
        ([{"version": "quiz/1.0"}], "two or more"),
        ([{"version": "quiz/1.0"}, "quiz/2.0"], r"members\[1\].version: expected MODEL/VERSION, got None"),
        ([{"version": "quiz/1.0"}, {"version": "../x"}], r"members\[1\].version: expected MODEL/VERSION"),
        ([{"version": "quiz/1.0"}, {"version": "quiz/1.0"}], "is a member already; give it a larger weight"),
    ],
)
def test_a_broken_list_of_members_is_told(members: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=fault):
        load(tmp_path, Model("quiz", "3.0"), {"task": "ensemble", "members": members})


OWN = """
import msgspec
from marctl_handlers import Task

class Text(msgspec.Struct):
    text: str

class Label(msgspec.Struct):
    good: float

class Mood(Task[Text, Label]):
    gives_probabilities_of = "event"

    def load(self, folder):
        self.good = float((folder / "good.txt").read_text())

    def predict(self, questions, deadline):
        return [Label(self.good) for _ in questions]

    def probabilities(self, found):
        return [1 - found.good, found.good]

    @classmethod
    def with_probabilities(cls, outcomes, probabilities):
        return Label(probabilities[1])
"""


def own_members(root: Path, *names: str) -> Path:
    for i, version in enumerate(names):
        folder = root / "members" / version
        (folder / "model").mkdir(parents=True)
        (folder / "task.py").write_text(OWN)
        (folder / "model-config.yaml").write_text("handler: {task: own}")
        (folder / "model" / "good.txt").write_text(str(0.2 + 0.5 * i))
    return root


def test_versions_of_a_task_of_one_s_own_answer_together(tmp_path: Path) -> None:
    [(code, answer)] = ask(open_ensemble(own_members(tmp_path, "mood/1.0", "other/1.0"), 1, 3), [{"text": "so fine"}])
    assert (code, answer["members"]) == (200, ["mood/1.0", "other/1.0"])
    assert answer["good"] == pytest.approx(0.575)


def test_a_task_without_probabilities_has_no_ensembles(tmp_path: Path) -> None:
    root = own_members(tmp_path, "mood/1.0", "mood/2.0")
    for file in root.glob("members/*/*/task.py"):
        file.write_text(OWN.replace("def with_probabilities", "def with_others"))
    with pytest.raises(LoadError, match="answers of Mood have no probabilities that could be combined"):
        open_ensemble(root)


def test_members_that_tell_other_classes_apart_are_refused(tmp_path: Path) -> None:
    root = own_members(tmp_path, "mood/1.0", "mood/2.0")
    for file in root.glob("members/*/*/task.py"):
        file.write_text(OWN + '\n    @property\n    def classes(self):\n        return ["bad", str(self.good)]\n')
    with pytest.raises(LoadError, match=r"mood/2.0 tells \['bad', '0.7'\] apart, mood/1.0 \['bad', '0.2'\]"):
        open_ensemble(root)


def test_answers_go_out_in_the_open_inference_protocol(pipeline: Pipeline) -> None:
    inputs = [
        {"name": "question", "datatype": "BYTES", "shape": [1], "data": ["Which is juice?"]},
        {"name": "choices", "datatype": "BYTES", "shape": [1, 2], "data": ["orange", "milk"]},
    ]
    [reply] = send(pipeline, [{"inputs": inputs}], x_inference_protocol="open")
    assert reply.code == 200
    assert b'"probabilities"' in reply.body
