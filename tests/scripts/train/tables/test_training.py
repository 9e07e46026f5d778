"""From a recipe and a table to a version that builds, answers as it was trained, and says what it is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import brier_score_loss

from marctl.build.build import build
from marctl.build.recipe import find_versions, read_version
from marctl.build.table_training import XGBoost
from marctl.cli import main
from marctl.core.errors import UserError
from marctl.train.tables import job
from marctl.train.tables.cross_validation import Procedure, folds_of, learned
from marctl.train.tables.job import train_table
from marctl.train.tables.learners import fit
from marctl.train.tables.table import read_table
from marctl_handlers.features import Features, resolve_table
from tests.scripts.train.tables.tiny_credit import SMALL, recipe, write_table
from tests.tiny_tables import LABELS, specification


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "loans.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """A model store with a trained version of XGBoost."""
    store = tmp_path_factory.mktemp("recipes")
    train_table(recipe(store), table, quiet)
    return store


def test_the_same_rows_and_seed_give_the_same_bytes(tmp_path: Path, table: Path) -> None:
    for learner in SMALL:
        first, again = (train_table(recipe(tmp_path / name, learner), table, quiet) for name in ("first", "again"))
        assert [path.name for path in first] == [path.name for path in again]
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again], learner
        other = recipe(tmp_path / "other", learner, table_training={"seed": 2})
        cards = [
            path.parents[1] / "MODEL_CARD.md" for path in (first[0], again[0], train_table(other, table, quiet)[0])
        ]
        assert cards[0].read_text() == cards[1].read_text() != cards[2].read_text()


@pytest.mark.parametrize("learner", SMALL)
def test_a_trained_version_builds_and_answers_its_samples(tmp_path: Path, table: Path, learner: str) -> None:
    version = recipe(tmp_path, learner)
    train_table(version, table, quiet)
    version = read_version(version.folder)
    answers = [sample.expected for sample in version.recipe.samples]
    assert answers[0]["label"] in LABELS
    assert answers[1]["imputed"] == ["income", "home"]
    archive, built = build(version, tmp_path / "store")  # which asks the samples, and the model's own library
    assert built
    asked = ["eval", "loans", version.version, "--data", str(table), "--json"]
    done = CliRunner().invoke(main, [*asked, "--recipes", str(tmp_path), "--store", str(archive.parent)])
    assert done.exit_code == 0, done.output
    assert "learned from these rows" in done.stderr
    found = json.loads(done.stdout)["versions"][version.version]["loans"]
    assert found["rows"] == 300
    assert 0.8 < found["auc"] <= 1
    groups = {(group["feature"], group["group"]) for group in found["groups"]}
    assert groups == {("age", "<30"), ("age", "30-60"), ("age", ">=60")}


def test_the_card_names_figures_baselines_costs_and_groups(trained: Path) -> None:
    version = read_version(trained / "loans/1.0")
    found, card = version.metadata["cross_validation"], (version.folder / "MODEL_CARD.md").read_text()
    assert f"{found['uncalibrated']['auc']:.3f} ±" in card
    assert "| logistic regression, same folds |" in card
    assert "chosen of 2 candidates by log loss in cross-validation" in card
    assert "1 for a wrong `bad`, 5 for a wrong `good`" in card
    assert "from a probability of 0.167 on" in card
    assert "| age 30-60 |" in card
    assert found["decisions"]["threshold"] == pytest.approx(1 / 6, abs=1e-4)
    assert sum(one["rows"] for one in found["reliability"]) == 300


def test_held_out_rows_are_scored_by_trainings_without_them(table: Path) -> None:
    """Labels drawn by lot cannot be foreseen, unless the row was seen."""
    read = read_table(table, specification(), "status", LABELS)
    lots = np.random.default_rng(5).integers(0, 2, len(read))
    drawn = type(read)(read.path, read.sha256, read.features, lots)
    procedure = Procedure(specification(), [XGBoost(trees=100, depth=6, min_child_weight=0)], 5, 1)
    seen = procedure.with_candidate(0, drawn).probabilities(drawn)
    held_out, folds, _ = procedure.held_out(drawn, quiet)
    assert brier_score_loss(lots, seen) < 0.1
    assert brier_score_loss(lots, held_out) > 0.25
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(read)))


def test_folds_have_an_even_share_of_each_label() -> None:
    labels = (np.arange(100) < 20).astype(np.intp)
    assert [int(labels[fold].sum()) for fold in folds_of(labels, 5, 1)] == [4] * 5


@pytest.mark.parametrize("learner", ["xgboost", "scikit-learn"])
def test_monotone_marks_are_enforced(table: Path, learner: str, tmp_path: Path) -> None:
    """The data says that risk falls with income; trained on the contrary, the model may say nothing of income."""
    read = read_table(table, specification(), "status", LABELS)
    features = learned(specification(), read)
    against = type(read)(read.path, read.sha256, read.features, 1 - read.labels)
    candidate = recipe(tmp_path, learner).recipe.table_training
    assert candidate is not None
    rows = features.encode(resolve_table(features, against.features))
    model = fit(candidate.candidates[0], rows, against.labels, features.columns, 1)
    lower, higher = rows.copy(), rows.copy()
    lower[:, 0], higher[:, 0] = -2, 2
    assert (model.probabilities(higher) <= model.probabilities(lower) + 1e-7).all()


def test_a_model_that_is_served_differently_from_how_it_was_trained_is_not_written(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "write_features", lambda _, folder: job_write(specification(), folder))
    with pytest.raises(UserError, match="depart from the trained one's"):
        train_table(recipe(tmp_path), table, quiet)
    assert not (tmp_path / "loans/1.0/model").exists()


def job_write(specification: Any, folder: Path) -> None:
    from marctl_handlers.features import write_features

    first, *rest = specification.features
    wrong = first.__class__(**{**{f: getattr(first, f) for f in first.__struct_fields__}, "fill": 90_000.0})
    write_features(type(specification)((wrong, *rest)), folder)


def test_what_is_not_trained_by_itself_is_refused(tmp_path: Path) -> None:
    for changes, said in (
        ({"labels": ["a", "b", "c"], "costs": None}, "expected two `labels`"),
        ({"weights": {}}, "name the folder"),
        ({"table_training": {"candidates": []}}, "table_training"),
        ({"table_training": {"features": "none.yaml"}}, "no file"),
        ({"table_training": {"candidates": [*SMALL["xgboost"], *SMALL["pytorch"]]}}, "several kinds"),
        ({"table_training": {"groups": {"age": [40, 30]}}}, "each above the one before"),
        ({"task": "tabular_regression", "labels": None, "costs": None}, "is not trained so"),
    ):
        with pytest.raises(UserError, match=said):
            recipe(tmp_path, **changes)


def test_versions_without_autostart_are_built_only_when_named(tmp_path: Path) -> None:
    recipe(tmp_path, "xgboost")
    with pytest.raises(UserError, match="not-installed-here"):
        recipe(tmp_path, "pytorch", autostart=False, libraries=["not-installed-here"])
    assert [version.version for version in find_versions(tmp_path)] == ["1.0"]
    with pytest.raises(UserError, match="not-installed-here"):
        find_versions(tmp_path, "loans")


def test_features_are_learned_from_the_table(trained: Path) -> None:
    content = json.loads((trained / "loans/1.0/model/features.json").read_text())["features"]
    assert {feature["name"]: "fill" in feature for feature in content} == {
        "income": True,
        "amount": False,
        "age": False,
        "home": True,
    }
    assert Features(specification()).columns
