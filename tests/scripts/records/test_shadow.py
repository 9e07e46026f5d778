"""Shadow and live answers: what is paired, what is left out, and figures against independent ones."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from click.testing import CliRunner
from scipy import stats

from marctl.cli import main
from marctl.cli.shadow import describe
from marctl.records import shadow as joining
from marctl.records.declarations import Declarations, outcome_type
from marctl.records.kinds import PREDICTION_KIND, Entry
from marctl.records.page import page, question
from marctl.records.shadow import Comparison, Joined, mean, quantiles, summary, wilson
from marctl_handlers.core.columns import LogColumn
from marctl_handlers.redis.log import Declaration, PredictionRecord
from tests.scripts.records.conftest import COLUMNS, record

EVIL = '<script>alert("x")</script>'


def log(
    *records: PredictionRecord,
    labels: dict[str, Any] | None = None,
    columns: tuple[LogColumn, ...] = COLUMNS,
    label: Any = None,
) -> pa.Table:
    """As the reader gives it."""
    label = label or pa.int64()
    rows = [
        record_row(each, i, columns) | {"true_label": (labels or {}).get(each.prediction_id)}
        for i, each in enumerate(records, 1)
    ]
    schema = PREDICTION_KIND.full_schema(columns).append(pa.field("true_label", label))
    return pa.Table.from_pylist(rows, schema)


def record_row(each: PredictionRecord, number: int, columns: tuple[LogColumn, ...]) -> dict[str, Any]:
    outcome = None if each.outcome is None else outcome_type(columns)(**each.outcome)
    entry = Entry(f"1-{number}", each, columns, outcome)
    row: dict[str, Any] = PREDICTION_KIND.table([entry], PREDICTION_KIND.full_schema(columns)).to_pylist()[0]
    return row


def join(table: pa.Table, *declared: Declaration) -> Joined:
    """With what the models' tasks declare; multiple choice if nothing is said."""
    declarations = Declarations(Path("/nonexistent"))
    for each in declared:
        declarations.add(msgspec.json.encode(each))
    return joining.join(table, declarations)


def live(name: str, *probabilities: float, **fields: Any) -> PredictionRecord:
    choice = probabilities.index(max(probabilities))
    return record(name, probabilities=list(probabilities), prediction=choice, confidence=max(probabilities), **fields)


def shadow(name: str, *probabilities: float, **fields: Any) -> PredictionRecord:
    return live(name, *probabilities, **({"version": "2.0", "shadow": True} | fields))


def only(joined: Joined) -> Comparison:
    [found] = joined.comparisons
    return found


def test_answers_are_paired_by_id_and_counted() -> None:
    joined = join(
        log(
            live("a", 0.2, 0.8),
            shadow("a", 0.4, 0.6),
            shadow("b", 0.7, 0.3),  # a copy may be quicker than the answer
            live("b", 0.1, 0.9),
            live("not copied", 0.5, 0.5),
        )
    )
    found = only(joined)
    assert (found.model, found.live, found.shadow, joined.unpaired, joined.ambiguous) == ("mcqa", "1.0", "2.0", 0, 0)
    figures = summary(found, 10)
    assert (figures["pairs"], figures["agreed"], figures["agreement"]) == (2, 1, 0.5)
    assert figures["score_shift"]["mean"] == pytest.approx(((0.6 - 0.8) + (0.3 - 0.9)) / 2)
    [strongest] = figures["strongest_disagreements"]
    assert (strongest["prediction_id"], strongest["distance"]) == ("b", pytest.approx(0.6))
    assert figures["values"] == {"live": {"1": 2}, "shadow": {"0": 1, "1": 1}}


def test_each_pair_of_versions_is_compared_by_itself() -> None:
    joined = join(
        log(
            live("a", 0.2, 0.8),
            live("b", 0.2, 0.8, version="1.1"),
            *(shadow(name, 0.2, 0.8, version=version) for name in "ab" for version in ("2.0", "3.0")),
        )
    )
    names = [(each.live, each.shadow, len(each.pairs)) for each in joined.comparisons]
    assert names == [("1.0", "2.0", 1), ("1.0", "3.0", 1), ("1.1", "2.0", 1), ("1.1", "3.0", 1)]


def test_models_are_never_mixed() -> None:
    joined = join(log(live("a", 0.2, 0.8), shadow("a", 0.2, 0.8, model="other")))
    assert (joined.comparisons, joined.unpaired) == ([], 1)


def test_an_answer_that_came_too_late_gives_way_to_its_stand_in() -> None:
    """Both are in the log; the client got the stand-in's."""
    found = only(
        join(log(live("a", 0.2, 0.8, version="1.5"), live("a", 0.3, 0.7, fallback_from="1.5"), shadow("a", 0.2, 0.8)))
    )
    assert (found.live, found.pairs[0].live["probabilities"]) == ("1.0", [0.3, 0.7])


def test_ids_that_a_client_used_twice_are_left_out_and_counted() -> None:
    joined = join(
        log(
            *(live("same", 0.2, 0.8), live("same", 0.4, 0.6), shadow("same", 0.2, 0.8), shadow("same", 0.4, 0.6)),
            *(live("other question", 0.2, 0.8), shadow("other question", 0.2, 0.8, input_hash="another")),
            *(live("other size", 0.2, 0.8), shadow("other size", 0.2, 0.7, 0.1)),
            *(live("good", 0.2, 0.8), shadow("good", 0.2, 0.8)),
            shadow("lost", 0.2, 0.8),
        )
    )
    assert (len(only(joined).pairs), joined.ambiguous, joined.unpaired) == (1, 4, 1)


def test_where_labels_are_known_both_are_held_to_them() -> None:
    table = log(
        *(live("a", 0.2, 0.8), shadow("a", 0.9, 0.1)),
        *(live("b", 0.2, 0.8), shadow("b", 0.2, 0.8)),
        *(live("c", 0.2, 0.8), shadow("c", 0.2, 0.8)),
        labels={"a": 0, "b": 1},
    )
    found = summary(only(join(table)), 1)
    assert (found["labelled"]["pairs"], found["labelled"]["live"], found["labelled"]["shadow"]) == (2, 0.5, 1.0)
    assert found["labelled"]["difference"]["mean"] == 0.5
    assert found["strongest_disagreements"][0]["label"] == 0


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 10), (99, 100), (1476, 1480), (0, 5000)])
def test_the_interval_of_a_share_is_wilsons(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_mean_holds_it_nineteen_times_out_of_twenty() -> None:
    dice = random.Random(1)
    held = 0
    for _ in range(1000):
        low, high = mean([dice.expovariate(1) for _ in range(200)])["interval"]
        held += low < 1 < high
    assert 920 < held < 975
    assert mean([1.0] * 29) == {"mean": 1.0, "interval": None}
    assert mean([]) == {"mean": None, "interval": None}


def test_quantiles_are_values_of_the_sample() -> None:
    assert quantiles([float(i) for i in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert quantiles([]) == {"p50": None, "p95": None, "p99": None}
    assert quantiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}


def many(count: int) -> Comparison:
    dice = random.Random(3)
    records = []
    for i in range(count):
        one, other = dice.random(), dice.random()
        asked = f'{{"question": "{i} {EVIL[:8]}", "choices": ["a", "b"]}}'
        records.append(live(f"id-{i}", one, 1 - one, handler_ms=dice.expovariate(0.1), input=asked))
        records.append(shadow(f"id-{i}", other, 1 - other, handler_ms=dice.expovariate(0.2)))
    return only(join(log(*records)))


def test_the_page_shows_all_and_runs_nothing() -> None:
    comparison = many(60)
    text = page([comparison], [summary(comparison, 5)], f"note {EVIL}")
    assert text.count("<svg") == 1
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", text)
    assert "url(http" not in text
    assert "1.0 live, 2.0 as its shadow" in text
    assert text == page([comparison], [summary(comparison, 5)], f"note {EVIL}")


def test_a_page_of_one_pair_is_drawn_too() -> None:
    comparison = only(join(log(live("a", 0.2, 0.8, handler_ms=0.0), shadow("a", 0.2, 0.8))))
    assert "No question was answered differently" in page([comparison], [summary(comparison, 5)], "")


def test_an_empty_log_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["shadow", "report", "--from", str(tmp_path), "--state", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "marctl route shadow" in done.output
    assert "--undrained" in done.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", timedelta(hours=2)),
        ("30m", timedelta(minutes=30)),
        ("1.5d", timedelta(days=1.5)),
        ("2026-11-20T12:00", timedelta(days=1)),
        ("2026-11-20T14:00+02:00", timedelta(days=1)),
        ("2026-11-20", timedelta(days=1.5)),
    ],
)
def test_times_are_read(text: str, expected: timedelta) -> None:
    from marctl.records.reader import moment

    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert now - moment(text, now) == expected


def test_a_time_that_is_none_is_misuse(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["shadow", "report", "--from", str(tmp_path), "--since", "yesterday"])
    assert done.exit_code == 2
    assert "expected 30m, 2h, 7d or 2026-11-21T08:00, got 'yesterday'" in done.output


def test_the_score_shift_is_that_of_the_live_choice() -> None:
    pair = only(join(log(live("a", 0.5, 0.3, 0.2), shadow("a", 0.1, 0.1, 0.8)))).pairs[0]
    assert pair.shift == pytest.approx(-0.4)
    assert pair.distance == pytest.approx(0.6)


def test_scores_are_found_where_another_models_predictions_are_floats() -> None:
    table = log(live("a", 0.3, 0.5, 0.2), shadow("a", 0.1, 0.1, 0.8))
    place = table.schema.get_field_index("prediction")
    floats = table.set_column(place, "prediction", table["prediction"].cast(pa.float64()))
    assert only(join(floats)).pairs[0].shift == pytest.approx(-0.4)


def of(name: str, declared: Declaration, version: str = "1.0", **outcome: Any) -> PredictionRecord:
    return record(name, model=declared.model, version=version, shadow=version == "2.0", outcome=outcome or None)


def test_texts_agree_if_they_are_equal() -> None:
    columns = (LogColumn("mood", "str"), LogColumn("score", "float"))
    declared = Declaration("mood", columns, "str")
    pairs = [("good", "good"), ("good", "bad"), ("bad", "bad"), ("bad", "bad")]
    rows = [
        of(f"{i}", declared, version, mood=said, score=0.5 if version == "1.0" else 0.75)
        for i, both in enumerate(pairs)
        for version, said in zip(("1.0", "2.0"), both, strict=True)
    ]
    table = log(*rows, columns=columns, label=pa.string(), labels={"1": "bad", "2": "bad"})
    comparison = only(join(table, declared))
    found = summary(comparison, 5)
    assert (found["compared"], found["pairs"], found["agreed"]) == ("mood", 4, 3)
    assert found["values"] == {"live": {"bad": 2, "good": 2}, "shadow": {"bad": 3, "good": 1}}
    assert (found["score_shift"], found["differences"]["score"]["mean"]) == (None, 0.25)
    assert (found["labelled"]["live"], found["labelled"]["shadow"]) == (0.5, 1.0)
    shown = page([comparison], [found], "")
    assert "The same mood in <b>75.0 %</b>" in shown
    assert "good (0.500)" in shown


def test_numbers_agree_within_what_the_task_tolerates() -> None:
    declared = Declaration("fare", (LogColumn("price", "float", tolerance=0.5),), "float")
    prices = [(10.0, 10.4), (10.0, 12.0), (10.0, 10.0)]
    rows = [
        of(f"{i}", declared, version, price=price)
        for i, both in enumerate(prices)
        for version, price in zip(("1.0", "2.0"), both, strict=True)
    ]
    table = log(*rows, columns=declared.columns, label=pa.float64(), labels={"1": 11.5})
    comparison = only(join(table, declared))
    found = summary(comparison, 5)
    assert (found["agreed"], found["values"], found["score_shift"]) == (2, None, None)
    assert found["differences"]["price"]["mean"] == pytest.approx(0.8)
    assert (found["labelled"]["live"], found["labelled"]["shadow"]) == (1.5, 0.5)
    assert found["labelled"]["difference"]["mean"] == -1.0
    assert [each["prediction_id"] for each in found["strongest_disagreements"]] == ["1"]
    assert page([comparison], [found], "").count("<svg") == 1


def test_lists_agree_if_each_number_does() -> None:
    declared = Declaration("embed", (LogColumn("vector", "floats", tolerance=0.01),), "str")
    rows = [
        *(of("a", declared, vector=[1.0, 0.0]), of("a", declared, "2.0", vector=[0.995, 0.005])),
        *(of("b", declared, vector=[1.0, 0.0]), of("b", declared, "2.0", vector=[0.0, 1.0])),
        *(of("c", declared, vector=[1.0, 0.0]), of("c", declared, "2.0", vector=[1.0])),
    ]
    comparison = only(join(log(*rows, columns=declared.columns), declared))
    found = summary(comparison, 5)
    assert (found["agreed"], found["pairs"], found["labelled"]) == (1, 3, None)
    assert found["strongest_disagreements"][0]["distance"] == 1.0
    assert "No " not in page([comparison], [found], "")[:200]


def test_what_a_side_did_not_answer_is_counted_and_not_compared() -> None:
    failed = {"prediction": None, "code": 500, "error": "model_failed", "input_hash": None}
    rows = [live("a", 0.2, 0.8), shadow("a", 0.2, 0.8), live("b", 0.2, 0.8), live("c", 0.2, 0.8)]
    rows += [record("b", version="2.0", shadow=True, **failed), record("c", version="2.0", shadow=True, **failed)]
    rows += [record("d", **failed), shadow("d", 0.2, 0.8)]
    comparison = only(join(log(*rows)))
    found = summary(comparison, 5)
    assert (found["pairs"], found["failed"]) == (1, {"live": 1, "shadow": 2})
    assert "Not answered: 1 by the live version, 2 by the shadow" in page([comparison], [found], "")


def test_a_shadow_that_answers_nothing_is_reported() -> None:
    failed = {"prediction": None, "code": 500, "error": "model_failed", "input_hash": None}
    comparison = only(join(log(live("a", 0.2, 0.8), record("a", version="2.0", shadow=True, **failed))))
    found = summary(comparison, 5)
    assert (found["pairs"], found["agreement"], found["failed"]["shadow"]) == (0, None, 1)
    assert "1 by the shadow" in page([comparison], [found], "")
    assert "1 by the shadow" in describe(found)


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        (None, "not logged"),
        ('{"question": "Why?", "choices": ["a knife", "a cloud"]}', "Why? [0: a knife; 1: a cloud]"),
        ('{"text": "Good.", "context": null}', "Good."),
        ('{"distance_km": 3.5, "city": "Bonn"}', "distance_km=3.5 Bonn"),
        ("[1, 2]", "[1, 2]"),
        ("{", "{"),
    ],
)
def test_a_question_is_shown_in_a_line(logged: str | None, shown: str) -> None:
    assert question(logged) == shown
