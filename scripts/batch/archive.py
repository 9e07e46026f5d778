"""A version's archive, extracted: asked what its task takes and gives, and loaded for predicting.

Nothing here imports the handlers by name: in an actor they are the archive's own copy, as in a worker of TorchServe.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from marctl.core.archive_code import code_package
from marctl.core.errors import UserError

DESCRIBE_TIMEOUT_S = 120


class Field(Struct, frozen=True):
    """A field of a question, or a feature. `scalar`: text or a number, not a list or an object."""

    name: str
    required: bool
    scalar: bool
    feature: str | None = None
    """A feature's type: number, integer, boolean or category."""
    entity: str | None = None
    """Whose feature it is, if it may stand in a store."""
    freshness_s: float | None = None


class Column(Struct, frozen=True):
    """A column of the output, by its Arrow type; `json` is text that holds JSON."""

    name: str
    type: str


class Description(Struct, frozen=True):
    """What an archive's task asks and answers."""

    fields: tuple[Field, ...]
    columns: tuple[Column, ...]
    threads: int = 1
    explains: bool = False

    @property
    def has_features(self) -> bool:
        """Questions are rows of features, which stand in their field `features`."""
        return any(field.feature for field in self.fields)

    def stored(self, entity: str) -> dict[str, float | None]:
        """An entity's features, and how old each may be. Raises UserError."""
        found = {field.name: field.freshness_s for field in self.fields if field.entity == entity}
        if not found:
            known = sorted({field.entity for field in self.fields if field.entity})
            raise UserError(f"--features {entity}=...: no such entity; there is {', '.join(known) or 'none'}")
        return found


def extract(archive: Path, root: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(root)


def describe(root: Path, title: str) -> Description:
    """Raises UserError."""
    script = Path(__file__).with_name("describe.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), code_package(root)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=DESCRIBE_TIMEOUT_S,
    )
    try:
        found: dict[str, Any] = msgspec.json.decode(done.stdout)
    except msgspec.DecodeError as err:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{title}: the archive could not be read: {last}; build it again with `marctl build`") from err
    if "error" in found:
        raise UserError(f"{title}: {found['error']}")
    return msgspec.convert(found, Description)


def load(root: Path, model: str, version: str, device: str, *, explains: bool) -> Any:
    """The archive's Pipeline, in this process, which must not have imported its handlers before. Raises UserError."""
    import yaml

    # As TorchServe's workers have it: there is a process per core already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.path.insert(0, str(root))
    package = code_package(root)
    archive = import_module(f"{package}.archive")
    errors, messages = import_module(f"{package}.core.errors"), import_module(f"{package}.core.messages")
    if Path(archive.__file__ or "").parent.parent != root:
        raise RuntimeError(f"{package} was imported from {archive.__file__} before the archive was loaded")
    config = yaml.safe_load((root / ("explain-config.yaml" if explains else "model-config.yaml")).read_text())
    try:
        return archive.load(root, messages.Model(model, version), config.get("handler"), device)
    except errors.LoadError as err:
        raise UserError(f"{model} {version} does not load: {err}") from err
