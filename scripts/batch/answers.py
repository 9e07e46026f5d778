"""The output's table: keys, what was predicted, and who predicted it when. Its schema depends on the job alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from marctl.batch.archive import Column
from marctl.batch.formats.block import Block
from marctl.batch.job import Job
from marctl.core.errors import UserError

TEXT = pa.dictionary(pa.int32(), pa.string())
"""For values that are the same in many rows."""
ORIGIN = (pa.field("file", TEXT), pa.field("row", pa.int64()))
"""Where a row stands in the input; rows are counted from 0, without a header."""
STAMP = (
    pa.field("model", TEXT),
    pa.field("version", TEXT),
    pa.field("digest", TEXT),
    pa.field("predicted_at", pa.timestamp("us", tz="UTC")),
)
EXPLANATIONS = Column("explanations", "json")
PREDICTION_ID = Column("prediction_id", "string")
"""Of a job that records: what the log knows the row as, and true labels may name."""


def schema_of(job: Job, columns: Sequence[Column], keys: Sequence[pa.Field]) -> pa.Schema:
    """Raises UserError if a key's name is taken."""
    predicted = [pa.field(column.name, arrow_type(column.type)) for column in (*columns, *further_columns(job))]
    taken = {field.name for field in (*ORIGIN, *predicted, *STAMP)}
    for key in keys:
        if key.name in taken:
            raise UserError(
                f"--key {key.name}: the output has a column of this name; give the key another one: "
                f"--key my_{key.name}={job.keys[key.name]}"
            )
    return pa.schema([*ORIGIN, *keys, *predicted, *STAMP])


def further_columns(job: Job) -> list[Column]:
    """That only some jobs have."""
    return [EXPLANATIONS] * (job.explain is not None) + [PREDICTION_ID] * job.log


def arrow_type(name: str) -> pa.DataType:
    if name.startswith("list<"):
        return pa.list_(pa.type_for_alias(name[5:-1]))
    return pa.string() if name == "json" else pa.type_for_alias(name)


def key_fields(
    keys: Mapping[str, str], types: Sequence[dict[str, str]], schemas: Sequence[pa.Schema | None]
) -> list[pa.Field]:
    """The key columns' types. `types`: by source; `schemas`: of Parquet sources. Raises UserError if files differ."""
    fields = []
    for name, column in keys.items():
        found = {str(kind): kind for kind in (key_type(column, *pair) for pair in zip(types, schemas, strict=True))}
        if len(found) > 1:
            raise UserError(f"--key {name}: the input files hold it as {' and '.join(sorted(found))}; make it one type")
        fields += [pa.field(name, kind) for kind in found.values()]
    return fields


def key_type(column: str, types: dict[str, str], schema: pa.Schema | None) -> pa.DataType:
    if schema is None:
        return pa.type_for_alias(types[column])
    kind = schema.field(column).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class Table:
    """Collects a unit's answers."""

    def __init__(self, schema: pa.Schema, job: Job, columns: Sequence[Column]) -> None:
        self._schema, self._job, self._columns = schema, job, columns

    def of(
        self, name: str, block: Block, places: Sequence[int], answers: Sequence[Any], ids: Sequence[str], times_us: Any
    ) -> pa.Table:
        """`places`: of the answered rows in the block, in order; `ids` and `times_us`: of these."""
        count = len(places)
        at = pa.array(np.asarray(places, np.int64))
        plain = [getattr(answer, "answer", answer) for answer in answers] if self._job.explain is not None else answers
        known = {
            "file": repeated(name, count),
            "row": pa.array(block.rows).take(at),
            **{key: block.key(column).take(at) for key, column in self._job.keys.items()},
            EXPLANATIONS.name: column_of(EXPLANATIONS, answers),
            PREDICTION_ID.name: pa.array(ids, pa.string()),
            **{column.name: column_of(column, plain) for column in self._columns},
            "model": repeated(self._job.model, count),
            "version": repeated(self._job.version, count),
            "digest": repeated(self._job.digest, count),
            "predicted_at": pa.array(times_us, pa.timestamp("us", tz="UTC")),
        }
        return pa.table([known[field.name].cast(field.type) for field in self._schema], schema=self._schema)


def repeated(value: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value], pa.string()))


def column_of(column: Column, answers: Sequence[Any]) -> pa.Array:
    values = [getattr(answer, column.name, None) for answer in answers]
    if column.type == "json":
        values = [None if value is None else msgspec.json.encode(value).decode() for value in values]
    return pa.array(values, arrow_type(column.type))
