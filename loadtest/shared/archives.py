"""Archives in any number, each a version of its own: one that `marctl build` made, with other names and weights."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST, METADATA = "MAR-INF/MANIFEST.json", "metadata.json"
EPOCH = (1980, 1, 1, 0, 0, 0)
Files = dict[str, bytes]
Change = Callable[[Files], Mapping[str, bytes]]


def read_files(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as file:
        return {info.filename: file.read(info) for info in file.infolist() if not info.is_dir()}


def write_version(files: Files, store: Path, model: str, version: str, change: Change = lambda _: {}) -> Path:
    """Another version of an archive with these files; `change` gives files that differ."""
    changed = dict(change(files))
    manifest = json.loads(files[MANIFEST])
    manifest["model"] |= {"modelName": model, "modelVersion": version}
    metadata: dict[str, Any] = json.loads(files[METADATA]) | {"model": model, "version": version}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in changed.items()}
    metadata["files"] |= digests
    content = {**files, **changed, MANIFEST: json.dumps(manifest).encode(), METADATA: json.dumps(metadata).encode()}
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{model}-{version}.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(content):
            file.writestr(zipfile.ZipInfo(name, EPOCH), content[name])
    return path
