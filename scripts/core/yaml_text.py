"""Reads YAML that somebody else wrote, within bounds: a few hundred bytes of nested aliases can stand for gigabytes."""

from __future__ import annotations

from typing import Any

import yaml

MOST_BYTES = 4 << 20
MOST_ALIASES = 50
MOST_DEPTH = 40


class YamlInvalid(ValueError):
    """The text is no YAML, or more than a document of ours ever is; the text says what."""


def read_yaml(text: str | bytes) -> Any:
    """The content; raises YamlInvalid."""
    if len(text) > MOST_BYTES:
        raise YamlInvalid(f"{len(text)} bytes; at most {MOST_BYTES} are read")
    try:
        check_bounds(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as err:
        raise YamlInvalid(f"not YAML: {' '.join(str(err).split())}") from err


def check_bounds(text: str | bytes) -> None:
    """Raise YamlInvalid for what would grow when it is read."""
    aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > MOST_ALIASES:
            raise YamlInvalid(f"more than {MOST_ALIASES} aliases (*name); write the values out")
        if depth > MOST_DEPTH:
            raise YamlInvalid(f"nested more than {MOST_DEPTH} deep")
