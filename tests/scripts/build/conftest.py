from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marctl.build.adopt import adopt
from marctl.build.recipe import Version


@pytest.fixture
def version(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Version:
    """A recipe for a tiny BERT."""
    return adopt(tiny_model("bert"), "quiz", "1.0", tmp_path / "recipes", precision="float32")
