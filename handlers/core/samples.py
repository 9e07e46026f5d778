"""The sample requests that an archive carries; a version answers them before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from marctl_handlers.core.errors import LoadError

SAMPLES_FILE = "samples.json"


@dataclass(frozen=True)
class Sample:
    """A request and what must come back: fields of the answer, as the task compares them."""

    request: dict[str, Any]
    expected: dict[str, Any]


def read_samples(root: Path) -> list[Sample]:
    """The samples of an archive extracted to `root`; none if torch-model-archiver alone laid it out."""
    samples: list[Sample] = read_json(root / SAMPLES_FILE, list[Sample], [])
    return samples


def read_json(path: Path, kind: Any, missing: Any) -> Any:
    """A file of an archive; `missing` where there is none. Raises LoadError for one that is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return missing
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise LoadError(f"{path.name} is damaged ({err}); rebuild the archive with `marctl build`") from err
