from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.redis.log import (
    DECLARATIONS,
    FIELD,
    LABELS,
    PREDICTIONS,
    Declaration,
    LabelRecord,
    PredictionRecord,
    declaration_id,
)
from tests.handlers.redis.conftest import redis_server
from tests.redis_servers import TestRedis

__all__ = ["redis_server"]

NOON_US = 1_763_726_400_000_000
"""2025-11-21 12:00 UTC."""


COLUMNS = (
    LogColumn("prediction", "int"),
    LogColumn("confidence", "float"),
    LogColumn("probabilities", "floats", scores_of="prediction"),
)
KEYS: dict[str, str] = {}
"""Of the declarations that `declare` has made, by model."""


def declare(client: redis.Redis, declaration: Declaration) -> None:
    """As a worker of that model does."""
    encoded = msgspec.json.encode(declaration)
    KEYS[declaration.model] = declaration_id(encoded)
    client.hset(DECLARATIONS, KEYS[declaration.model], encoded)


@pytest.fixture
def client(redis_server: TestRedis) -> redis.Redis:
    """Of a Redis with an empty log, to which workers of mcqa and quiz have written."""
    redis_server.client.flushall()
    for model in ("mcqa", "quiz", "other"):
        declare(redis_server.client, Declaration(model, COLUMNS, "int"))
    return redis_server.client


def record(prediction_id: str, **fields: Any) -> PredictionRecord:
    """An answered question; a prediction of None is a failure."""
    values = {"prediction": 1, "confidence": 0.75, "probabilities": [0.25, 0.75]}
    values |= {name: fields.pop(name) for name in list(fields) if name in values}
    made = {
        "prediction_id": prediction_id,
        "time_us": NOON_US,
        "model": "mcqa",
        "version": "1.0",
        "digest": "d" * 64,
        "outcome": None if values["prediction"] is None else values,
        "handler_ms": 5.0,
        "input_hash": "same",
        "writer": "w",
        "sequence": 1,
    }
    return PredictionRecord(**({"declaration": KEYS.get(fields.get("model", "mcqa"), "")} | made | fields))


Log = Callable[..., None]


@pytest.fixture
def log(client: redis.Redis) -> Log:
    """Puts records and labels into the streams, as workers do."""

    def put(*records: PredictionRecord | LabelRecord) -> None:
        pipeline = client.pipeline(transaction=False)
        for each in records:
            stream = PREDICTIONS if isinstance(each, PredictionRecord) else LABELS
            pipeline.xadd(stream, {FIELD: msgspec.msgpack.encode(each)})
        pipeline.execute()

    return put


def label(prediction_id: str, value: int | float | str, time_us: int = NOON_US, model: str = "mcqa") -> LabelRecord:
    return LabelRecord(prediction_id=prediction_id, label=value, time_us=time_us, source="feedback", model=model)
