"""Archives of a few hundred bytes whose handler answers a constant: for tests of what surrounds a model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

ANSWER = {"prediction": 1, "probabilities": [0.25, 0.75]}
REQUEST = {"question": "What is it?", "choices": ["a", "b"]}
CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 2\nresponseTimeout: 20\nstartupTimeout: 60\n"

CONSTANT = f"""
import json
ANSWER = json.dumps({ANSWER!r}).encode()

def handle(data, context):
    if data is None:
        return None
    for i in range(len(data)):
        context.set_response_content_type(i, "application/json")
    return [ANSWER] * len(data)
"""
FAILS_TO_LOAD = """
class LoadError(Exception):
    pass

def handle(data, context):
    raise LoadError("labels.json has 2 labels, the model has 3; rebuild the archive")
"""
LACKS_A_LIBRARY = "import no_such_library\n\ndef handle(data, context):\n    return data\n"
BUSY = CONSTANT.replace(
    "    for i in",
    "    import time\n    end = time.monotonic() + 1\n    while time.monotonic() < end:\n        pass\n    for i in",
)
"""Computes for a second per batch."""


def tiny_archive(
    folder: Path,
    model: str = "mcqa",
    version: str = "1.0",
    handler: str = CONSTANT,
    answer: dict[str, object] | None = None,
    samples: bool = True,
) -> Path:
    """Write `<model>-<version>.mar` into the folder; `answer` is what its sample expects, by its task."""
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": model,
            "modelVersion": version,
            "handler": "entry.py",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    path = folder / f"{model}-{version}.mar"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("entry.py", handler)
        archive.writestr("model-config.yaml", CONFIG)
        if samples:
            archive.writestr("samples.json", json.dumps([{"request": REQUEST, "expected": answer or ANSWER}]))
        if answer:
            archive.writestr("metadata.json", json.dumps({"task": "multiple_choice"}))
    return path
