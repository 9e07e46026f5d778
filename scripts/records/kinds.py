"""The two streams, and the tables that they become."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from marctl.core.errors import UserError
from marctl.records import legacy
from marctl.records.declarations import Declarations, outcome_type
from marctl_handlers.core.columns import LogColumn, LogType
from marctl_handlers.redis.log import FIELD, LABELS, PREDICTIONS, LabelRecord, PredictionRecord

if TYPE_CHECKING:
    import pyarrow as pa

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
INT64 = range(-(2**63), 2**63)
Record = PredictionRecord | LabelRecord
Raw = tuple[str | None, dict[bytes, bytes]]
"""An entry's id in its stream, None outside of streams; its fields."""


class PyarrowMissing(UserError):
    """Parquet files can be neither read nor written."""


class Undecodable(Exception):
    """This is not a record of the log; the text says why."""


@dataclass(frozen=True)
class Entry:
    """A record with its id in the stream; its outcome, None for a failure; and the columns that its task declares."""

    id: str | None
    record: Record
    columns: tuple[LogColumn, ...] = ()
    outcome: msgspec.Struct | None = None

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.record.time_us / 1e6, UTC)

    def concerns(self, model: str | None, version: str | None) -> bool:
        """Whether it is of this model and version; None is any, also in a label of an older worker."""
        of_model = None in (model, self.record.model) or model == self.record.model
        return of_model and version in (None, getattr(self.record, "version", None))


@dataclass(frozen=True)
class Sorted:
    """What a series of raw entries holds. `undecodable`: with the reason of each."""

    entries: list[Entry] = field(default_factory=list)
    undecodable: list[tuple[Raw, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """A stream and its table. `partitions` are columns that stand in the folders' names, not in the files."""

    name: str
    stream: str
    record: type[Record]
    array: type[legacy.ArrayPrediction] | type[legacy.ArrayLabel]
    partitions: tuple[str, ...]

    @cached_property
    def _decoder(self) -> msgspec.msgpack.Decoder[Record]:
        return msgspec.msgpack.Decoder(self.record)

    @cached_property
    def _array_decoder(self) -> msgspec.msgpack.Decoder[Any]:
        return msgspec.msgpack.Decoder(self.array)

    def decode_all(self, raw: Sequence[Raw], declarations: Declarations) -> Sorted:
        found = Sorted()
        for entry_id, fields in raw:
            try:
                found.entries.append(self.decode(entry_id, fields, declarations))
            except Undecodable as err:
                found.undecodable.append(((entry_id, fields), str(err)))
        return found

    def decode(self, entry_id: str | None, fields: dict[bytes, bytes], declarations: Declarations) -> Entry:
        """Raises Undecodable."""
        try:
            payload = fields[FIELD]
            array = legacy.is_array(payload)
            record = self._array_decoder.decode(payload).current() if array else self._decoder.decode(payload)
            checked = self._typed(Entry(entry_id, record), declarations)
            self.partition_of(checked)
        except KeyError:
            raise Undecodable(f"no field {FIELD.decode()!r}") from None
        except (msgspec.DecodeError, OverflowError, ValueError, OSError) as err:
            raise Undecodable(str(err)) from err
        return checked

    def _typed(self, entry: Entry, declarations: Declarations) -> Entry:
        """Raises Undecodable, msgspec.ValidationError."""
        record = entry.record
        if record.sequence not in INT64:
            raise Undecodable("its sequence is out of range")
        if isinstance(record, LabelRecord):
            if isinstance(record.label, int) and record.label not in INT64:
                raise Undecodable("its label is out of range")
            require_name(record.model or "none")
            return entry
        require_name(record.model)
        require_name(record.version)
        declared = declarations.get(record.declaration, record.model)
        if record.outcome is None:
            return entry if declared is None else Entry(entry.id, record, declared.columns)
        if declared is None:
            raise Undecodable(f"nothing declares its outcome (declaration {record.declaration!r})")
        outcome = msgspec.convert(record.outcome, outcome_type(declared.columns))
        for column in declared.columns:
            if column.type == "int" and (getattr(outcome, column.name) or 0) not in INT64:
                raise Undecodable(f"its {column.name} is out of range")
        return Entry(entry.id, record, declared.columns, outcome)

    def partition_of(self, entry: Entry) -> tuple[str | None, ...]:
        """The values of `partitions`."""
        date = entry.time.date().isoformat()
        record = entry.record
        if isinstance(record, LabelRecord):
            return date, record.model
        return date, record.model, record.version

    def schema(self, columns: Sequence[LogColumn] = (), label: LogType = "int") -> pa.Schema:
        """Columns of a file. They keep their names and types; those that a task declares come last."""
        pa = pyarrow()
        utc, text, number = pa.timestamp("us", tz="UTC"), pa.string(), pa.float64()
        fixed = {
            "predictions": {
                "stream_id": text,
                "prediction_id": text,
                "time": utc,
                "digest": text,
                "code": pa.int32(),
                "error": text,
                "experiment": text,
                "role": text,
                "user": text,
                "queue_ms": number,
                "batch_ms": number,
                "handler_ms": number,
                "cache": text,
                "fallback_from": text,
                "shadow": pa.bool_(),
                "traceparent": text,
                "input": text,
                "input_hash": text,
                "writer": text,
                "sequence": pa.int64(),
            },
            "labels": {
                "stream_id": text,
                "prediction_id": text,
                "label": arrow_type(label),
                "time": utc,
                "source": text,
                "writer": text,
                "sequence": pa.int64(),
            },
        }
        declared = [(column.name, arrow_type(column.type)) for column in columns]
        return pa.schema([*fixed[self.name].items(), *declared])

    def full_schema(self, columns: Sequence[LogColumn] = (), label: LogType = "int") -> pa.Schema:
        """Those of the folders' names, too."""
        pa = pyarrow()
        return pa.schema([*self.schema(columns, label), *((name, pa.string()) for name in self.partitions)])

    def table(self, entries: Sequence[Entry], schema: pa.Schema) -> pa.Table:
        """Rows in the order of the entries; a column that an entry's outcome lacks is null."""
        pa = pyarrow()
        made: dict[str, list[Any]] = {
            "stream_id": [entry.id for entry in entries],
            "time": [entry.record.time_us for entry in entries],
        }
        if "date" in schema.names:
            made["date"] = [self.partition_of(entry)[0] for entry in entries]
        for name in schema.names:
            if name not in made and name in self.record.__struct_fields__:
                made[name] = [getattr(entry.record, name) for entry in entries]
            elif name not in made:
                made[name] = [getattr(entry.outcome, name, None) for entry in entries]
        return pa.table([pa.array(made[each.name], each.type) for each in schema], schema=schema)


PREDICTION_KIND = Kind(
    "predictions", PREDICTIONS, PredictionRecord, legacy.ArrayPrediction, ("date", "model", "version")
)
LABEL_KIND = Kind("labels", LABELS, LabelRecord, legacy.ArrayLabel, ("date", "model"))
KINDS = (PREDICTION_KIND, LABEL_KIND)


def require_name(name: str) -> None:
    """Names of models and versions become folders. Raises Undecodable."""
    if not NAME.fullmatch(name):
        raise Undecodable(f"{name!r} can't be the name of a model or version")


def arrow_type(kind: LogType) -> pa.DataType:
    pa = pyarrow()
    types = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
    return types[kind] if kind in types else pa.list_(types[kind.removesuffix("s")])


def label_type(record: Record) -> LogType:
    """Of the value of a label; `int` for other records."""
    value = getattr(record, "label", 0)
    return "float" if isinstance(value, float) else "str" if isinstance(value, str) else "int"


def pyarrow(module: str = "") -> Any:
    """The library, or a module of it; raises PyarrowMissing with the cure."""
    try:
        return importlib.import_module(f"pyarrow.{module}".rstrip("."))
    except ImportError as err:
        raise PyarrowMissing("Parquet files need pyarrow; pip install pyarrow") from err


def id_pair(entry_id: str) -> tuple[int, int]:
    """`1763725123456-7` as numbers, which order as Redis orders them."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def next_id(entry_id: str) -> str:
    """The smallest id after this one."""
    milliseconds, sequence = id_pair(entry_id)
    return f"{milliseconds}-{sequence + 1}"
