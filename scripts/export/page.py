"""What stands beside an exported model: model.json for programs, README.md for people."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marctl.build.reader import Archive
from marctl.export.agreement import Agreement
from marctl.export.onnx_file import OPSET
from marctl.export.source import LIBRARIES
from marctl_handlers.core.portable import Portable

RUN = """\
import json

import numpy as np
import {library}
from tokenizers import Tokenizer

about = json.load(open("model.json"))
tokenizer = Tokenizer.from_file("tokenizer.json")
{model}


def run(texts):
    rows = tokenizer.encode_batch(texts)
    values = {{"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}}
    values["token_type_ids"] = [row.type_ids for row in rows]
    feeds = {{one["name"]: np.array(values[one["name"]]) for one in about["inputs"]}}
    return {call}


{snippet}"""
OPENED = {
    "onnx": ("onnxruntime", 'model = onnxruntime.InferenceSession("model.onnx")', "model.run(None, feeds)[0]"),
    "openvino": (
        "openvino",
        'model = openvino.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        "model(feeds)[0]",
    ),
}
"""By format: the library, how it opens the model, how it computes."""


REMARKS = {
    "openvino": "Importing openvino reports that to Google Analytics; `pip uninstall openvino-telemetry` ends it.\n\n"
}


def description(
    archive: Archive, portable: Portable, kind: str, precision: str, folder: Path, agreements: Sequence[Agreement]
) -> dict[str, Any]:
    """The content of model.json; `folder` has the model's files already."""
    metadata = archive.metadata
    return {
        "model": archive.name,
        "version": archive.version,
        "description": metadata.get("description", ""),
        "licence": metadata.get("licence", ""),
        "source": {"archive": archive.path.name, "sha256": archive.sha256},
        "format": kind,
        **({"opset": OPSET} if kind == "onnx" else {}),
        "precision": precision,
        "files": {path.name: digest(path) for path in sorted(folder.iterdir())},
        "inputs": [{"name": name, "type": "int64", "shape": ["rows", "tokens"]} for name in portable.inputs],
        "output": {"name": portable.output, "type": "float32"},
        **portable.description,
        "made_with": {name: importlib.metadata.version(name) for name in ("torch", "transformers", *LIBRARIES[kind])},
        "compared_with_float32": {one.name: one.record() for one in agreements},
    }


def readme(archive: Archive, portable: Portable, kind: str, precision: str) -> str:
    """What the folder is, and code that runs in it."""
    library, model, call = OPENED[kind]
    code = RUN.format(library=library, model=model, call=call, snippet=portable.snippet)
    limit = portable.description["max_tokens"]
    return (
        f"# {archive.name} {archive.version}, {kind}, {precision}\n\n{archive.metadata.get('description', '')}\n\n"
        f"`model.json` tells inputs, output and how a row is built; `tokenizer.json` cuts rows to {limit} tokens and\n"
        f"pads them; `samples.json` has requests and the answers to expect. `pip install {library} tokenizers numpy`,\n"
        f"then, in this folder:\n\n{REMARKS.get(kind, '')}```python\n{code}```\n"
    )


def digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
