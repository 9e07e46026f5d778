"""What a unit asks of a loaded version: answers as online, explanations beside them, records in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from marctl.batch.archive import extract
from marctl.batch.ask import Ask, BadExplanation, Explained, open_log
from marctl_handlers.archive import load as load_archive
from marctl_handlers.core.messages import Model
from marctl_handlers.redis.log import FIELD, PREDICTIONS, PredictionRecord
from tests.batch_archives import doubling_archive
from tests.handlers.loading import ask, load
from tests.redis_servers import TestRedis

BODIES = [
    {"question": "What do people use to cut bread?", "choices": ["a knife", "a cloud"]},
    {"question": "Where is it?", "choices": ["here", "there", "nowhere"], "context": "It is late."},
]
STAMP = ("prediction_id", "latency_ms")


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


def test_answers_are_those_of_requests_over_http(tiny: Path) -> None:
    pipeline = load(tiny)
    questions = msgspec.convert(BODIES, list[pipeline.task.question_type])  # type: ignore[name-defined]
    answers = [msgspec.to_builtins(answer) for answer in Ask(pipeline).predict(questions, ["a", "b"])]
    for answer, (code, online) in zip(answers, ask(load(tiny), BODIES), strict=True):
        assert code == 200
        assert {n: v for n, v in answer.items() if n not in STAMP} == {
            n: v for n, v in online.items() if n not in STAMP
        }


def test_each_answer_may_bring_its_explanation_and_stays_what_it_is(tiny: Path) -> None:
    pipeline, explaining = load(tiny), load(tiny, explanations={})
    assert explaining.explainer is not None
    questions = msgspec.convert(BODIES, list[pipeline.task.question_type])  # type: ignore[name-defined]
    options = {"method": "gradient_x_input"}
    found = Ask(pipeline, explaining.explainer, options).predict(questions, ["a", "b"])
    plain = Ask(pipeline).predict(questions, ["a", "b"])
    for one, answer, question in zip(found, plain, questions, strict=True):
        assert isinstance(one, Explained)
        assert one.answer.probabilities == answer.probabilities
        [explanation] = one.explanations
        assert explanation.method == "gradient_x_input"
        assert all(word.text in question.question for word in explanation.words if word.field == "question")


def test_options_that_the_version_does_not_take_end_the_job(tiny: Path) -> None:
    explaining = load(tiny, explanations={})
    questions = msgspec.convert(BODIES, list[explaining.task.question_type])  # type: ignore[name-defined]
    with pytest.raises(BadExplanation, match=r"--explain: .*method"):
        Ask(explaining, explaining.explainer, {"method": "magic"}).predict(questions, ["a", "b"])


def test_records_are_marked_and_named_like_their_rows(
    tmp_path: Path, redis_server: TestRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "")
    root = tmp_path / "root"
    extract(doubling_archive(tmp_path), root)
    handler = yaml.safe_load((root / "model-config.yaml").read_text())["handler"]
    pipeline = load_archive(root, Model("doubling", "1.0"), handler)
    open_log(pipeline, root, redis_server.url)
    number = pipeline.task.question_type
    answers = Ask(pipeline).predict([number(5), number(13), number(6)], ["job-0-0", "job-0-1", "job-0-2"])
    assert [getattr(answer, "doubled", None) for answer in answers] == [10, None, 12]
    entries = redis_server.client.xrange(PREDICTIONS)
    records = [msgspec.msgpack.decode(fields[FIELD], type=PredictionRecord) for _, fields in entries]
    assert [(one.prediction_id, one.role, one.code) for one in records] == [
        ("job-0-0", "batch", 200),
        ("job-0-1", "batch", 422),
        ("job-0-2", "batch", 200),
    ]
    assert records[0].outcome is not None
    assert records[0].outcome["doubled"] == 10
    pipeline.log.close()  # type: ignore[union-attr]
