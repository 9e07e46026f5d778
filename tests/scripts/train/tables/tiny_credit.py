"""A made-up table of loans, and recipes of versions that learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import yaml

from marctl.build.recipe import Version, read_version
from tests.tiny_tables import FEATURES, LABELS, loans

SMALL: dict[str, list[dict[str, Any]]] = {
    "xgboost": [{"kind": "xgboost", "trees": 20, "depth": 2}, {"kind": "xgboost", "trees": 10, "depth": 3}],
    "pytorch": [{"kind": "pytorch", "networks": 2, "width": 8, "epochs": 30, "batch": 64, "learning_rate": 0.02}],
    "scikit-learn": [{"kind": "histogram_boosting", "trees": 20}, {"kind": "logistic_regression"}],
}
SAMPLES = [
    {"features": {"income": 1500, "amount": 9000, "age": 30, "home": "rent"}},
    {"features": {"amount": 60000, "age": 40}},
]


def write_table(path: Path) -> Path:
    """With gaps in two columns, and a column that is no feature."""
    table, bad = loans()
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    columns["income"][::17] = [None] * len(columns["income"][::17])
    columns["home"][::23] = [None] * len(columns["home"][::23])
    status = [LABELS[one] for one in bad]
    pyarrow.csv.write_csv(pa.table({"status": status, **columns, "remark": ["x, y"] * len(status)}), path)
    return path


def recipe(folder: Path, learner: str = "xgboost", **changes: Any) -> Version:
    """`<folder>/loans/<learner>`, not trained yet."""
    place = folder / "loans" / {"xgboost": "1.0", "pytorch": "1.1", "scikit-learn": "1.2"}[learner]
    place.mkdir(parents=True, exist_ok=True)
    (place / "features.yaml").write_bytes(msgspec.yaml.encode(FEATURES))
    training = {"target": "status", "candidates": SMALL[learner], "folds": 3, "groups": {"age": [30, 60]}}
    content = {
        "task": "tabular",
        "description": "Made-up loans",
        "weights": {"directory": "model"},
        "labels": list(LABELS),
        "costs": {"false_positive": 1, "false_negative": 5},
        "table_training": {**training, **changes.pop("table_training", {})},
        "samples": [{"request": request, "expected": {}} for request in SAMPLES],
        **changes,
    }
    content = {name: value for name, value in content.items() if value is not None}
    (place / "model.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_version(place)
