"""The archive that is exported, and whether it can be; told before anything slow is imported."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from marctl.build.extract import extract
from marctl.build.reader import Archive
from marctl.core.errors import UserError
from marctl.core.extras import install
from marctl_handlers.core.errors import LoadError
from marctl_handlers.tasks import TASKS, find_task

if TYPE_CHECKING:
    from marctl_handlers.core.portable import Portable

LIBRARIES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""By format; OpenVINO's files are made of ONNX ones."""


def refuse(archive: Archive, kind: str) -> None:
    """Raise UserError for an archive whose task has no model for other runtimes, and for libraries that are missing."""
    title = f"{archive.name} {archive.version}"
    if archive.task.hub_class is None:
        able = [name for name in TASKS if find_task(name).hub_class is not None]
        named = archive.metadata.get("task")
        raise UserError(
            f"{title} cannot be exported: its task is {named}; tasks that can be are {', '.join(sorted(able))}"
            if named
            else f"{title} cannot be exported: it was not built by `marctl build`, so nothing says what its model is"
        )
    if missing := [name for name in LIBRARIES[kind] if find_spec(name) is None]:
        raise UserError(f"exporting to {kind} needs {', '.join(missing)}: {install('export')}")


@contextmanager
def portable_of(archive: Archive) -> Iterator[Portable]:
    """The archive's model. None of its own code runs. Raises UserError."""
    title = f"{archive.name} {archive.version}"
    with tempfile.TemporaryDirectory(prefix="marctl-export-") as work:
        root = Path(work, "archive")
        try:
            extract(archive, root)
            config = yaml.safe_load((root / archive.manifest["model"]["configFile"]).read_bytes())
            found = archive.task.portable(root / "model", archive.task.settings_type.load(config.get("handler")))
        except (LoadError, KeyError, OSError, yaml.YAMLError) as err:
            raise UserError(f"{title} cannot be exported: {err}") from err
        if found is None:
            raise UserError(f"{title} cannot be exported: its task, {archive.metadata['task']}, has no form for it")
        yield found
