"""True labels from files, and reading them back."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from scripts.cli import main
from scripts.core.errors import UserError
from scripts.records.drain import drain
from scripts.records.labels import read_labels, send_labels
from scripts.records.reader import read
from tests.redis_servers import TestRedis
from tests.scripts.records.conftest import NOON_US, Log, label, record

LINES = '{"prediction_id": "a", "label": 1}\n\n{"prediction_id": "b:0", "label": 0}\n'
TABLE = "﻿label,prediction_id,remark\n1,a,sure\n0,b:0,\n"


@pytest.mark.parametrize(("name", "content"), [("labels.jsonl", LINES), ("labels.csv", TABLE)])
def test_labels_of_a_file_are_joined(client: redis.Redis, log: Log, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    log(record("a"), record("b:0"), record("c"), record("a", version="2.0", shadow=True))
    send_labels(client, read_labels(tmp_path / name))
    drain(client, tmp_path / "log")
    found = {(row["prediction_id"], row["version"]): row["label"] for row in read(tmp_path / "log").to_pylist()}
    assert found == {("a", "1.0"): 1, ("a", "2.0"): 1, ("b:0", "1.0"): 0, ("c", "1.0"): None}


def test_of_several_labels_the_latest_counts(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a"), label("a", 2, NOON_US + 5), label("a", 1, NOON_US))
    drain(client, tmp_path)
    assert read(tmp_path, columns=["label"])["label"].to_pylist() == [2]


def test_all_bad_lines_are_told_and_nothing_is_sent(
    client: redis.Redis, redis_server: TestRedis, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prediction_id": "a", "label": 1}\n{"label": 1}\n{\n{"prediction_id": "a", "label": "x"}\n')
    done = CliRunner().invoke(
        main, ["log", "label", str(path), "--state", str(tmp_path / "none")], env={"REDIS_URL": redis_server.url}
    )
    assert done.exit_code == 1
    for part in ("3 faults", "line 2: Object missing required field `prediction_id`", "line 3: ", "line 4: "):
        assert part in done.output
    assert client.dbsize() == 1, "the salt alone"


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no labels"):
        read_labels(tmp_path / "labels.jsonl")


@pytest.mark.parametrize("arguments", [[], ["--id", "a"], ["--label", "1"]])
def test_half_a_label_is_misuse(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["log", "label", *arguments]).exit_code == 2


def test_one_label_from_the_shell(client: redis.Redis, redis_server: TestRedis, log: Log, tmp_path: Path) -> None:
    log(record("a"))
    arguments = ["log", "label", "--id", "a", "--label", "3", "--state", str(tmp_path / "none")]
    done = CliRunner().invoke(main, arguments, env={"REDIS_URL": redis_server.url})
    assert (done.exit_code, done.output) == (0, "1 label added\n")
    assert read(tmp_path / "log", client=client)["label"].to_pylist() == [3]
