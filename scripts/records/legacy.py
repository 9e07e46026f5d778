"""Records in their first form, an array, which archives built at that time go on writing.

They knew one kind of outcome and recorded no failures.
"""

from __future__ import annotations

import msgspec

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.redis.log import Declaration, LabelRecord, PredictionRecord

DECLARATION = "array"
"""Stands for the declaration that such records lack."""
COLUMNS = (
    LogColumn("prediction", "int"),
    LogColumn("confidence", "float"),
    LogColumn("probabilities", "floats", scores_of="prediction"),
)


class ArrayPrediction(msgspec.Struct, frozen=True, array_like=True):
    prediction_id: str
    time_us: int
    model: str
    version: str
    digest: str
    prediction: int | None
    confidence: float | None
    probabilities: list[float] | None
    latency_ms: float | None
    cache: str | None
    fallback_from: str | None
    shadow: bool
    user: str | None
    input: str | None
    input_hash: str | None
    writer: str
    sequence: int

    def current(self) -> PredictionRecord:
        outcome = {column.name: getattr(self, column.name) for column in COLUMNS}
        fields = {name: value for name, value in msgspec.structs.asdict(self).items() if name not in outcome}
        return PredictionRecord(
            **{name: value for name, value in fields.items() if name != "latency_ms"},
            handler_ms=self.latency_ms,
            declaration=DECLARATION,
            outcome=None if self.prediction is None else outcome,
        )


class ArrayLabel(msgspec.Struct, frozen=True, array_like=True):
    prediction_id: str
    label: int
    time_us: int
    source: str

    def current(self) -> LabelRecord:
        return LabelRecord(**msgspec.structs.asdict(self))


def declaration_of(model: str) -> Declaration:
    return Declaration(model, COLUMNS, "int")


def is_array(payload: bytes) -> bool:
    """Whether a msgpack value is an array; a record of today is a map."""
    return payload[:1] != b"" and (payload[0] & 0xF0 == 0x90 or payload[0] in (0xDC, 0xDD))
