from __future__ import annotations

from pathlib import Path

import pytest

from marctl.capacity.settings import read_settings
from marctl.core.errors import UserError


def written(folder: Path, text: str) -> Path:
    path = folder / "autoscale.yaml"
    path.write_text(text)
    return path


def test_a_versions_own_lines_go_before_those_of_all(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, "max: 4\nqueue_ms: 50\nversions:\n  mcqa/2.0: {max: 2}\n"))
    own = settings.objective("mcqa", "2.0")
    assert own is not None
    assert (own.target(8).most, own.target(8).queue_s) == (2, 0.05)
    assert settings.objective("mcqa", "1.0") is None


@pytest.mark.parametrize("text", [None, ""])
def test_without_settings_every_version_has_as_many_as_cores(tmp_path: Path, text: str | None) -> None:
    objective = read_settings(None if text is None else written(tmp_path, text)).objective("any", "1")
    assert objective is not None
    assert (objective.target(2.0).least, objective.target(2.0).most, objective.target(0.5).most) == (1, 2, 1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("max: 0", "max: 0 is not valid|max: 0 is less than the minimum"),
        ("min: 3\nmax: 2", "max is 2 and min is 3"),
        ("min: 3\nversions: {a/1: {max: 2}}", r"versions\.a/1: max is 2 and min is 3"),
        ("most: 3", "'most' was unexpected"),
        ("versions: {a/1: {most: 3}}", r"versions\.a/1: .*most"),
        ("versions: {a: {}}", "'a' does not match"),
        ("versions: {a/1: 3}", r"versions.*3 is not of type 'object'"),
        ("statistic: p42", "'p42' is not one of"),
        ("queue_ms: .nan", "queue_ms: nan is no number"),
        ("- 1", "not of type 'object'"),
        ("{", "not YAML"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        read_settings(written(tmp_path, text))
