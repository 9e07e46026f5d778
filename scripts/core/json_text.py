"""JSON in one line, spaced as the workers' answers are, so that all that a client or a script reads looks alike."""

from __future__ import annotations

import json
from typing import Any


def compact(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
