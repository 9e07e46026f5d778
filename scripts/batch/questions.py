"""Makes questions of rows: the online question type, each field read from the column that the job maps it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from scripts.batch.archive import Field
from scripts.batch.formats.block import Block
from scripts.core.errors import UserError


def columns_for(fields: Sequence[Field], mapping: Mapping[str, str], there: Mapping[str, str], where: str) -> list[str]:
    """The columns that questions are made of. Raises UserError if a required one is not there."""
    names = {field.name for field in fields}
    if unknown := sorted(mapping.keys() - names):
        raise UserError(f"--map {unknown[0]}=...: a question has no such field; it has {', '.join(sorted(names))}")
    wanted = {field.name: mapping.get(field.name, field.name) for field in fields}
    lacking = [
        field.name for field in fields if wanted[field.name] not in there and (field.required or field.name in mapping)
    ]
    if lacking:
        maps = " ".join(f"--map {name}=COLUMN" for name in lacking)
        raise UserError(
            f"{where}: no column {', '.join(repr(wanted[name]) for name in lacking)}; there are: "
            f"{', '.join(there) or 'none'}. Say which column holds it: {maps}"
        )
    return sorted({wanted[field.name] for field in fields} & there.keys())


class Questions:
    """Converts blocks of one job."""

    def __init__(self, question_type: type[Any], fields: Sequence[Field], mapping: Mapping[str, str]) -> None:
        self._type = question_type
        self._mapping = mapping
        self._columns = {field.name: mapping.get(field.name, field.name) for field in fields}
        self._nested = {field.name for field in fields if not field.scalar}

    def of(self, block: Block) -> list[Any]:
        """A question per row; a str, the reason, where there can be none."""
        rows = self._rows(block)
        try:
            whole: list[Any] = msgspec.convert(rows, list[self._type], strict=not block.textual)  # type: ignore[name-defined]
        except (msgspec.ValidationError, ValueError):
            return [self._question(row, strict=not block.textual) for row in rows]
        return whole

    def _rows(self, block: Block) -> list[dict[str, Any]]:
        names = list(self._columns)
        columns = [block.values(column) for column in self._columns.values()]
        if block.textual:
            columns = [
                [parsed(value) for value in values] if name in self._nested else values
                for name, values in zip(names, columns, strict=True)
            ]
        return [
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in zip(*columns, strict=True)
        ]

    def _question(self, row: dict[str, Any], *, strict: bool) -> Any:
        try:
            return msgspec.convert(row, self._type, strict=strict)
        except (msgspec.ValidationError, ValueError) as err:
            used = [f"{name} is column {column}" for name, column in self._mapping.items() if f"{name}" in str(err)]
            return f"{err}{f' ({chr(44).join(used)})' if used else ''}"


def parsed(value: Any) -> Any:
    """A cell of text that stands for a list or an object."""
    try:
        return None if value is None else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


def text_length(question: Any) -> int:
    """Characters of a question, about; 0 where it has no text, so that nothing is gained by ordering."""
    return sum(length(getattr(question, name)) for name in question.__struct_fields__)


def length(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return sum(map(length, value)) if isinstance(value, list | tuple) else 0
