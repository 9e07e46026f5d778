"""What an archive says of itself, read from the file without running anything in it.

Whatever comes in as a `.mar` is checked here, before TorchServe hears of it: TorchServe takes any name, also one that
is a path or that it cannot unregister again, and unpacks whatever it is given.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.core.names import name_faults
from marctl.core.yaml_text import YamlInvalid, read_yaml
from marctl.signing.statement import Statement
from marctl_handlers.archive import DEFAULT_TOLERANCE
from marctl_handlers.core.composite import Composite
from marctl_handlers.core.samples import SAMPLES_FILE, Sample
from marctl_handlers.core.task import Task
from marctl_handlers.tasks import TASKS, find_task

MANIFEST = "MAR-INF/MANIFEST.json"
METADATA = "metadata.json"
MODEL_CONFIG = "model-config.yaml"
EXPLAIN_CONFIG = "explain-config.yaml"
"""Takes the former one's place where the archive is served to explain."""
MOST_TEXT_BYTES = 32 << 20
"""Of a file that is read whole: manifest, samples, configuration."""
LONGEST_EXAMPLE = 4096
"""Characters of a sample request that stands in the API's description."""
MOST_FILES = 20_000
MOST_BYTES = 64 << 30
SMALL_BYTES = 256 << 20
MOST_EXPANSION = 100
"""Unpacked to packed, of an archive that is not small. Weights shrink to a third at best, zeros to a thousandth."""

NOT_AN_ARCHIVE = (zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What zipfile raises for bytes that are no zip, or one of a kind that it does not read."""


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
    workers: int = 1
    """As many as its own configuration asks for."""
    explainers: int | None = None
    """The same for workers that explain; None where its recipe asks for no explanations."""
    shared: bool = False
    """Whether it asks for a place in a worker that holds many versions."""

    @property
    def task(self) -> type[Task[Any, Any]]:
        """A task that comes with the package, or else the plain Task, whose class methods do for any other.

        Nothing in the archive is run to find it.
        """
        return known_task(self.metadata)

    @property
    def statement(self) -> Statement:
        """What a signature says of it."""
        return Statement(self.name, self.version, self.sha256)

    @property
    def explains(self) -> bool:
        """Whether its recipe asks for explanations."""
        return self.explainers is not None


def known_task(metadata: Mapping[str, Any]) -> type[Task[Any, Any]]:
    """As `Archive.task`; one that is made of members is known if they all are."""
    name = metadata.get("task")
    if name not in TASKS:
        return Task
    task = find_task(name)
    if not issubclass(task, Composite):
        return task
    members = [known_task(member) for member in metadata.get("members", ())]
    return Task if not members or Task in members else task.of(members)


@lru_cache(maxsize=1024)
def described(path: Path, digest: str) -> dict[str, Any]:
    """An archive's metadata.json and, as `example`, its first sample request if that is short.

    Read once for each content, which `digest` names. Raises UserError.
    """
    archive = read_archive(path)
    short = [sample.request for sample in archive.samples[:1] if len(json.dumps(sample.request)) <= LONGEST_EXAMPLE]
    return {**archive.metadata, **({"example": short[0]} if short else {})}


def read_archive(path: Path) -> Archive:
    """Read one archive; raises UserError if it is not a whole `.mar`, or one that must not be served."""
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as file:
            files = {info.filename: info.file_size for info in file.infolist() if not info.is_dir()}
            refuse_bomb(path, files, file)
            manifest = json.loads(read_text(file, MANIFEST))
            samples = json.loads(read_text(file, SAMPLES_FILE)) if SAMPLES_FILE in files else []
            metadata = json.loads(read_text(file, METADATA)) if METADATA in files else {}
            config = read_config(file, config_file(manifest, files))
            workers, shared = worker_count(config), config.get("shared") is True
            explainers = worker_count(read_config(file, EXPLAIN_CONFIG)) if EXPLAIN_CONFIG in files else None
            raw.seek(0)
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
        name, version = manifest["model"]["modelName"], manifest["model"]["modelVersion"]
        if not isinstance(name, str) or not isinstance(version, str):
            raise TypeError(f"modelName and modelVersion must be text, got {name!r} and {version!r}")
        archive = Archive(
            path=path,
            name=name,
            version=version,
            sha256=digest,
            samples=[Sample(sample["request"], sample["expected"]) for sample in samples],
            tolerance=float(metadata.get("sample_tolerance", DEFAULT_TOLERANCE)),
            manifest=manifest,
            metadata=metadata,
            files=files,
            workers=workers,
            explainers=explainers,
            shared=shared,
        )
    except FileNotFoundError as err:
        raise UserError(f"{path}: no such file; expected a model archive (.mar)") from err
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from err
    except (*NOT_AN_ARCHIVE, KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        raise UserError(f"{path}: not a whole model archive ({err}); build it with `marctl build`") from err
    if faults := name_faults(archive.name, archive.version):
        raise UserError(listed(path, faults))
    return archive


def refuse_bomb(path: Path, files: Mapping[str, int], file: zipfile.ZipFile) -> None:
    """Raise UserError for an archive that would fill a disk. A file's size cannot be more than what is told here."""
    total, packed = sum(files.values()), max(1, sum(info.compress_size for info in file.infolist()))
    if len(files) > MOST_FILES:
        raise UserError(f"{path}: {len(files)} files in it; at most {MOST_FILES} are taken")
    if total > MOST_BYTES or (total > SMALL_BYTES and total > MOST_EXPANSION * packed):
        raise UserError(
            f"{path}: {packed >> 20} MiB that unpack to {total >> 20} MiB; at most {MOST_EXPANSION} times as much "
            f"and {MOST_BYTES >> 30} GiB are taken"
        )


def read_text(file: zipfile.ZipFile, name: str) -> bytes:
    """One small file. Raises KeyError or ValueError."""
    size = file.getinfo(name).file_size
    if size > MOST_TEXT_BYTES:
        raise ValueError(f"{name} has {size} bytes; at most {MOST_TEXT_BYTES} are read")
    return file.read(name)


def config_file(manifest: dict[str, Any], files: Mapping[str, int]) -> str | None:
    """The configuration that TorchServe will read, if there is one."""
    name = manifest["model"].get("configFile")
    return name if name in files else None


def read_config(file: zipfile.ZipFile, name: str | None) -> dict[str, Any]:
    """A configuration; empty where there is none. Raises ValueError, also for YAML that grows when it is read."""
    if name is None:
        return {}
    try:
        content = read_yaml(read_text(file, name))
    except YamlInvalid as err:
        raise ValueError(f"{name}: {err}") from err
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected a mapping, got {type(content).__name__}")
    worker_count(content, name)
    return content


def worker_count(config: Mapping[str, Any], name: str = "") -> int:
    """As TorchServe would start: `minWorkers`, or 1. Raises ValueError; `name`: of the configuration's file."""
    asked = config.get("minWorkers", 1)
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        raise ValueError(f"{name}: minWorkers must be a whole number, got {asked!r}")
    return asked
