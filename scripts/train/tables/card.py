"""What a model card says of a version that was trained on a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marctl.build.recipe import Version

Figures = Mapping[str, Any]


def learner_told(version: Version) -> str:
    """Which learner, by which settings, and how they came about."""
    made = version.metadata["trained_with"]
    settings = dict(made["learner"])
    kind = str(settings.pop("kind")).replace("_", " ")
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    how = "settings fixed beforehand"
    if made["candidates"] > 1:
        how = f"chosen of {made['candidates']} candidates by log loss in cross-validation"
    return f"{kind}: {told}; {how}; seed {made['seed']}"


def table_lines(version: Version) -> list[str]:
    found = version.metadata["cross_validation"]
    return [
        *result_lines(version, found),
        *calibration_lines(found),
        *decision_lines(version, found),
        *group_lines(version, found),
    ]


def result_lines(version: Version, found: Figures) -> list[str]:
    """Beside the baselines."""
    plain, training = found["uncalibrated"], version.recipe.table_training
    nested = training is not None and len(training.candidates) > 1
    rows = [
        [f"**{version}**", plus_minus(plain, "auc"), "", f"{plain['brier']:.3f}"],
        [f"**{version}**, calibrated", "", "", plus_minus(found["calibrated"], "brier")],
    ]
    for name, other in found["baselines"].items():
        gain = f"{other['auc_gain']:+.3f} ± {other['auc_gain_interval_95']:.3f}"
        rows.append([f"{name}, same folds", f"{other['auc']:.3f}", gain, f"{other['brier']:.3f}"])
    rows += [
        [f"{name}, as reported with the data", f"{auc:.3f}", "", ""] for name, auc in found["quoted_baselines"].items()
    ]
    return [
        "",
        "## Cross-validation",
        "",
        f"{plain['rows']:,} rows, each scored by a training without its fold of {found['folds']}: specification, "
        f"{'choice of the candidate (by folds within), ' if nested else ''}model and calibration. Area under the ROC "
        "curve (AUC): mean of the folds; Brier score: 0 to 1; half the 95 % interval by bootstrap. The baselines have "
        "scikit-learn's own settings and the same features.",
        "",
        *table(["", "AUC", "AUC gained over it", "Brier score"], rows),
    ]


def calibration_lines(found: Figures) -> list[str]:
    chosen = found["calibration"]
    tried = ", ".join(f"{name} {loss:.4f}" for name, loss in chosen["log_loss_by_form"].items())
    before, after = found["uncalibrated"], found["calibrated"]
    rows = [
        [f"{one['rows']:,}", f"{one['probability']:.3f}", f"{one['share']:.3f}", f"± {one['chance']:.3f}"]
        for one in found["reliability"]
    ]
    return [
        "",
        "## Calibration",
        "",
        f"Form: {chosen['form']}, by log loss on rows held out in turn ({tried}; the simplest within a standard error "
        f"of the best). Expected calibration error (15 bins): {plus_minus(before, 'ece')} before, "
        f"{plus_minus(after, 'ece')} after; exact probabilities would show {after['ece_of_exact']:.3f}.",
        "",
        *table(["rows", "mean probability", "share that came", "by chance"], rows),
    ]


def decision_lines(version: Version, found: Figures) -> list[str]:
    made, settings = found["decisions"], version.settings
    first, second = settings.labels
    lines = [
        "",
        "## Decisions",
        "",
        f"`{second}` from a probability of {made['threshold']:.3f} on: {percent(made['predicted_share'])} of the rows, "
        f"{percent(made['false_positive_rate'])} of those that are {first} and "
        f"{percent(1 - made['false_negative_rate'])} of those that are {second}.",
    ]
    if settings.costs is not None:
        lines[-1] += (
            f" Stated costs: {settings.costs.false_positive:g} for a wrong `{second}`, "
            f"{settings.costs.false_negative:g} for a wrong `{first}`. Mean cost of a row: {made['cost_per_row']:.3f}; "
            f"with a threshold of 0.5 {made['cost_per_row_at_half']:.3f}, always {first} "
            f"{made['cost_per_row_of_never']:.3f}, always {second} {made['cost_per_row_of_always']:.3f}."
        )
    return lines


def group_lines(version: Version, found: Figures) -> list[str]:
    if not found["groups"]:
        return []
    first, second = version.settings.labels
    names = ("share", "mean_probability", "auc", "brier", "ece", "predicted_share")
    errors = ("false_positive_rate", "false_negative_rate")
    rows = [
        [f"{one['feature']} {one['group']}", f"{one['rows']:,}", *(number(one[name]) for name in (*names, *errors))]
        for one in found["groups"]
    ]
    titles = ["group", "rows", f"{second}", "mean probability", "AUC", "Brier", "ECE", f"predicted {second}"]
    return [
        "",
        "## By group",
        "",
        "On the same held-out rows, calibrated; groups of fewer than 30 rows are left out. Small groups' figures are "
        "rough: of 100 rows, a share of 0.3 has an interval of ± 0.09.",
        "",
        *table([*titles, f"{first}, predicted {second}", f"{second}, predicted {first}"], rows),
    ]


def plus_minus(figures: Figures, name: str) -> str:
    return f"{figures[name]:.3f} ± {figures[f'{name}_interval_95']:.3f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]
