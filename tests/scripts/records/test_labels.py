"""True labels from files, and reading them back."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from marctl.cli import main
from marctl.core.errors import UserError
from marctl.records.declarations import Declarations
from marctl.records.drain import drain
from marctl.records.labels import read_labels, send_labels
from marctl.records.reader import read
from marctl_handlers.core.columns import LogColumn
from marctl_handlers.redis.log import Declaration, LabelType
from tests.redis_servers import TestRedis
from tests.scripts.records.conftest import NOON_US, Log, declare, label, record

LINES = '{"prediction_id": "a", "label": 1}\n\n{"prediction_id": "b:0", "label": 0}\n'
TABLE = "﻿label,prediction_id,remark\n1,a,sure\n0,b:0,\n"


def known(client: redis.Redis, folder: Path) -> Declarations:
    found = Declarations(folder)
    found.learn(client)
    return found


@pytest.mark.parametrize(("name", "content"), [("labels.jsonl", LINES), ("labels.csv", TABLE)])
def test_labels_of_a_file_are_joined(client: redis.Redis, log: Log, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    log(record("a"), record("b:0"), record("c"), record("a", version="2.0", shadow=True))
    send_labels(client, read_labels(tmp_path / name, known(client, tmp_path), "mcqa"))
    drain(client, tmp_path / "log")
    found = {(row["prediction_id"], row["version"]): row["true_label"] for row in read(tmp_path / "log").to_pylist()}
    assert found == {("a", "1.0"): 1, ("a", "2.0"): 1, ("b:0", "1.0"): 0, ("c", "1.0"): None}


def test_of_several_labels_the_latest_counts(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a"), label("a", 2, NOON_US + 5), label("a", 1, NOON_US))
    drain(client, tmp_path)
    assert read(tmp_path, columns=["true_label"])["true_label"].to_pylist() == [2]


def test_all_bad_lines_are_told_and_nothing_is_sent(
    client: redis.Redis, redis_server: TestRedis, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prediction_id": "a", "label": 1}\n{"label": 1}\n{\n{"prediction_id": "a", "label": "x"}\n')
    before = client.dbsize()
    arguments = ["log", "label", str(path), "--model", "mcqa", "--state", str(tmp_path / "none")]
    done = CliRunner().invoke(main, arguments, env={"REDIS_URL": redis_server.url})
    assert done.exit_code == 1
    for part in ("3 faults", "line 2: Object missing required field `prediction_id`", "line 3: ", "line 4: "):
        assert part in done.output
    assert client.dbsize() == before


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no labels"):
        read_labels(tmp_path / "labels.jsonl", Declarations(tmp_path))


@pytest.mark.parametrize("arguments", [[], ["--id", "a"], ["--label", "1"]])
def test_half_a_label_is_misuse(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["log", "label", *arguments]).exit_code == 2


def test_one_label_from_the_shell(client: redis.Redis, redis_server: TestRedis, log: Log, tmp_path: Path) -> None:
    log(record("a"))
    arguments = ["log", "label", "--id", "a", "--label", "3", "--state", str(tmp_path / "none")]
    unnamed = CliRunner().invoke(main, arguments, env={"REDIS_URL": redis_server.url})
    assert (unnamed.exit_code, "expected a model, one of mcqa, other, quiz" in unnamed.output) == (1, True)
    arguments += ["--model", "mcqa"]
    done = CliRunner().invoke(main, arguments, env={"REDIS_URL": redis_server.url})
    assert (done.exit_code, done.output) == (0, "1 label added\n")
    assert read(tmp_path / "log", client=client)["true_label"].to_pylist() == [3]


def test_a_label_counts_for_its_own_model(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a"), record("a", model="quiz"), record("b"), label("a", 2, model="quiz"), label("b", 3, model="mcqa"))
    for _ in range(2):
        rows = read(tmp_path, client=client).to_pylist()
        assert {(row["model"], row["prediction_id"]): row["true_label"] for row in rows} == {
            ("mcqa", "a"): None,
            ("quiz", "a"): 2,
            ("mcqa", "b"): 3,
        }
        drain(client, tmp_path)


@pytest.mark.parametrize(
    ("label_type", "text", "kept"),
    [("int", "1", 1), ("float", "1", 1.0), ("float", "0.5", 0.5), ("str", "1", "1"), ("str", "good", "good")],
)
def test_a_tables_text_becomes_what_the_task_declares(
    client: redis.Redis, tmp_path: Path, label_type: LabelType, text: str, kept: object
) -> None:
    declare(client, Declaration("fare", (LogColumn("price", "float"),), label_type))
    path = tmp_path / "labels.csv"
    path.write_text(f"prediction_id,label,model\na,{text},fare\n")
    [found] = read_labels(path, known(client, tmp_path))
    assert (found.label, type(found.label), found.model) == (kept, type(kept), "fare")


@pytest.mark.parametrize(("label_type", "text"), [("int", "0.5"), ("int", "good"), ("float", "good")])
def test_a_label_of_another_type_is_told(client: redis.Redis, tmp_path: Path, label_type: LabelType, text: str) -> None:
    declare(client, Declaration("fare", (LogColumn("price", "float"),), label_type))
    path = tmp_path / "labels.csv"
    path.write_text(f"prediction_id,label,model\na,{text},fare\n")
    with pytest.raises(
        UserError, match=rf"line 2: label: Expected `{label_type}`.* as the task of model fare declares"
    ):
        read_labels(path, known(client, tmp_path))
