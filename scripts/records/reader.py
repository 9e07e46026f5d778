"""Reads the prediction log: drained files, what is still in the streams, and true labels joined to both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from marctl.core.errors import UserError
from marctl.records import files, position
from marctl.records.declarations import Declarations, outcome_type
from marctl.records.kinds import LABEL_KIND, PREDICTION_KIND, Entry, Kind, id_pair, label_type, pyarrow
from marctl.records.streams import Redis, every_entry, identity
from marctl_handlers.redis.log import PredictionRecord

if TYPE_CHECKING:
    import pyarrow as pa

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
BATCH_ROWS = 65_536
LabelKey = tuple[str | None, str]
"""Model, None for any; prediction id."""


@dataclass(frozen=True)
class Wanted:
    """Which rows are read; None for all. `since` is included, `until` is not."""

    model: str | None = None
    version: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def condition(self) -> Any:
        """As pyarrow's expression, None for no condition. Dates let whole folders be passed over."""
        import pyarrow.compute as pc

        # A label of an older worker has no model, and counts for any.
        parts = [] if self.model is None else [(pc.field("model") == self.model) | pc.field("model").is_null()]
        parts += [] if self.version is None else [pc.field("version") == self.version]
        for time, first in ((self.since, True), (self.until, False)):
            if time is not None:
                day = time.astimezone(UTC).date().isoformat()
                parts += [pc.field("time") >= time if first else pc.field("time") < time]
                parts += [pc.field("date") >= day if first else pc.field("date") <= day]
        return reduce(and_, parts) if parts else None


def read(
    folder: Path,
    *,
    model: str | None = None,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: list[str] | None = None,
    client: Redis | None = None,
) -> pa.Table:
    """What `batches` gives, as one table."""
    schema, found = batches(
        folder, model=model, version=version, since=since, until=until, columns=columns, client=client
    )
    return pyarrow().Table.from_batches(list(found), schema)


def batches(
    folder: Path,
    *,
    model: str | None = None,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: list[str] | None = None,
    client: Redis | None = None,
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Recorded questions with their `true_label` (null where none is known), some thousand at a time, so that a log of
    any size can be read. Those of files come in the files' order. The schema of the batches is the first result.

    `client`: also what has not been drained yet. `columns`: some of `PREDICTION_KIND.full_schema()`, of those that the
    models' tasks declare, and `true_label`; those that no record has are left out. Raises UserError where models differ
    in a column's type.
    """
    known, label = labels(folder, client, model)
    schema, found = read_kind(PREDICTION_KIND, folder, client, Wanted(model, version, since, until))
    schema = schema.append(pyarrow().field("true_label", label))
    if columns is not None:
        schema = pyarrow().schema([schema.field(name) for name in columns if name in schema.names])
    return schema, (joined(batch, known, schema) for batch in found)


def joined(batch: pa.RecordBatch, known: dict[LabelKey, Any], schema: pa.Schema) -> pa.RecordBatch:
    """With the labels, and the schema's columns only."""
    pa = pyarrow()
    made = {each.name: batch.column(each.name) for each in schema if each.name != "true_label"}
    if "true_label" in schema.names:
        keys = zip(batch.column("model").to_pylist(), batch.column("prediction_id").to_pylist(), strict=True)
        found = [known.get((model, name), known.get((None, name))) if known else None for model, name in keys]
        made["true_label"] = pa.array(found, schema.field("true_label").type)
    return pa.record_batch([made[each.name] for each in schema], schema=schema)


def labels(folder: Path, client: Redis | None = None, model: str | None = None) -> tuple[dict[LabelKey, Any], Any]:
    """True labels, of several the latest, and the type that takes them all."""
    pa = pyarrow()
    _, found = read_kind(LABEL_KIND, folder, client, Wanted(model))
    rows = [
        (row["time"], (row["model"], row["prediction_id"]), row["label"])
        for batch in found
        for row in batch.select(["time", "model", "prediction_id", "label"]).to_pylist()
    ]
    known = {key: label for _, key, label in sorted(rows, key=lambda row: row[0])}
    kinds = {type(label) for label in known.values()}
    if kinds == {str}:
        return known, pa.string()
    if str in kinds:
        raise UserError("labels of these models differ in their type; read one model at a time, with --model")
    return known, pa.float64() if float in kinds else pa.int64()


def read_kind(
    kind: Kind, folder: Path, client: Redis | None = None, wanted: Wanted | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """A stream's rows, those of files first."""
    pa, parquet = pyarrow(), pyarrow("parquet")
    wanted = wanted or Wanted()
    declarations = Declarations(folder)
    entries, paths = snapshot(kind, folder, client, declarations)
    paths = [path for path in paths if may_hold(path, wanted)]
    entries = [entry for entry in entries if entry.concerns(wanted.model, wanted.version)]
    declared = dict.fromkeys(entry.columns for entry in entries)
    try:
        schemas = [parquet.read_schema(path) for path in paths]
        schemas += [kind.schema(columns) for columns in declared] if kind is PREDICTION_KIND else label_schemas(entries)
        found = files.unified([*schemas, *([kind.schema()] if kind is PREDICTION_KIND or not schemas else [])])
    except pa.ArrowException as err:
        raise UserError(
            f"{folder}: models or versions differ in a column's type ({err}); read one at a time, with --model"
        ) from err
    except (OSError, ValueError) as err:
        raise UserError(f"{folder} can't be read as a prediction log: {' '.join(str(err).split())}") from err
    partitions = [pa.field(name, pa.string()) for name in kind.partitions]
    stored = pa.schema([*found, *partitions])
    return upgraded_schema(stored), rows(kind, folder / kind.name, paths, entries, stored, wanted)


def label_schemas(entries: Sequence[Entry]) -> list[pa.Schema]:
    return [LABEL_KIND.schema(label=kind) for kind in dict.fromkeys(label_type(entry.record) for entry in entries)]


def recent(folder: Path, count: int, model: str | None, version: str | None) -> list[Entry]:
    """The last of the drained records, oldest first: of the newest files, so that a large log is not read for a few."""
    place, declarations = folder / PREDICTION_KIND.name, Declarations(folder)
    if not place.is_dir():
        return []
    parquet = pyarrow("parquet")
    paths = [path for path in files.listed(place) if may_hold(path, Wanted(model, version))]
    newest = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    today = {path.parent for path in newest if newest and files.day_of(path) == files.day_of(newest[0])}
    found: list[Entry] = []
    for path in newest:
        if len(found) >= count and not today:
            break
        today.discard(path.parent)
        names = dict(part.split("=", 1) for part in path.relative_to(place).parts[:-1])
        with parquet.ParquetFile(path) as file:
            rows = file.read_row_group(file.num_row_groups - 1)
        for row in rows.slice(max(0, len(rows) - count)).to_pylist():
            found.append(entry_of(row | names, declarations))
    return sorted(found, key=lambda entry: entry.record.time_us)[-count:] if count else []


def entry_of(row: dict[str, Any], declarations: Declarations) -> Entry:
    """A row of a file as the record that it was."""
    columns = declarations.of_model(row["model"]).columns
    values = {column.name: row.get(column.name) for column in columns}
    fields = {name: row[name] for name in PredictionRecord.__struct_fields__ if row.get(name) is not None}
    time_us = round(row["time"].timestamp() * 1e6)
    handler_ms = row.get("handler_ms", row.get("latency_ms"))
    answered = any(value is not None for value in values.values())
    outcome = outcome_type(columns)(**values) if answered else None
    record = PredictionRecord(**fields | {"time_us": time_us, "handler_ms": handler_ms})
    record = replace(record, outcome=values if answered else None)
    return Entry(row["stream_id"], record, columns, outcome)


def snapshot(
    kind: Kind, folder: Path, client: Redis | None, declarations: Declarations
) -> tuple[list[Entry], list[Path]]:
    """What the stream holds and the files do not, and the files: each record once, also while a drain is at work."""
    entries: list[Entry] = []
    if client is not None:
        declarations.learn(client)
        # The stream first: what is drained in between is in both, and left out by its position.
        entries = list(every_entry(client, kind, declarations))
    place = folder / kind.name
    while True:
        here = position.peek(place)
        paths = files.listed(place, {*here.pending, *here.spill_pending})
        if here == position.peek(place):
            break
    if client is not None and here.stream == identity(client, make=False):
        entries = [entry for entry in entries if id_pair(entry.id or "0-0") > id_pair(here.done)]
    return entries, paths


def may_hold(path: Path, wanted: Wanted) -> bool:
    """Whether a file's folders fit what is wanted."""
    values = dict(part.split("=", 1) for part in path.parts if "=" in part)
    for name, value in (("model", wanted.model), ("version", wanted.version)):
        if value is not None and values.get(name, value) != value:
            return False
    day = values.get("date", "")
    since = "" if wanted.since is None else wanted.since.astimezone(UTC).date().isoformat()
    until = "9" if wanted.until is None else wanted.until.astimezone(UTC).date().isoformat()
    return not day or since <= day <= until


def rows(
    kind: Kind, folder: Path, paths: Sequence[Path], entries: Sequence[Entry], stored: pa.Schema, wanted: Wanted
) -> Iterator[pa.RecordBatch]:
    """Of the files, and of what is not drained yet. Raises UserError if files vanish meanwhile."""
    ds = pyarrow("dataset")
    condition = wanted.condition()
    if paths:
        # Said and not guessed: version 1 is no number.
        folders = pyarrow().schema([stored.field(name) for name in kind.partitions])
        partitioning = ds.partitioning(folders, flavor="hive")
        try:
            found = ds.dataset(
                [str(path) for path in paths],
                stored,
                format="parquet",
                partitioning=partitioning,
                partition_base_dir=str(folder),
            )
            for batch in found.to_batches(filter=condition, batch_size=BATCH_ROWS):
                if batch.num_rows:
                    yield upgraded(batch)
        except (OSError, ValueError) as err:
            raise UserError(f"{folder} can't be read as a prediction log: {' '.join(str(err).split())}") from err
    if entries:
        undrained = kind.table(entries, stored)
        for batch in (undrained if condition is None else undrained.filter(condition)).to_batches():
            yield upgraded(batch)


def upgraded_schema(stored: pa.Schema) -> pa.Schema:
    """Without the column that files of the first form have."""
    return stored.remove(stored.get_field_index("latency_ms")) if "latency_ms" in stored.names else stored


def upgraded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Files of the first form: `latency_ms` became `handler_ms`, and all they have is answered questions."""
    import pyarrow.compute as pc

    if "latency_ms" not in batch.schema.names:
        return batch
    made = dict(zip(batch.schema.names, batch.columns, strict=True))
    made["handler_ms"] = pc.coalesce(made["handler_ms"], made.pop("latency_ms"))
    made["code"] = pc.fill_null(made["code"], 200)
    return pyarrow().RecordBatch.from_pydict(made, schema=upgraded_schema(batch.schema))


def moment(text: str, now: datetime | None = None) -> datetime:
    """`2h`, `30m`, `7d`: so long ago; or a date or time, UTC where it names no zone. Raises ValueError."""
    if text and text[-1] in UNITS and text[:-1].replace(".", "", 1).isdigit():
        return (now or datetime.now(UTC)) - timedelta(**{UNITS[text[-1]]: float(text[:-1])})
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
