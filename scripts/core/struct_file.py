"""A YAML file of settings as a struct, with every fault of it told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from marctl.core.errors import UserError
from marctl.core.faults import listed, schema_faults
from marctl.core.yaml_text import YamlInvalid, read_yaml

T = TypeVar("T", bound=msgspec.Struct)


def read_struct(
    path: Path, kind: type[T], meaning_faults: Callable[[T], Sequence[str]], prepare: Callable[[Any], Any]
) -> T:
    """`prepare` gets what YAML reads, before the schema; `meaning_faults` tells what the schema can't see.

    Raises UserError that lists every fault.
    """
    try:
        content = prepare(read_yaml(path.read_bytes()))
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from err
    except YamlInvalid as err:
        raise UserError(f"{path}: {err}") from err
    if found := schema_faults(msgspec.json.schema(kind), content):
        raise UserError(listed(path, found))
    made = msgspec.convert(content, kind)
    if found := list(meaning_faults(made)):
        raise UserError(listed(path, found))
    return made
