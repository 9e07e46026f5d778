"""Tells what an extracted archive's task asks and answers, from a process that sees the archive's own handlers.

    cd extracted-archive && PYTHONPATH=. python -P .../scripts/batch/describe.py marctl_handlers

Prints one JSON line (`Description`), or `{"error": ...}` with exit code 1. No model is loaded.
"""

from __future__ import annotations

import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

STAMP = ("prediction_id", "model", "model_version", "latency_ms")
"""Fields of an answer that say who gave it and when: the output has columns of its own for that."""
ARROW = {int: "int64", float: "double", str: "string", bool: "bool"}


def described(root: Path, package: str) -> dict[str, Any]:
    """Raises LoadError."""
    import yaml

    task_of = import_module(f"{package}.archive").task_of
    plain_type = import_module(f"{package}.core.columns").plain_type
    config = yaml.safe_load((root / "model-config.yaml").read_text())
    task = task_of(root, config.get("handler"))
    questions, answers = typing.get_type_hints(task.question_type), typing.get_type_hints(task.answer_type)
    return {
        "fields": [
            {
                "name": field.encode_name,
                "required": field.required,
                "scalar": plain_type(questions[field.name]) in ARROW,
            }
            for field in msgspec.structs.fields(task.question_type)
        ]
        + features_of(root / "model", package),
        "columns": [
            {"name": field.name, "type": arrow_type(plain_type(answers[field.name]))}
            for field in msgspec.structs.fields(task.answer_type)
            if field.name not in STAMP
        ],
        "threads": task.settings_type.load(config["handler"]).threads,
        "explains": (root / "explain-config.yaml").is_file(),
    }


def features_of(folder: Path, package: str) -> list[dict[str, Any]]:
    """The features that a request may bring; none for a task without a specification."""
    if not (folder / "features.json").is_file():
        return []
    read_features = import_module(f"{package}.features").read_features

    return [
        {
            "name": feature.name,
            "required": False,
            "scalar": True,
            "feature": feature.type,
            "entity": feature.entity.name if feature.entity else None,
            "freshness_s": feature.freshness_s,
        }
        for feature in read_features(folder).sent
    ]


def arrow_type(kind: Any) -> str:
    """The column's Arrow type; what has none is kept as JSON."""
    if kind in ARROW:
        return ARROW[kind]
    if typing.get_origin(kind) in (list, tuple):
        item = ARROW.get(typing.get_args(kind)[0])
        return "json" if item is None else f"list<{item}>"
    return "json"


if __name__ == "__main__":
    try:
        result = described(Path.cwd(), sys.argv[1])
    except Exception as err:
        result = {"error": f"{type(err).__name__}: {err}" if type(err).__name__ != "LoadError" else str(err)}
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    raise SystemExit("error" in result)
