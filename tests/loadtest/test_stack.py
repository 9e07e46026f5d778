from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import yaml

from loadtest.serving import VARIANTS
from loadtest.stack import CommandFailed, change_recipe, running_stack
from marctl.build.recipe import read_version
from marctl.gateway.settings import GatewaySettings

MODEL = Path(__file__).parents[2] / "model_store" / "mcqa" / "1.0"


def test_a_section_of_a_recipe_keeps_what_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("workers: 1\nbatching: {batch_size: 32, max_delay_ms: 2}\n")
    change_recipe(path, {"workers": 2, "batching": {"max_delay_ms": 5}, "cache": "off"})
    expected = {"workers": 2, "batching": {"batch_size": 32, "max_delay_ms": 5}, "cache": "off"}
    assert yaml.safe_load(path.read_text()) == expected


def test_every_variant_of_serving_is_a_valid_recipe_and_a_valid_gateway(tmp_path: Path) -> None:
    for name, variant in VARIANTS.items():
        folder = tmp_path / "mcqa" / name
        shutil.copytree(MODEL, folder)
        change_recipe(folder / "model.yaml", variant.recipe)
        assert read_version(folder).settings.threads >= 1
        msgspec.convert(variant.gateway, GatewaySettings)


def test_a_version_that_is_not_there_is_told_with_those_that_are() -> None:
    with (
        pytest.raises(CommandFailed, match=r"no version mcqa/9\.9; expected one of .*mcqa/1\.0, mcqa/2\.0"),
        running_stack(["mcqa/9.9"]),
    ):
        pass
