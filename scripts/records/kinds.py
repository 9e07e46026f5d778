"""The two streams, and the tables that they become."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from handlers.redis.log import FIELD, LABELS, PREDICTIONS, LabelRecord, PredictionRecord
from scripts.core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
Record = PredictionRecord | LabelRecord


class PyarrowMissing(UserError):
    """Parquet files can be neither read nor written."""


@dataclass(frozen=True)
class Entry:
    """A record with its id in the stream."""

    id: str
    record: Record

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.record.time_us / 1e6, UTC)

    def concerns(self, model: str | None, version: str | None) -> bool:
        """Whether it is of this model and version; None is any."""
        found = getattr(self.record, "model", None), getattr(self.record, "version", None)
        return model in (None, found[0]) and version in (None, found[1])


@dataclass(frozen=True)
class Kind:
    """A stream and its table. `partitions` are columns that stand in the folders' names, not in the files."""

    name: str
    stream: str
    record: type[Record]
    partitions: tuple[str, ...]

    @cached_property
    def _decoder(self) -> msgspec.msgpack.Decoder[Record]:
        return msgspec.msgpack.Decoder(self.record)

    def decode_all(self, raw: Iterable[tuple[str, dict[bytes, bytes]]]) -> list[Entry]:
        """Entries of a stream, without those that no worker of ours has written."""
        return [entry for entry in (self.decode(*each) for each in raw) if entry is not None]

    def decode(self, entry_id: str, fields: dict[bytes, bytes]) -> Entry | None:
        """None for what no worker of ours has written."""
        try:
            record = self._decoder.decode(fields[FIELD])
        except (KeyError, msgspec.DecodeError):
            return None
        # They become folders.
        if isinstance(record, PredictionRecord) and not (
            NAME.fullmatch(record.model) and NAME.fullmatch(record.version)
        ):
            return None
        return Entry(entry_id, record)

    def partition_of(self, entry: Entry) -> tuple[str, ...]:
        """The values of `partitions`."""
        date = entry.time.date().isoformat()
        record = entry.record
        return (date, record.model, record.version) if isinstance(record, PredictionRecord) else (date,)

    def schema(self) -> pa.Schema:
        """Columns of a file. They keep their names and types; later ones are added at the end."""
        pa = pyarrow()
        utc = pa.timestamp("us", tz="UTC")
        fields = {
            "predictions": {
                "stream_id": pa.string(),
                "prediction_id": pa.string(),
                "time": utc,
                "digest": pa.string(),
                "prediction": pa.int32(),
                "confidence": pa.float64(),
                "probabilities": pa.list_(pa.float64()),
                "latency_ms": pa.float64(),
                "cache": pa.string(),
                "fallback_from": pa.string(),
                "shadow": pa.bool_(),
                "user": pa.string(),
                "input": pa.string(),
                "input_hash": pa.string(),
                "writer": pa.string(),
                "sequence": pa.int64(),
            },
            "labels": {
                "stream_id": pa.string(),
                "prediction_id": pa.string(),
                "label": pa.int64(),
                "time": utc,
                "source": pa.string(),
            },
        }
        return pa.schema(list(fields[self.name].items()))

    def full_schema(self) -> pa.Schema:
        """Those of the folders' names too."""
        pa = pyarrow()
        return pa.schema([*self.schema(), *((name, pa.string()) for name in self.partitions)])

    def table(self, entries: Sequence[Entry], schema: pa.Schema | None = None) -> pa.Table:
        """Rows in the order of the entries."""
        pa = pyarrow()
        schema = schema or self.schema()
        columns: dict[str, list[Any]] = {
            name: [getattr(entry.record, name) for entry in entries]
            for name in self.record.__struct_fields__
            if name in schema.names
        }
        columns["stream_id"] = [entry.id for entry in entries]
        columns["time"] = [entry.record.time_us for entry in entries]
        if "date" in schema.names:
            columns["date"] = [self.partition_of(entry)[0] for entry in entries]
        return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


PREDICTION_KIND = Kind("predictions", PREDICTIONS, PredictionRecord, ("date", "model", "version"))
LABEL_KIND = Kind("labels", LABELS, LabelRecord, ("date",))
KINDS = (PREDICTION_KIND, LABEL_KIND)


def pyarrow() -> Any:
    """The library; raises PyarrowMissing with the cure."""
    try:
        import pyarrow
    except ImportError as err:
        raise PyarrowMissing("Parquet files need pyarrow; pip install 'torchserve-marctl[log]'") from err
    return pyarrow


def id_pair(entry_id: str) -> tuple[int, int]:
    """`1763725123456-7` as numbers, which order as Redis orders them."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def next_id(entry_id: str) -> str:
    """The smallest id after this one."""
    milliseconds, sequence = id_pair(entry_id)
    return f"{milliseconds}-{sequence + 1}"
