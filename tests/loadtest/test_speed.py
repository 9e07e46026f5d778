"""What a question costs in process, by runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.speed import answer, changes_of, compare, cut, load, main, seconds, tokenizing_seconds

QUESTIONS = [
    json.dumps({"question": f"Which of {n} statements is against common sense?", "choices": ["a knife", "rain " * n]})
    for n in range(1, 20)
]


@pytest.fixture
def root(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """What an archive's root holds, as far as `load` reads it."""
    (tmp_path / "model").symlink_to(tiny_model("bert"))
    (tmp_path / "model-config.yaml").write_text("handler: {task: multiple_choice, max_tokens: 64, precision: float32}")
    return tmp_path


def test_any_variant_takes_its_rows_per_pass_from_its_name() -> None:
    assert changes_of("packed-bfloat16-8-rows") == {"precision": "bfloat16", "rows_per_pass": 8}
    assert "rows_per_pass" not in changes_of("packed-int8")


def test_an_unknown_variant_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no variant 'packed-int4-8-rows'; expected one of padded-float32, served"):
        changes_of("packed-int4-8-rows")


def test_packed_rows_answer_as_the_models_own_code(root: Path) -> None:
    batches = cut([question.encode() for question in QUESTIONS])
    found = compare(answer(load(root, "packed-float32-8-rows"), batches), answer(load(root, "padded-float32"), batches))
    assert found["largest_difference"] < 1e-4
    assert found["same_choice"] == 1


def test_cost_and_tokenizing_are_told_for_a_thousand_questions(root: Path) -> None:
    pipeline, batches = load(root, "served"), cut([question.encode() for question in QUESTIONS])
    cpu_s, clock_s = seconds(pipeline, batches)
    assert 0 < tokenizing_seconds(pipeline, batches) < cpu_s
    assert clock_s > 0


def test_the_command_refuses_an_unknown_variant_as_misuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["speed", "tiny.mar", "--variants", "served,no-such"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "no variant 'no-such'" in capsys.readouterr().err
