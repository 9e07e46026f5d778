"""True labels from the operator: into the same stream as those of POST /feedback."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import redis
from msgspec.structs import replace

from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.records.declarations import TYPES, Declarations
from marctl_handlers.redis.log import FIELD, LABELS, STREAM_RECORDS, Feedback, Label, LabelRecord

PER_TRIP = 1_000
FAULTS_SHOWN = 20


def read_labels(path: Path, declarations: Declarations, model: str | None = None) -> list[Feedback]:
    """From lines of JSON, or CSV with a header: prediction_id, label, and model where the log has several.

    `model`: of those that name none. Raises UserError listing every bad line.
    """
    rows = csv_rows(path) if path.suffix.lower() == ".csv" else json_rows(path)
    found, faults = [], []
    for line, row in rows:
        try:
            label = msgspec.convert(row, Feedback) if isinstance(row, dict) else of_json(row)
            found.append(typed(label, declarations, model))
        except (msgspec.DecodeError, UserError) as err:
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
            known = {name: value for name, value in row.items() if name in Feedback.__struct_fields__}
            yield reader.line_num, {name: value for name, value in known.items() if value or name != "model"}


def json_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from ((i, line) for i, line in enumerate(file, 1) if line.strip())


def of_json(line: bytes) -> Feedback:
    return msgspec.json.decode(line, type=Feedback)


def typed(label: Feedback, declarations: Declarations, model: str | None = None) -> Feedback:
    """The label with its model, and with the type that the model's task declares. `model`: if it names none.

    Raises UserError for another type, and for no model where the log knows several.
    """
    known = declarations.models
    name = label.model or model or (known[0] if len(known) == 1 else None)
    if name is None and known:
        raise UserError(f"expected a model, one of {', '.join(known)}")
    try:
        return replace(label, model=name, label=value_of(label.label, name, declarations))
    except msgspec.ValidationError as err:
        raise UserError(f"label: {err}, as the task of model {name} declares") from err


def value_of(label: Label, model: str | None, declarations: Declarations) -> Label:
    """Raises msgspec.ValidationError. In the text of a CSV file, or where nothing declares a type, `1` is a number."""
    declared = TYPES[declarations.of_model(model).label_type] if model in declarations.models else int | float | str
    if not isinstance(label, str) or declared is str:
        return msgspec.convert(label, declared)
    for kind in (int, float):
        with suppress(msgspec.ValidationError):
            return msgspec.convert(msgspec.convert(label, kind, strict=False), declared)
    return msgspec.convert(label, declared)


def send_labels(client: redis.Redis, labels: Sequence[Feedback]) -> None:
    """Put them into the stream, many at a time. Raises redis.RedisError; those before may be in it then."""
    encode = msgspec.msgpack.Encoder().encode
    for start in range(0, len(labels), PER_TRIP):
        pipeline = client.pipeline(transaction=False)
        for label in labels[start : start + PER_TRIP]:
            record = LabelRecord(
                prediction_id=label.prediction_id,
                label=label.label,
                time_us=time.time_ns() // 1000,
                source="command",
                model=label.model,
            )
            pipeline.xadd(LABELS, {FIELD: encode(record)}, maxlen=STREAM_RECORDS)
        pipeline.execute()
