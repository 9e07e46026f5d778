"""All faults of a document at once: each with its path, under one heading."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def schema_faults(schema: dict[str, Any], content: Any) -> list[str]:
    """Everything in which the content's shape differs from a JSON Schema, by path."""
    from jsonschema import Draft202012Validator

    errors = sorted(Draft202012Validator(schema).iter_errors(content), key=lambda e: list(map(str, e.absolute_path)))
    return [f"{pointer(error.absolute_path)}: {error.message}" for error in errors] or number_faults(content)


def number_faults(content: Any, path: tuple[str | int, ...] = ()) -> list[str]:
    """NaN and infinities, which YAML counts as numbers; NaN passes every comparison of a schema."""
    if isinstance(content, float) and not math.isfinite(content):
        return [f"{pointer(path)}: {content} is no number"]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [fault for key, value in items for fault in number_faults(value, (*path, key))]


def pointer(path: Iterable[str | int]) -> str:
    """`samples[0].request.choices` from the parts of a path."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the document"


def listed(origin: object, faults: Sequence[str]) -> str:
    """The message that tells them."""
    return "\n  ".join([f"{origin}: {len(faults)} fault{'s' * (len(faults) > 1)}", *faults])
