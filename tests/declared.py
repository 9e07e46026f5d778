"""What archives say of their tasks, for tests of what is made from it."""

from __future__ import annotations

from typing import Any

from marctl.build.build import declared
from marctl_handlers.tasks import find_task


def declared_of(**tasks: str) -> dict[str, dict[str, Any]]:
    """By model, as the archive of a version of this task says it."""
    return {model: declared(find_task(task)) for model, task in tasks.items()}
