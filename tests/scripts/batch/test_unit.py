"""One unit, from its rows to its file, through an archive's own pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from marctl.batch.answers import key_fields, schema_of
from marctl.batch.archive import Description, describe, extract
from marctl.batch.ask import Ask
from marctl.batch.folder import folder_of
from marctl.batch.job import Job
from marctl.batch.output import Output, digest_of
from marctl.batch.plan import plan
from marctl.batch.sources import scan_all
from marctl.batch.unit import UnitRunner
from marctl_handlers.archive import load
from marctl_handlers.core.messages import Model
from tests.batch_archives import doubling_archive


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doubling")
    extract(doubling_archive(folder), folder / "root")
    return folder / "root"


@pytest.fixture(scope="module")
def description(root: Path) -> Description:
    return describe(root, "doubling 1.0")


@pytest.fixture
def compute(
    root: Path, description: Description, tmp_path: Path
) -> Callable[..., tuple[pa.Table, list[dict[str, Any]]]]:
    """All units of a job over one file: its predictions, and its errors."""
    handler = yaml.safe_load((root / "model-config.yaml").read_text())["handler"]
    pipeline = load(root, Model("doubling", "1.0"), handler)

    def made(path: Path, **options: Any) -> tuple[pa.Table, list[dict[str, Any]]]:
        scanned = scan_all([str(path)])
        sources = tuple(one.source for one in scanned)
        job = Job(model="doubling", version="1.0", digest="d" * 64, sources=sources, unit_rows=256, **options)
        schemas = [pq.read_schema(path) if path.suffix == ".parquet" else None]
        types = [dict.fromkeys(sources[0].columns, "string") if path.suffix == ".csv" else sources[0].columns]
        schema = schema_of(job, description.columns, key_fields(job.keys, types, schemas))
        output = Output(folder_of(str(tmp_path / "out")))
        runner = UnitRunner(job, digest_of(job), description, output, schema, Ask(pipeline))
        for unit in plan(job, scanned):
            runner.run(unit)
        output.finish({})
        lines = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
        return pq.read_table(tmp_path / "out" / "predictions"), [json.loads(line) for line in lines]

    return made


def test_an_archive_tells_what_its_task_asks_and_answers(description: Description) -> None:
    assert [(field.name, field.required) for field in description.fields] == [("value", True), ("note", False)]
    columns = {column.name: column.type for column in description.columns}
    assert columns == {"doubled": "int64", "digits": "list<int64>", "parity": "string"}


def test_rows_come_out_in_their_order_with_keys_answers_and_who_gave_them(compute: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    names = pa.array([f"r{i % 5}" for i in range(600)]).dictionary_encode()
    pq.write_table(pa.table({"n": range(1000, 1600), "name": names, "x": [None] * 600}), path)
    table, errors = compute(path, mapping={"value": "n"}, keys={"name": "name", "number": "n"})
    assert errors == []
    assert table["row"].to_pylist() == list(range(600))
    assert table["number"].to_pylist() == list(range(1000, 1600))
    assert table["name"].to_pylist() == [f"r{i % 5}" for i in range(600)]
    assert table["doubled"].to_pylist() == [2 * n for n in range(1000, 1600)]
    assert table["digits"][1].as_py() == [1, 0, 0, 1]
    assert set(table["digest"].to_pylist()) == {"d" * 64}
    assert table.schema.field("predicted_at").type == pa.timestamp("us", tz="UTC")
    assert table["predicted_at"].null_count == 0


def test_a_bad_row_is_told_with_file_row_and_reason_and_harms_no_other(compute: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"value": 1}',
        "nonsense",
        '{"value": "x"}',
        '{"value": 13}',
        '{"value": 14}',
        '{"note": "y"}',
        '{"value": 7}',
    ]
    path.write_text("\n".join(lines))
    table, errors = compute(path)
    assert table["doubled"].to_pylist() == [2, 14]
    assert [(error["row"], error["file"]) for error in errors] == [(row, str(path)) for row in range(1, 6)]
    reasons = [error["reason"] for error in errors]
    assert reasons[0].startswith("not JSON")
    assert reasons[1] == "Expected `int`, got `str` - at `$.value`"
    assert reasons[2] == "invalid_request: 13 brings bad luck - at `$.value`"
    assert reasons[3].startswith("model_failed")
    assert "missing required field `value`" in reasons[4]


def test_csv_values_become_what_the_question_wants_and_keys_stay_text(compute: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,value\n007,5\n008,\n009,6.5\n010,1_0\n")
    table, errors = compute(path, keys={"id": "id"})
    assert table["id"].to_pylist()[0] == "007"
    assert table["doubled"].to_pylist()[0] == 10
    assert {error["row"] for error in errors} >= {1, 2}


def test_condition_sample_and_limit_leave_the_same_rows_as_one_after_the_other(compute: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"value": range(100, 2100)}), path, row_group_size=300)
    table, _ = compute(path, where="value >= 500", limit=300)
    assert table["row"].to_pylist() == list(range(400, 700))


def test_a_schema_does_not_depend_on_what_the_rows_hold(compute: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join('{"value": "x"}\n' for _ in range(300)) + '{"value": 4}\n')
    table, errors = compute(path)
    assert len(errors) == 300
    assert table["doubled"].to_pylist() == [8]
    first = pq.read_schema(tmp_path / "out" / "predictions" / "part-00000.parquet")
    assert first.field("digits").type == pa.list_(pa.int64())


def test_a_key_of_another_type_than_the_first_ones_is_told_and_not_lost(compute: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"value": 1, "id": i} for i in range(1100)] + [
        {"value": 1, "id": "x"},
        {"value": 1},
        {"value": 1, "id": 1.5},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    table, errors = compute(path, keys={"id": "id"})
    assert table["id"].to_pylist() == [*range(1100), None]
    assert [error["row"] for error in errors] == [1100, 1102]
    assert errors[0]["reason"] == "key id: expected int64, as in the first rows, got 'x'"
