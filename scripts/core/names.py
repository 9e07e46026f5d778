"""What models and versions may be called: their names become file names, paths of requests and names of figures."""

from __future__ import annotations

import re

from marctl.core.explainers import SUFFIX, is_explainer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""torch-model-archiver's own rule (model_packaging_utils.py, 0.12.0)."""
LONGEST = 100
ARCHIVE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\.mar")


def name_faults(model: str, version: str) -> list[str]:
    """What is wrong with the two names, if anything."""
    faults = [
        f"{kind} name {name!r}: use letters, digits, '.', '_' and '-', at most {LONGEST} of them, "
        "and begin with a letter or digit"
        for kind, name in (("model", model), ("version", version))
        if not NAME.fullmatch(name) or len(name) > LONGEST
    ]
    if is_explainer(model):
        faults.append(f"model name {model!r}: the ending {SUFFIX!r} is kept for workers that explain")
    return faults
