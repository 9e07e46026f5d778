"""What an archive says of itself, read from the file without running anything in it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlers.archive import DEFAULT_TOLERANCE
from handlers.core.samples import SAMPLES_FILE, Sample
from handlers.core.task import Task
from handlers.tasks import TASKS, find_task
from scripts.core.errors import UserError

MANIFEST = "MAR-INF/MANIFEST.json"
MODEL_CONFIG = "model-config.yaml"
EXPLAIN_CONFIG = "explain-config.yaml"
"""Takes the former one's place where the archive is served to explain."""


@dataclass(frozen=True)
class Archive:
    """A `.mar` file. `samples` and `metadata` are empty for one that was not built here."""

    path: Path
    name: str
    version: str
    sha256: str
    samples: list[Sample]
    tolerance: float
    manifest: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    """Path inside the archive -> bytes."""

    @property
    def task(self) -> type[Task[Any, Any]]:
        """A task that comes with the package, or else the plain Task, whose class methods do for any other.

        Nothing in the archive is run to find it.
        """
        name = self.metadata.get("task")
        return find_task(name) if name in TASKS else Task

    @property
    def explains(self) -> bool:
        """Whether its recipe asks for explanations."""
        return EXPLAIN_CONFIG in self.files


def read_archive(path: Path) -> Archive:
    """Read one archive; raises UserError if it is not a whole `.mar`."""
    try:
        with zipfile.ZipFile(path) as file:
            manifest = json.loads(file.read(MANIFEST))
            names = set(file.namelist())
            samples = json.loads(file.read(SAMPLES_FILE)) if SAMPLES_FILE in names else []
            metadata = json.loads(file.read("metadata.json")) if "metadata.json" in names else {}
            files = {info.filename: info.file_size for info in file.infolist() if not info.is_dir()}
        with path.open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
        return Archive(
            path=path,
            name=manifest["model"]["modelName"],
            version=manifest["model"]["modelVersion"],
            sha256=digest,
            samples=[Sample(sample["request"], sample["expected"]) for sample in samples],
            tolerance=float(metadata.get("sample_tolerance", DEFAULT_TOLERANCE)),
            manifest=manifest,
            metadata=metadata,
            files=files,
        )
    except FileNotFoundError as err:
        raise UserError(f"{path}: no such file; expected a model archive (.mar)") from err
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from err
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as err:
        raise UserError(f"{path}: not a whole model archive ({err}); build it with `marctl build`") from err
