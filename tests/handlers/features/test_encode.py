"""The encoded matrix is what scikit-learn's transformers make of the same table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)

from marctl_handlers.features import Features, FeaturesInvalid, fit, resolve_table, specification_of
from marctl_handlers.features.tables import rows_of

ROWS = 400


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, ROWS).astype(float),
            "income": np.where(rng.random(ROWS) < 0.1, np.nan, rng.lognormal(7, 1, ROWS)),
            "home": rng.choice(["rent", "own", "family"], ROWS),
            "job": rng.choice(["fixed", "free", "none"], ROWS),
            "target": rng.integers(0, 2, ROWS),
        }
    )


SPECIFICATION = specification_of(
    [
        {"name": "age", "type": "integer", "transform": [{"kind": "bucket", "count": 4}, "one_hot"]},
        {
            "name": "income",
            "type": "number",
            "range": [0, None],
            "missing": "median",
            "transform": [{"kind": "log", "shift": 1}, "standardise"],
        },
        {"name": "home", "type": "category", "transform": "one_hot"},
        {"name": "job", "type": "category", "transform": "ordinal"},
    ]
)


def test_a_fitted_specification_equals_scikit_learn(table: pd.DataFrame) -> None:
    features = Features(fit(SPECIFICATION, table))
    log = make_pipeline(FunctionTransformer(np.log1p), StandardScaler())
    present = table[["income"]].dropna()
    log.fit(present)
    fill = SimpleImputer(strategy="median").fit(table[["income"]])
    bins = KBinsDiscretizer(4, encode="onehot-dense", strategy="quantile", quantile_method="linear")
    others = ColumnTransformer(
        [("home", OneHotEncoder(sparse_output=False), ["home"]), ("job", OrdinalEncoder(), ["job"])]
    )
    income = log.transform(pd.DataFrame(fill.transform(table[["income"]]), columns=["income"]))
    wanted = np.hstack([bins.fit_transform(table[["age"]]), income, others.fit_transform(table)])
    np.testing.assert_allclose(features.encode(resolve_table(features, table)), wanted, atol=1e-5)
    assert [column.feature for column in features.columns] == ["age"] * 4 + ["income"] + ["home"] * 3 + ["job"]
    assert features.columns[5].name == "home=family"


def test_rows_and_tables_give_the_same_bits(table: pd.DataFrame) -> None:
    features = Features(fit(SPECIFICATION, table))
    rows = rows_of(table, SPECIFICATION)
    one, other = features.resolve(rows), resolve_table(features, table)
    assert features.encode(one).tobytes() == features.encode(other).tobytes()
    np.testing.assert_array_equal(one.imputed, other.imputed)


def test_one_hot_columns_are_summed_back_to_their_feature(table: pd.DataFrame) -> None:
    features = Features(fit(SPECIFICATION, table))
    found = features.sum_by_feature(np.arange(9.0)[None])
    np.testing.assert_array_equal(found, [[0 + 1 + 2 + 3, 4, 5 + 6 + 7, 8]])


def test_given_parameters_stay(table: pd.DataFrame) -> None:
    given = specification_of([{"name": "age", "type": "number", "transform": {"kind": "standardise", "mean": 5}}])
    step = fit(given, table)["age"].transform[0]
    assert step.mean == 5  # type: ignore[union-attr]
    assert step.scale == pytest.approx(table["age"].std(ddof=0))  # type: ignore[union-attr]


def test_an_unfitted_specification_does_not_serve() -> None:
    with pytest.raises(FeaturesInvalid, match=r"income\.fill: not given.*standardise has no mean.*fit the spec"):
        Features(SPECIFICATION)


def test_a_gap_that_is_kept_is_nan_or_all_zeros() -> None:
    features = Features(
        specification_of(
            [
                {"name": "a", "type": "number", "missing": "keep", "transform": {"kind": "bucket", "edges": [1]}},
                {"name": "b", "type": "category", "categories": ["x"], "missing": "keep", "transform": "one_hot"},
            ]
        )
    )
    found = features.encode(features.resolve([{}, {"a": 1, "b": "x"}, {"a": 0.9}]))
    np.testing.assert_array_equal(found, [[np.nan, 0], [1, 1], [0, 0]])


def test_a_table_that_breaks_the_specification_is_refused_with_rows_and_columns(table: pd.DataFrame) -> None:
    bounded = specification_of([{"name": "age", "type": "number", "range": [18, 80]}])
    with pytest.raises(FeaturesInvalid, match=r"row \d+, age: expected 18 to 80, got 8\d"):
        fit(bounded, table)
    with pytest.raises(FeaturesInvalid, match="the table has no column city"):
        fit(specification_of([{"name": "city", "type": "number"}]), table)
    with pytest.raises(FeaturesInvalid, match=r"column home: expected numbers, got (large_)?string, such as"):
        fit(specification_of([{"name": "home", "type": "number"}]), table)
    with pytest.raises(FeaturesInvalid, match="expected text"):
        fit(specification_of([{"name": "age", "type": "category", "transform": "one_hot"}]), table)
    with pytest.raises(FeaturesInvalid, match="no rows"):
        fit(bounded, table.iloc[:0])
    empty, mean = (
        pa.table({"age": pa.array([None], pa.float64())}),
        {"name": "age", "type": "number", "missing": "mean"},
    )
    with pytest.raises(FeaturesInvalid, match="no row has a value"):
        fit(specification_of([mean]), empty)


def test_a_derived_feature_is_made_of_filled_parts() -> None:
    specification = specification_of(
        [
            {"name": "debt", "type": "number", "missing": "mean"},
            {"name": "income", "type": "number"},
            {"name": "burden", "type": "number", "derived": {"operation": "ratio", "of": ["debt", "income"]}},
        ]
    )
    features = Features(fit(specification, pa.table({"debt": [1.0, None, 3.0], "income": [2.0, 2.0, 2.0]})))
    found = features.encode(features.resolve([{"income": 4}, {"income": 0}]))
    np.testing.assert_array_equal(found[0], [2, 4, 0.5])
    refused = features.resolve([{"income": 4}, {"income": 0}]).faults
    assert refused == {1: [("burden", "cannot be computed: a value of debt, income is missing, or 0 where it divides")]}


def test_large_numbers_stay_finite_in_float32() -> None:
    features = Features(
        specification_of(
            [{"name": "a", "type": "number", "transform": {"kind": "standardise", "mean": 0, "scale": 1e-9}}]
        )
    )
    assert np.isfinite(features.encode(features.resolve([{"a": 3e38}, {"a": -3e38}]))).all()
