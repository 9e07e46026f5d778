"""True labels from the operator: into the same stream as those of POST /feedback."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import redis

from handlers.redis.log import FIELD, LABELS, STREAM_RECORDS, Feedback, LabelRecord
from scripts.core.errors import UserError
from scripts.core.faults import listed

PER_TRIP = 1_000
FAULTS_SHOWN = 20


def read_labels(path: Path) -> list[Feedback]:
    """From lines of JSON, or CSV with a header: prediction_id and label. Raises UserError listing every bad line."""
    rows = csv_rows(path) if path.suffix.lower() == ".csv" else json_rows(path)
    found, faults = [], []
    for line, row in rows:
        try:
            found.append(msgspec.convert(row, Feedback, strict=False) if isinstance(row, dict) else of_json(row))
        except msgspec.DecodeError as err:
            faults.append(f"line {line}: {err}")
    if faults:
        left = len(faults) - FAULTS_SHOWN
        raise UserError(listed(path, faults[:FAULTS_SHOWN] + ([f"and {left} more lines"] if left > 0 else [])))
    if not found:
        raise UserError(f'{path}: no labels; expected lines like {{"prediction_id": "...", "label": 1}}')
    return found


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name in Feedback.__struct_fields__}


def json_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from ((i, line) for i, line in enumerate(file, 1) if line.strip())


def of_json(line: bytes) -> Feedback:
    return msgspec.json.decode(line, type=Feedback)


def send_labels(client: redis.Redis, labels: list[Feedback]) -> None:
    """Put them into the stream, many at a time. Raises redis.RedisError; those before may be in it then."""
    encode = msgspec.msgpack.Encoder().encode
    for start in range(0, len(labels), PER_TRIP):
        pipeline = client.pipeline(transaction=False)
        for label in labels[start : start + PER_TRIP]:
            record = LabelRecord(label.prediction_id, label.label, time.time_ns() // 1000, "command")
            pipeline.xadd(LABELS, {FIELD: encode(record)}, maxlen=STREAM_RECORDS)
        pipeline.execute()
