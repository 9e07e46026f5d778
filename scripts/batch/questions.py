"""Makes questions of rows: the online question type, each field read from the column that the job maps it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from marctl.batch.archive import Field
from marctl.batch.formats.block import Block
from marctl.batch.offline import Histories
from marctl.core.errors import UserError

FEATURES = "features"
"""The field of a question that holds a row's features."""
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def columns_for(fields: Sequence[Field], mapping: Mapping[str, str], there: Mapping[str, str], where: str) -> list[str]:
    """The columns that questions are made of. Raises UserError if a required one is not there."""
    names = {field.name for field in fields}
    if unknown := sorted(mapping.keys() - names):
        raise UserError(f"--map {unknown[0]}=...: a question has no such field; it has {', '.join(sorted(names))}")
    wanted = {field.name: mapping.get(field.name, field.name) for field in fields}
    lacking = [
        field.name for field in fields if wanted[field.name] not in there and (field.required or field.name in mapping)
    ]
    found = sorted(set(wanted.values()) & there.keys())
    if not lacking and not found:
        lacking = sorted(names)[:1]
    if lacking:
        maps = " ".join(f"--map {name}=COLUMN" for name in lacking)
        raise UserError(
            f"{where}: no column {', '.join(repr(wanted[name]) for name in lacking)}; there are: "
            f"{', '.join(there) or 'none'}. Say which column holds it: {maps}"
        )
    return found


class Questions:
    """Converts blocks of one job."""

    def __init__(
        self,
        question_type: type[Any],
        fields: Sequence[Field],
        mapping: Mapping[str, str],
        histories: Histories | None = None,
    ) -> None:
        """`histories`: of the features that rows may leave out."""
        self._type = question_type
        self._mapping = mapping
        self._fields = [field for field in fields if field.feature is None]
        self._features = [field for field in fields if field.feature is not None]
        self._histories = histories

    def of(self, block: Block) -> list[Any]:
        """A question per row; a str, the reason, where there can be none."""
        rows = self._rows(block)
        strict = not block.textual
        try:
            whole: list[Any] = msgspec.convert(rows, list[self._type], strict=strict)  # type: ignore[name-defined]
        except (msgspec.ValidationError, ValueError):
            return [row if isinstance(row, str) else self._question(row, strict=strict) for row in rows]
        return whole

    def _rows(self, block: Block) -> list[dict[str, Any] | str]:
        rows: list[Any] = self._named(block, self._fields)
        if not self._features:
            return rows
        own = self._named(block, self._features)
        stored: Sequence[dict[str, Any] | str] = self._histories.of(block) if self._histories else [{}] * len(rows)
        return [
            kept if isinstance(kept, str) else {**row, FEATURES: {**kept, **(row.get(FEATURES) or {}), **mine}}
            for row, kept, mine in zip(rows, stored, own, strict=True)
        ]

    def _named(self, block: Block, fields: Sequence[Field]) -> list[dict[str, Any]]:
        """What each row holds of these fields, by their names; what is missing is left out."""
        columns = [self._values(block, field) for field in fields]
        names = [field.name for field in fields]
        return [
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in (zip(*columns, strict=True) if columns else [()] * len(block.rows))
        ]

    def _values(self, block: Block, field: Field) -> list[Any]:
        values = block.values(self._mapping.get(field.name, field.name))
        if block.textual and field.feature:
            return [typed(value, field.feature) for value in values]
        return [parsed(value) for value in values] if block.textual and not field.scalar else values

    def _question(self, row: dict[str, Any], *, strict: bool) -> Any:
        try:
            return msgspec.convert(row, self._type, strict=strict)
        except (msgspec.ValidationError, ValueError) as err:
            used = [f"{name} is column {column}" for name, column in self._mapping.items() if f"$.{name}" in str(err)]
            return f"{err} ({', '.join(used)})" if used else str(err)


def typed(cell: str | None, feature: str) -> Any:
    """A cell of text as a feature's value; as it is where it is none, so that the specification says what is wrong."""
    if cell is None or feature == "category":
        return cell
    if feature == "boolean":
        return BOOLEANS.get(cell.lower(), cell)
    try:
        number = float(cell)
    except ValueError:
        return cell
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else number


def parsed(value: Any) -> Any:
    """A cell of text that stands for a list or an object."""
    try:
        return None if value is None else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


def text_length(question: Any) -> int:
    """Bytes of a question as JSON, which grow with its text; a look at each field costs three times as much."""
    return len(msgspec.json.encode(question))
