"""The rows that an explanation compares with: a sample of training rows in the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from marctl_handlers.core.errors import LoadError
from marctl_handlers.features import Features
from marctl_handlers.features.encode import Encoded
from marctl_handlers.features.tables import BACKGROUND_FILE
from marctl_handlers.tasks.tabular.sample_rows import sample_rows

MOST_ROWS = 1_000


def read_background(folder: Path, features: Features) -> tuple[str, Encoded]:
    """What it is called in answers, and its rows, encoded. Raises LoadError.

    Without the file, one row of the values that stand in for missing ones, or else are typical.
    """
    path = folder / BACKGROUND_FILE
    if not path.exists():
        rows = [dict(sample_rows(features.specification)[0]["features"])]
        return "typical row", features.encode(features.resolve(rows))
    try:
        rows = msgspec.json.decode(
            b"[" + b",".join(path.read_bytes().split(b"\n")[:-1]) + b"]", type=list[dict[str, Any]]
        )
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise LoadError(f"{BACKGROUND_FILE} is damaged ({err}); rebuild the archive") from err
    resolved = features.resolve(rows)
    if not rows or len(rows) > MOST_ROWS or resolved.faults:
        first = next(iter(resolved.faults.values()), "")
        raise LoadError(
            f"{BACKGROUND_FILE}: expected 1 to {MOST_ROWS} rows of the specification, got {len(rows)} {first}"
        )
    return f"{len(rows)} training rows", features.encode(resolved)
