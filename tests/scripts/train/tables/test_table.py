"""What is wrong with a table is told before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from marctl.core.errors import UserError
from marctl.train.tables.groups import band_names, groups_of
from marctl.train.tables.table import read_table, refuse_rare
from marctl_handlers.features import specification_of
from tests.tiny_tables import FEATURES, LABELS

HEADER = "status,income,amount,age,home\n"
GOOD = HEADER + "good,1500,9000,30,rent\nbad,,12000,40,\n"


def read(path: Path, content: str | bytes) -> object:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, specification_of(FEATURES), "status", LABELS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        (HEADER, "no rows"),
        (GOOD.replace("status", "state"), "no column status; there are: state"),
        (GOOD.replace("income", "wage"), "no column income"),
        (GOOD.replace("age,home", "income,home"), "income stands more than once"),
        (GOOD.replace("amount", "status"), "status stands more than once"),
        (GOOD.replace("\ngood", "\nGood"), "one of good, bad in every row; row 1: 'Good'"),
        (GOOD.replace("\nbad", "\n"), "row 2: nothing"),
        (GOOD.replace("\nbad", "\nNaN"), "row 2: 'NaN'"),
        (GOOD.replace("1500", "much"), "income.*much|much"),
        (GOOD.replace(",rent", ""), "columns"),
        (GOOD.encode("utf-16"), "utf-8|UTF8|UTF-8"),
        (b"PK\x03\x04 no table", "."),
    ],
)
def test_bad_tables_are_refused_in_words(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path / "loans.csv", content)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loans.csv").write_text(GOOD)
    for path in (tmp_path, tmp_path / "none.csv", tmp_path / "loans.xlsx"):
        with pytest.raises(UserError, match=str(path)):
            read_table(path, specification_of(FEATURES), "status", LABELS)
    with pytest.raises(UserError, match=r"such as .*loans\.csv"):
        read_table(tmp_path, specification_of(FEATURES), "status", LABELS)


def test_the_target_is_no_feature(tmp_path: Path) -> None:
    (tmp_path / "loans.csv").write_text(GOOD)
    with pytest.raises(UserError, match="is a feature, too"):
        read_table(tmp_path / "loans.csv", specification_of(FEATURES), "home", LABELS)


def test_one_label_alone_is_refused(tmp_path: Path) -> None:
    table = read(tmp_path / "loans.csv", GOOD.replace("\nbad", "\ngood"))
    with pytest.raises(UserError, match="0 of 2 rows have the status bad; training needs at least 2"):
        refuse_rare(table, "status", LABELS, 2)  # type: ignore[arg-type]


def test_csv_and_parquet_are_the_same_table(tmp_path: Path) -> None:
    first = read(tmp_path / "loans.csv", "\ufeff" + GOOD)
    table = pa.table(
        {
            "status": pa.array(["good", "bad"]).dictionary_encode(),
            "income": [1500, None],
            "amount": pa.array([9000, 12000], pa.int32()),
            "age": [30, 40],
            "home": ["rent", None],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "loans.parquet")
    second = read_table(tmp_path / "loans.parquet", specification_of(FEATURES), "status", LABELS)
    assert first.features.equals(second.features)  # type: ignore[attr-defined]
    assert first.labels.tolist() == second.labels.tolist() == [0, 1]  # type: ignore[attr-defined]
    pyarrow.parquet.write_table(table.set_column(1, "income", [["much", "more"]]), tmp_path / "loans.parquet")
    with pytest.raises(UserError, match="column income"):
        read_table(tmp_path / "loans.parquet", specification_of(FEATURES), "status", LABELS)


def test_bands_begin_where_they_say() -> None:
    assert band_names([29, 30, 59.5, 60, None], [30, 60]) == ["<30", "30-60", "30-60", ">=60", "not given"]


def test_groups_of_few_people_are_left_out(tmp_path: Path) -> None:
    rows = "".join(f"good,1500,9000,{20 if i else 70},rent\n" for i in range(40))
    table = read(tmp_path / "loans.csv", HEADER + rows)
    found = groups_of(table, specification_of(FEATURES), {"age": [30, 60]})  # type: ignore[arg-type]
    assert [(group.name, len(group.rows)) for group in found] == [("<30", 39)]
    assert np.array_equal(found[0].rows, np.arange(1, 40))
