"""Ensembles of tiny models, laid out as their archive is, without a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from marctl_handlers.archive import load
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.protocols.open_inference import forms

MEMBER = {"task": "multiple_choice", "precision": "float32", "max_tokens": 64, "max_request_tokens": 4096}


def lay_out(root: Path, members: Mapping[str, Path], **settings: Any) -> Path:
    """`members`: by MODEL/VERSION, a folder that `save_pretrained` wrote; `settings` are those of every member."""
    for version, model in members.items():
        folder = root / "members" / version
        folder.mkdir(parents=True)
        (folder / "model").symlink_to(model)
        (folder / "model-config.yaml").write_text(yaml.safe_dump({"handler": MEMBER | settings}))
    return root


def open_ensemble(root: Path, *weights: float, **settings: Any) -> Pipeline:
    """Loaded as a worker does; the members are those that lie in the folder, in order of name."""
    versions = sorted(str(path.relative_to(root / "members")) for path in root.glob("members/*/*"))
    members: list[dict[str, Any]] = [{"version": version} for version in versions]
    for member, weight in zip(members, weights, strict=False):
        member["weight"] = weight
    pipeline = load(root, Model("quiz", "3.0"), {"task": "ensemble", "members": members, **settings})
    pipeline.forms.update(forms(pipeline))
    return pipeline


def members_of(pipeline: Pipeline) -> Any:
    """The loaded members themselves."""
    return pipeline.task.members  # type: ignore[attr-defined]
