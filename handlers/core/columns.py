"""How a task's fields look to those who don't know the task: tensors of a protocol, columns of a log."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal

import msgspec

LogType = Literal["int", "float", "str", "bool", "floats", "strs"]
LOG_TYPES: dict[Any, LogType] = {int: "int", float: "float", str: "str", bool: "bool", list[float]: "floats"}


@dataclass(frozen=True, slots=True)
class Column:
    """One input or output of a task as the Open Inference Protocol has it: a value per row, or a list if it is `wide`.

    Rows of a wide column may differ in length: short ones end with empty texts, or with zeros. `width` says that all
    have this one. An input that is `optional` may be absent, or empty in a row.
    """

    name: str
    datatype: str
    wide: bool = False
    optional: bool = False
    width: int | None = None

    @property
    def shape(self) -> list[int]:
        """Rows, then values; -1 for any number."""
        return [-1, self.width or -1] if self.wide else [-1]


@dataclass(frozen=True, slots=True)
class LogColumn:
    """One value that the prediction log keeps of an answer; `floats` and `strs` are lists.

    `tolerance`: two versions' numbers that differ by no more count as equal. `scores_of`: the int column whose values
    are places in this list of scores.
    """

    name: str
    type: LogType
    tolerance: float = 0.0
    scores_of: str | None = None


def log_columns_of(outcome: type[msgspec.Struct]) -> tuple[LogColumn, ...]:
    """A column for each field of an outcome that a log can hold, in order."""
    hints = typing.get_type_hints(outcome)
    kinds = ((field.name, LOG_TYPES.get(plain_type(hints[field.name]))) for field in msgspec.structs.fields(outcome))
    return tuple(LogColumn(name, kind) for name, kind in kinds if kind is not None)


def plain_type(hint: Any) -> Any:
    """`int` from `int | None` and from `Annotated[int, ...]`; other hints as they are."""
    if typing.get_origin(hint) is Annotated:
        return plain_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, UnionType):
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        return plain_type(some[0]) if len(some) == 1 else hint
    return hint
