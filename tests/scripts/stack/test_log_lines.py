from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from marctl.stack.log_lines import FILES, Follower, read_lines

ALL = tuple(FILES)


def event(second: int, message: str, **fields: object) -> str:
    return (
        json.dumps({"time": f"2026-11-24T22:31:{second:02}.000Z", "level": "WARN", "message": message, **fields}) + "\n"
    )


def write(logs: Path) -> None:
    (logs / "gateway.log").write_text(event(3, "a request failed", part="envoy", request_id="id-1", kind="UT"))
    thread = "W-9000-mcqa_2.0-stdout"
    (logs / "workers.log").write_text(event(1, "Torch worker started.", thread=thread, throwable=""))
    (logs / "events.log").write_text(event(4, "predicting failed", model="mcqa", version="2.0", error="ValueError"))
    (logs / "server.log").write_text(event(2, "boom", logger="Model", throwable="java.io.IOException: no"))
    (logs / "redis.log").write_text("17:M 24 Nov 2026 22:31:05.000 # WARNING Memory overcommit\n")
    (logs / "reconciler.log").write_text(
        event(0, "starting", part="reconciler") + "Traceback (most recent call last):\n"
    )


def test_all_parts_are_merged_by_time(tmp_path: Path) -> None:
    os.environ["TZ"] = "UTC"
    write(tmp_path)
    found = read_lines(tmp_path, ALL)
    told = [(line.part, line.message) for line in found if line.message != "Traceback (most recent call last):"]
    assert told == [
        ("reconciler", "starting"),
        ("worker", "Torch worker started."),
        ("torchserve", "boom  java.io.IOException: no"),
        ("envoy", "a request failed"),
        ("worker", "predicting failed"),
        ("redis", "WARNING Memory overcommit"),
    ]
    assert found[1].message == "Traceback (most recent call last):", "it stands behind the line before it"
    assert found[2].fields == {"model": "mcqa", "version": "2.0"}
    assert found[-2].content == {
        "time": "2026-11-24T22:31:04.000Z",
        "part": "worker",
        "level": "warn",
        "message": "predicting failed",
        "model": "mcqa",
        "version": "2.0",
        "error": "ValueError",
    }


def test_a_part_and_a_time_choose_and_former_files_count(tmp_path: Path) -> None:
    write(tmp_path)
    with gzip.open(tmp_path / "workers.1.log.gz", "wt") as former:
        former.write(event(2, "long ago") + event(3, "before"))
    since = datetime(2026, 11, 24, 22, 31, 3, tzinfo=UTC)
    found = read_lines(tmp_path, ["worker"], since)
    assert [line.message for line in found] == ["before", "predicting failed"]


def test_what_is_no_line_of_ours_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b'{"broken\n{"message": "no time"}\n[1]\n\xff\n\n')
    found = [line.message for line in read_lines(tmp_path, ["torchserve"])]
    assert found == ['{"broken', "no time", "[1]", "\N{REPLACEMENT CHARACTER}"]
    assert read_lines(tmp_path, ["redis"]) == []


def test_following_shows_what_comes_and_whole_lines_alone(tmp_path: Path) -> None:
    write(tmp_path)
    follower = Follower(tmp_path, ALL)
    assert follower.new() == []
    log = tmp_path / "gateway.log"
    with log.open("a") as file:
        file.write(event(7, "second") + event(6, "first") + event(8, "third").rstrip("\n"))
    assert [line.message for line in follower.new()] == ["first", "second"]
    with log.open("a") as file:
        file.write("\n")
    assert [line.message for line in follower.new()] == ["third"]
    os.truncate(log, 0)
    with log.open("a") as file:
        file.write(event(9, "after a rotation"))
    assert [line.message for line in follower.new()] == ["after a rotation"]
    log.rename(tmp_path / "gateway.log.1")
    log.write_text(event(9, "in a file of its own"))
    assert [line.message for line in follower.new()] == ["in a file of its own"]
