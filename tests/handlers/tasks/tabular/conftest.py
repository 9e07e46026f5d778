from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marctl_handlers.core.pipeline import Pipeline
from tests.handlers.tasks.tabular.loading import load_tabular
from tests.tiny_tables import model_folder


@pytest.fixture(scope="session")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pipeline]:
    """A loaded version of a kind of tests/tiny_tables.py, made once."""
    made: dict[str, Pipeline] = {}

    def make(kind: str) -> Pipeline:
        if kind not in made:
            folder: Path = tmp_path_factory.mktemp(kind) / "model"
            made[kind] = load_tabular(folder, **model_folder(kind, folder))
        return made[kind]

    return make
