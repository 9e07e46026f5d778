"""Reads the prediction log: drained files, what is still in the streams, and true labels joined to both."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.core.errors import UserError
from scripts.records import position
from scripts.records.kinds import LABEL_KIND, PREDICTION_KIND, Kind, id_pair, pyarrow
from scripts.records.streams import Redis, every_entry, identity

if TYPE_CHECKING:
    import pyarrow as pa

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


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
    """Answered questions with their true `label` (null where none is known), in the order of their stream.

    `client`: also what has not been drained yet. `columns`: some of `PREDICTION_KIND.full_schema()` and `label`.
    """
    table = read_kind(PREDICTION_KIND, folder, client, model=model, version=version, since=since, until=until)
    known = labels(folder, client)
    found = [known.get(name) for name in table["prediction_id"].to_pylist()] if known else [None] * len(table)
    table = table.append_column("label", pyarrow().array(found, pyarrow().int64()))
    return table.select(columns) if columns else table


def labels(folder: Path, client: Redis | None = None) -> dict[str, int]:
    """Prediction id to true label; of several the latest."""
    table = read_kind(LABEL_KIND, folder, client).sort_by("time")
    return dict(zip(table["prediction_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def read_kind(kind: Kind, folder: Path, client: Redis | None = None, **wanted: Any) -> pa.Table:
    """A stream's table. `wanted`: model, version, since, until; None for all."""
    pa = pyarrow()
    # The stream first: what is drained in between is in both, and left out by its position below.
    entries = list(every_entry(client, kind)) if client is not None else []
    condition = condition_of(**wanted)
    files = read_files(kind, folder / kind.name, condition)
    if client is not None and (here := position.load(folder / kind.name)) is not None:
        done = here.done if here.stream == identity(client) else position.BEGINNING
        entries = [entry for entry in entries if id_pair(entry.id) > id_pair(done)]
    undrained = kind.table(entries, kind.full_schema())
    return pa.concat_tables([files, undrained if condition is None else undrained.filter(condition)])


def read_files(kind: Kind, folder: Path, condition: Any) -> pa.Table:
    """The rows of all files for which it holds; none if there is no folder."""
    pyarrow()
    import pyarrow.dataset as ds

    if not folder.is_dir():
        return kind.full_schema().empty_table()
    # Said and not guessed: version 1 is no number.
    partitioning = ds.partitioning(kind.full_schema().empty_table().select(list(kind.partitions)).schema, flavor="hive")
    try:
        found = ds.dataset(folder, kind.full_schema(), format="parquet", partitioning=partitioning)
        return found.to_table(filter=condition)
    except (OSError, ValueError) as err:
        raise UserError(f"{folder} can't be read as a prediction log: {' '.join(str(err).split())}") from err


def condition_of(
    model: str | None = None, version: str | None = None, since: datetime | None = None, until: datetime | None = None
) -> Any:
    """What rows must fulfil, as pyarrow's expression; None for nothing. Dates let whole folders be passed over."""
    import pyarrow.compute as pc

    parts = [] if model is None else [pc.field("model") == model]
    parts += [] if version is None else [pc.field("version") == version]
    parts += [] if since is None else [pc.field("time") >= since, pc.field("date") >= date_of(since)]
    parts += [] if until is None else [pc.field("time") < until, pc.field("date") <= date_of(until)]
    return reduce(and_, parts) if parts else None


def date_of(time: datetime) -> str:
    return time.astimezone(UTC).date().isoformat()


def moment(text: str, now: datetime | None = None) -> datetime:
    """`2h`, `30m`, `7d`: so long ago; or a date or time, UTC where it names no zone. Raises ValueError."""
    if text and text[-1] in UNITS and text[:-1].replace(".", "", 1).isdigit():
        return (now or datetime.now(UTC)) - timedelta(**{UNITS[text[-1]]: float(text[:-1])})
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
