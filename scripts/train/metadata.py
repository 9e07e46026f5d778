"""What training and evaluation record beside a recipe: metadata.yaml, and the model card made from it."""

from __future__ import annotations

from typing import Any

import yaml

from marctl.build.recipe import METADATA_FILE, Version, read_version
from marctl.core.files import write_atomically
from marctl.train.model_card import write_model_card


def write_metadata(version: Version, changes: dict[str, Any]) -> None:
    """Merge `changes` into metadata.yaml and write the model card anew."""
    path = version.folder / METADATA_FILE
    known = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    write_atomically(path, yaml.safe_dump(known | changes, sort_keys=False, allow_unicode=True))
    write_model_card(read_version(version.folder))
