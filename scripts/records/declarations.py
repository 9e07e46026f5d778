"""What models' tasks say of their outcomes: from the workers, by way of Redis or their spill files, into the folder."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.records import legacy
from marctl_handlers.core.columns import LogColumn, LogType
from marctl_handlers.redis.log import DECLARATIONS, Declaration, PredictionRecord, declaration_id

if TYPE_CHECKING:
    import redis

FILE = "_declarations.json"
TYPES: dict[LogType, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "floats": list[float],
    "strs": list[str],
}
RECORD_COLUMNS = {*PredictionRecord.__struct_fields__, "stream_id", "time", "date", "true_label", "latency_ms"}
PREFIX = "outcome_"
"""Before a declared column whose name every record has for something else."""


class Declarations:
    """By key, with the columns named as in the files. The later ones of a model are further down."""

    def __init__(self, folder: Path) -> None:
        """Those that the folder's records have. Raises UserError for a damaged file."""
        self._path = folder / FILE
        self._known: dict[str, Declaration] = {}
        self._saved = True
        try:
            self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Declaration])
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as err:
            raise UserError(
                f"{self._path} is damaged ({err}); remove it if the workers that wrote are running"
            ) from err

    def get(self, key: str, model: str) -> Declaration | None:
        return legacy.declaration_of(model) if key == legacy.DECLARATION else self._known.get(key)

    def learn(self, client: redis.Redis) -> None:
        """Those that stand in Redis. Raises redis.RedisError."""
        found: Any = client.hgetall(DECLARATIONS)
        for encoded in found.values():
            self.add(encoded)

    def add(self, encoded: bytes) -> None:
        """What cannot be read is left out: its records will go to quarantine."""
        key = declaration_id(encoded)
        if key not in self._known:
            try:
                declared = msgspec.json.decode(encoded, type=Declaration)
                self._known[key] = replace(declared, columns=tuple(map(file_column, declared.columns)))
                self._saved = False
            except msgspec.DecodeError:
                return

    def save(self) -> None:
        """Before the files whose records need them. Raises WriteFailed."""
        if not self._saved:
            write_atomically(self._path, msgspec.json.encode(self._known))
            self._saved = True

    def of_model(self, model: str) -> Declaration:
        """The latest one."""
        found = [each for each in self._known.values() if each.model == model]
        return found[-1] if found else legacy.declaration_of(model)

    def column_names(self, model: str | None = None) -> list[str]:
        """Of a model, or of all."""
        declared = [each for each in self._known.values() if model in (None, each.model)]
        columns = [*legacy.COLUMNS, *(column for each in declared for column in each.columns)]
        return list(dict.fromkeys(column.name for column in columns))

    @property
    def models(self) -> list[str]:
        return sorted({each.model for each in self._known.values()})


def file_column(column: LogColumn) -> LogColumn:
    """The column as files have it."""
    scores_of = None if column.scores_of is None else file_name(column.scores_of)
    return dataclasses.replace(column, name=file_name(column.name), scores_of=scores_of)


def file_name(name: str) -> str:
    return PREFIX + name if name in RECORD_COLUMNS else name


def record_name(name: str) -> str:
    """The declared name of a file's column."""
    return name.removeprefix(PREFIX) if name.removeprefix(PREFIX) in RECORD_COLUMNS else name


@cache
def outcome_type(columns: tuple[LogColumn, ...]) -> type[msgspec.Struct]:
    """Checks a record's outcome against its declaration; a column may be missing."""
    fields = [(column.name, TYPES[column.type] | None, None) for column in columns]
    renamed = {column.name: record_name(column.name) for column in columns}
    return msgspec.defstruct("Outcome", fields, rename=renamed, forbid_unknown_fields=True)
