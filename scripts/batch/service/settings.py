"""What the batch service may do. One YAML file, `marctl up --batch-config FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from marctl.batch.roots import checked_roots
from marctl.core.errors import UserError
from marctl.core.yaml_text import YamlInvalid, read_yaml

Count = Annotated[int, Meta(ge=1)]


class ServiceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Clients name paths and URIs; only those below these folders are opened."""

    read: Annotated[list[str], Meta(min_length=1)]
    write: Annotated[list[str], Meta(min_length=1)]
    jobs_at_once: Count = 1
    most_waiting: Count = 100
    """More are refused with 429."""
    actors: Count | None = None
    """Of each job; as many as cores if left out."""
    address: str | None = None
    """Of a Ray cluster."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    """Added to a job's niceness, so that predictions of clients who wait come first."""


def read_settings(path: Path) -> ServiceSettings:
    """Raises UserError."""
    try:
        found = msgspec.convert(read_yaml(path.read_bytes()), ServiceSettings)
        read, write = checked_roots(found.read), checked_roots(found.write)
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from err
    except (YamlInvalid, msgspec.ValidationError, UserError) as err:
        raise UserError(f"{path}: {err}; expected `read: [FOLDER, ...]` and `write: [FOLDER, ...]`") from err
    return msgspec.structs.replace(found, read=read, write=write)
