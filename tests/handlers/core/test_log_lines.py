from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.core.log_lines import JsonLines, Sparing
from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import Log
from tests.handlers.core.small import small

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NO_HEADERS: Mapping[str, str] = {}


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What the pipeline logs, as a worker writes it."""
    stream, logger = StringIO(), logging.getLogger("marctl_handlers")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines("worker", model="small", version="1.0"))
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def ask(pipeline: Pipeline, text: str, id: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
    pipeline.answer([Request(json.dumps({"text": text}).encode(), id, headers=headers)])


def lines(stream: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_failed_request_is_one_line_that_says_whose_and_where_and_nothing_of_its_text(written: StringIO) -> None:
    pipeline, _, _ = small()
    ask(pipeline, "predict", id="id-1", headers={"traceparent": TRACE})
    [line] = lines(written)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert 0 <= line.pop("duration_ms") < 1000
    assert line.pop("at")[-1].endswith(" fail_at")
    assert line == {
        "level": "error",
        "part": "worker",
        "message": "small 1.0: predicting failed, request id-1",
        "model": "small",
        "version": "1.0",
        "request_id": "id-1",
        "traceparent": TRACE,
        "kind": "predicting",
        "error": "FaultError",
    }


def test_an_exceptions_text_is_told_where_the_log_may_hold_whole_questions(written: StringIO) -> None:
    pipeline, _, _ = small(log=Log(input="whole"))
    ask(pipeline, "predict", id="id-1", headers={"traceparent": TRACE + "x"})
    [line] = lines(written)
    assert line["error_text"] == "secret of predict"
    assert "traceparent" not in line


def test_no_id_of_a_client_makes_a_line_of_its_own(written: StringIO) -> None:
    pipeline, _, _ = small()
    ask(pipeline, "predict", id='a\n{"time": "now", "message": "forged"}')
    assert len(lines(written)) == 1


def test_what_the_system_says_of_a_failure_is_told(written: StringIO) -> None:
    try:
        Path("/no/such/file").read_bytes()
    except OSError:
        logging.getLogger("marctl_handlers.test").exception("no metrics")
    [line] = lines(written)
    assert (line["error"], line["error_text"]) == ("FileNotFoundError", "No such file or directory")


def test_an_event_that_repeats_is_told_once_and_then_counted() -> None:
    stream, logger = StringIO(), logging.getLogger("test.sparing")
    handler, sparing = logging.StreamHandler(stream), Sparing(every_s=60)
    handler.setFormatter(JsonLines("worker"))
    handler.addFilter(sparing)
    logger.addHandler(handler)
    logger.propagate = False
    for number in range(5):
        logger.error("request %d failed", number)
    logger.error("something else")
    sparing._every_s = 0
    logger.error("request %d failed", 5)
    logger.error("request %d failed", 6)
    told = [(line["message"], line.get("suppressed")) for line in lines(stream)]
    assert told == [
        ("request 0 failed", None),
        ("something else", None),
        ("request 5 failed", 4),
        ("request 6 failed", None),
    ]
