"""Tables as training, batch jobs and drift reports have them: pyarrow's, or pandas'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from marctl_handlers.features.specification import (
    LONGEST_CATEGORY,
    MOST_CATEGORIES,
    Feature,
    FeaturesInvalid,
    Specification,
    told,
)
from marctl_handlers.features.values import NAN, UNKNOWN, Matrix, Resolved, Values, coding_of

if TYPE_CHECKING:
    import pyarrow as pa

ARROW_TYPES = {"number": "float64", "integer": "float64", "boolean": "bool_", "category": "string"}
"""Integers are read as float64, which holds those up to 2^53, so that 3.0 of another writer is one, too."""
MOST_FAULTS = 20
BACKGROUND_FILE = "background.jsonl"
"""Of an archive: rows as requests bring them, a sample of what the model was trained on."""


def arrow_schema(specification: Specification) -> pa.Schema:
    """Column types to read a file with: `pyarrow.csv.ConvertOptions(column_types=dict(zip(s.names, s.types)))`."""
    import pyarrow as pa

    return pa.schema([(f.name, getattr(pa, ARROW_TYPES[f.type])()) for f in specification.sent])


def as_arrow(table: Any) -> pa.Table:
    """From pandas, whose NaN becomes null, or as it is."""
    import pyarrow as pa

    return table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)


def resolve_table(values: Values, table: Any) -> Resolved:
    """As `Values.resolve` for rows; columns that are no features are passed over, an absent one is missing throughout.

    A value that the specification refuses is a fault of its row. Raises FeaturesInvalid for a column of a wrong type.
    """
    cells = cells_of(values, as_arrow(table))
    faults = {row: faults_in(values, cells, row) for row in values.suspects(cells)}
    return values.settle(cells, {row: found for row, found in faults.items() if found})


def faults_in(values: Values, cells: Matrix, row: int) -> list[tuple[str, str]]:
    """Of one row; it has been seen that it has some."""
    found = {f.name: cell_of(f, float(cells[i, row])) for i, f in enumerate(values.features) if f.derived is None}
    return values.faults_of(found)


def cell_of(feature: Feature, value: float) -> Any:
    """What a request would have brought."""
    if np.isnan(value):
        return None
    if feature.is_category:
        return "(unknown)" if value == UNKNOWN else feature.categories[int(value)] if feature.categories else "(any)"
    return bool(value) if feature.type == "boolean" else value


def cells_of(values: Values, table: pa.Table) -> Matrix:
    """The matrix of a table's values before gaps are filled. Raises FeaturesInvalid."""
    cells, faults = np.full((len(values.features), table.num_rows), NAN), []
    for i, feature in enumerate(values.features):
        if feature.derived is None and feature.name in table.column_names:
            try:
                cells[i] = cells_of_column(feature, table.column(feature.name))
            except (TypeError, ValueError) as err:
                faults.append(f"column {feature.name}: {err}")
    if faults:
        raise FeaturesInvalid(faults)
    return cells


def cells_of_column(feature: Feature, column: Any) -> Any:
    """One number a row. Raises TypeError saying what was expected."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return NAN
    if feature.is_category:
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise TypeError(f"expected text, got {kind}; read the file with the types of arrow_schema")
        return codes_of_column(feature, column)
    wanted = pa.types.is_boolean if feature.type == "boolean" else is_number
    if not wanted(kind):
        raise TypeError(f"expected {feature.type}s, got {kind}, such as {first_of(column)}")
    return compute.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def first_of(column: Any) -> str:
    return told(next((value for value in column.to_pylist() if value is not None), None))


def codes_of_column(feature: Feature, column: Any) -> Any:
    """Each distinct text is looked up once."""
    coded = column.combine_chunks().dictionary_encode() if column.num_chunks != 1 else column.chunk(0)
    coded = coded if hasattr(coded, "dictionary") else coded.dictionary_encode()
    texts = coded.dictionary.to_pylist()
    if any(text is not None and len(text) > LONGEST_CATEGORY for text in texts):
        raise ValueError(f"a text of more than {LONGEST_CATEGORY:,} characters")
    codes = np.array([*coding_of(feature)(texts), NAN])
    places = coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return codes[places]


def categories_of(feature: Feature, table: pa.Table) -> tuple[str, ...]:
    """The distinct texts of a column in alphabetical order. Raises ValueError for none, or for too many."""
    if feature.name not in table.column_names:
        raise ValueError("the table has no such column")
    found = sorted({text for text in table.column(feature.name).unique().to_pylist() if text is not None})
    if not found or len(found) > MOST_CATEGORIES:
        raise ValueError(f"{len(found):,} categories; expected 1 to {MOST_CATEGORIES:,}; more need the transform hash")
    if not all(isinstance(text, str) for text in found):
        raise TypeError(f"expected text, got {told(found[0])}; read the file with the types of arrow_schema")
    return tuple(found)


def refuse_faulty(resolved: Resolved) -> None:
    """Raise FeaturesInvalid naming the rows, counted from 0, that break the specification."""
    found = [f"row {row}, {name}: {text}" for row, faults in sorted(resolved.faults.items()) for name, text in faults]
    if found:
        more = [f"and {len(found) - MOST_FAULTS:,} more"] if len(found) > MOST_FAULTS else []
        raise FeaturesInvalid([*found[:MOST_FAULTS], *more])


def rows_of(table: Any, specification: Specification) -> Sequence[dict[str, Any]]:
    """The features of each row as a request would bring them; missing ones are left out."""
    arrow = as_arrow(table)
    features = {f.name: f for f in specification.sent if f.name in arrow.column_names}
    rows = arrow.select(list(features)).to_pylist()
    return [{name: as_sent(features[name], cell) for name, cell in row.items() if cell is not None} for row in rows]


def as_sent(feature: Feature, cell: Any) -> Any:
    """Integers are often read as floating-point numbers, because of the gaps beside them."""
    return int(cell) if feature.type == "integer" and cell == int(cell) else cell
