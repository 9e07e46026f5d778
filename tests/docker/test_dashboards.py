"""The dashboards are what their program writes, and Grafana's own types read them back unchanged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.prometheus_server import DOCKER

FOLDER = DOCKER / "grafana"
PATHS = sorted(FOLDER.glob("*.json"))


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", FOLDER / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_program_writes() -> None:
    assert program().files() == {path.name: path.read_text() for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_grafanas_types_read_a_dashboard_back_unchanged(path: Path) -> None:
    content = json.loads(path.read_text())
    assert json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(content))) == content


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_panels_have_places_and_numbers_of_their_own_and_every_variable_is_declared(path: Path) -> None:
    content = json.loads(path.read_text())
    panels: list[dict[str, Any]] = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    declared = {variable["name"] for variable in content["templating"]["list"]}
    used = {name for name in ("model", "version", "core_hour_price", "datasource") if f"${name}" in path.read_text()}
    assert used <= declared


def test_uids_and_titles_are_unique() -> None:
    contents = [json.loads(path.read_text()) for path in PATHS]
    for key in ("uid", "title"):
        assert len({content[key] for content in contents}) == len(contents)
