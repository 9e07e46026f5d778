"""The questions that load is made of."""

from __future__ import annotations

import json
import statistics
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from loadtest.questions import bodies, made
from marctl_handlers.tasks.multiple_choice.schema import Question


def test_every_made_question_is_one_that_the_handler_takes() -> None:
    for body in islice(bodies(seed=3), 2000):
        question = msgspec.json.decode(body, type=Question)
        assert len(set(question.choices)) == len(question.choices)


def test_made_questions_are_distinct_and_the_same_for_the_same_seed() -> None:
    first = list(islice(bodies(seed=1), 5000))
    assert len(set(first)) == 5000
    assert first == list(islice(bodies(seed=1, ready=100), 5000))
    assert not set(first) & set(islice(bodies(seed=2), 5000))


def test_made_questions_have_the_lengths_and_choices_of_real_ones() -> None:
    """The figures of five public dev sets, counted apart from this code: 17.7 words a row, median 17, 99 % up to 33."""
    questions = list(islice(made(seed=5), 6000))
    rows = sorted(len(f"{q.context or ''} {q.question} {choice}".split()) for q in questions for choice in q.choices)
    assert statistics.mean(rows) == pytest.approx(17.7, rel=0.05)
    assert statistics.median(rows) == pytest.approx(17, abs=1)
    assert rows[int(len(rows) * 0.99)] == pytest.approx(33, abs=3)
    assert statistics.mean(len(q.choices) for q in questions) == pytest.approx(2.98, rel=0.03)


def test_repeats_have_the_share_asked_for_and_favour_few_questions() -> None:
    sent = list(islice(bodies(seed=1, repeats=0.3), 30_000))
    assert 1 - len(set(sent)) / len(sent) == pytest.approx(0.3, abs=0.01)
    times = sorted((sent.count(body) for body in set(sent[:200])), reverse=True)
    assert times[0] > 10 * times[100]


def test_questions_of_a_file_go_round_without_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    rows = [{"question": f"{i}?", "choices": ["a", "b"], "label": 1, "id": "x"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    sent = [json.loads(body) for body in islice(bodies(file=path), 4)]
    assert sent == [{"question": f"{i}?", "choices": ["a", "b"]} for i in (0, 1, 2, 0)]


def test_a_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"question": "a?", "choices": ["a"]}\n{"question": 3}\n')
    with pytest.raises(ValueError, match=r"quiz.jsonl:2: .*\$.question"):
        next(bodies(file=path))
