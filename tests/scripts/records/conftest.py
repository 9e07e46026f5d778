from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis

from handlers.redis.log import FIELD, LABELS, PREDICTIONS, SALT, LabelRecord, PredictionRecord
from tests.redis_servers import TestRedis

NOON_US = 1_763_726_400_000_000
"""2025-11-21 12:00 UTC."""


@pytest.fixture
def client(redis_server: TestRedis) -> redis.Redis:
    """Of a Redis with an empty log."""
    redis_server.client.flushall()
    redis_server.client.set(SALT, b"salt")
    return redis_server.client


def record(prediction_id: str, **fields: Any) -> PredictionRecord:
    made = {
        "prediction_id": prediction_id,
        "time_us": NOON_US,
        "model": "mcqa",
        "version": "1.0",
        "digest": "d" * 64,
        "prediction": 1,
        "confidence": 0.75,
        "probabilities": [0.25, 0.75],
        "latency_ms": 5.0,
        "cache": None,
        "fallback_from": None,
        "shadow": False,
        "user": None,
        "input": None,
        "input_hash": "same",
        "writer": "w",
        "sequence": 1,
    }
    return PredictionRecord(**(made | fields))


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


def label(prediction_id: str, value: int, time_us: int = NOON_US) -> LabelRecord:
    return LabelRecord(prediction_id, value, time_us, "feedback")
