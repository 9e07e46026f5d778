"""What a stack learns from its members' answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from marctl.build import build as build_module
from marctl.build.build import build
from marctl.build.recipe import read_version
from marctl.core.errors import UserError
from marctl.train.members import learn_from_members
from tests.tiny_ensembles import REQUEST, write_ensemble, write_recipes


def nothing(_: str) -> None: ...


def test_a_stack_s_weights_are_written_beside_its_recipe_and_recorded(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "verify", lambda *_: None)
    members = [{"version": "quiz/1.0"}, {"version": "quiz/2.0"}]
    folder = write_recipes(tmp_path / "recipes", tiny_model, members=members, combine="stack")
    version, store, data = read_version(folder), tmp_path / "store", tmp_path / "data"
    (data / "bread").mkdir(parents=True)
    rows = [{**REQUEST, "label": i % 3} for i in range(60)]
    (data / "bread" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"quiz-1.0.mar: not built; run: marctl build quiz 1.0"):
        learn_from_members(version, data, "dev", store, nothing)
    for member in version.members:
        build(member, store)
    assert learn_from_members(version, data, "dev", store, nothing) == [folder / "stack.json"]
    weights = json.loads((folder / "stack.json").read_text())
    assert sorted(weights) == ["quiz/1.0", "quiz/2.0"]
    assert all(0 <= weight < 1e-2 for weight in weights.values()), "labels by chance: no member knows anything"
    recorded = yaml.safe_load((folder / "metadata.yaml").read_text())
    assert recorded["training_files"]["bread"]["split"] == "dev"
    assert "- Members: quiz 1.0, quiz 2.0" in (folder / "MODEL_CARD.md").read_text()
    average = read_version(write_ensemble(folder, members=members))
    with pytest.raises(UserError, match="`combine: average` leaves nothing to learn"):
        learn_from_members(average, data, "dev", store, nothing)
    (data / "bread" / "dev.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="1 labelled rows; at least 50 are needed"):
        learn_from_members(version, data, "dev", store, nothing)
