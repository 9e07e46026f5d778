from __future__ import annotations

import json
from pathlib import Path

from marctl.core.logs import Position
from marctl.stack.logs import mark, reason

TRACEBACK = [
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "ts/model_loader.py", line 143, in load',
    "    initialize_fn(service.context)",
]
FALLBACK = [
    "",
    "During handling of the above exception, another exception occurred:",
    "",
    "Traceback (most recent call last):",
    '  File "ts/model_loader.py", line 110, in load',
    "ModuleNotFoundError: No module named 'ts.torch_handler.entry'",
]


def lines(thread: str, texts: list[str]) -> str:
    contents = ({"time": "2026-11-21T08:55:55.557Z", "level": "INFO", "thread": thread, "message": t} for t in texts)
    return "".join(json.dumps(content) + "\n" for content in contents)


def test_a_load_error_is_told_in_its_own_words() -> None:
    texts = [
        *TRACEBACK,
        "marctl_handlers.core.errors.LoadError: labels.json: missing; rebuild the archive",
        "Connection closed",
    ]
    assert reason(texts) == "labels.json: missing; rebuild the archive"


def test_a_load_error_without_a_traceback_is_found_too() -> None:
    assert reason(["LoadError: mcqa 2.0: no weights", *TRACEBACK, "SystemExit: 1"]) == "mcqa 2.0: no weights"


def test_another_exception_keeps_its_name() -> None:
    assert reason([*TRACEBACK, "KeyError: 'labels'"]) == "KeyError: 'labels'"
    assert reason([*TRACEBACK, "MemoryError"]) == "MemoryError"


def test_an_import_error_is_not_hidden_by_the_servers_fallback() -> None:
    assert reason([*TRACEBACK, "ModuleNotFoundError: No module named 'xgboost'", *FALLBACK]) == (
        "ModuleNotFoundError: No module named 'xgboost'"
    )


def test_what_is_no_failure_is_no_reason() -> None:
    assert reason(["Torch worker started.", "note: nothing"]) is None


def test_only_what_these_workers_said_since_counts(tmp_path: Path) -> None:
    workers = tmp_path / "workers.log"
    failed = [*TRACEBACK, "entry.LoadError: too old"]
    workers.write_text(lines("W-9000-mcqa_1.0-stdout", failed))
    before = mark(tmp_path / "server.log", workers)
    with workers.open("a") as log:
        log.write(lines("W-9001-mcqa_1.0-stderr", failed))
    assert before.reason({"9000", "900"}) is None
    assert before.reason({"9001"}) == "too old"


def test_the_server_giving_up_on_a_worker_is_noticed(tmp_path: Path) -> None:
    server = tmp_path / "server.log"
    before = mark(server, tmp_path / "workers.log")
    server.write_text(lines("W-9001-bad_1.0", ["Load model failed: bad, error: Worker died."]))
    assert before.failed({"9001"})
    assert not before.failed({"9000"})


def test_a_log_that_was_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("old line\n" * 10)
    position = Position.now(log)
    log.write_text("new line\n")
    assert position.lines_since() == ["new line"]
