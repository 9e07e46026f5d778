"""Files are read in parts as they are read whole."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marctl.batch.job import Job
from marctl.batch.plan import plan
from marctl.batch.sources import Scanned, read, scan_all
from marctl.core.errors import UserError

COUNT = 1500
WORDS = ["plain", "", 'with "quotes"', "two\nlines", "com,ma", "naïve ☃", " space ", "x" * 300]


def texts(count: int = COUNT, seed: int = 1) -> list[dict[str, str]]:
    draw = random.Random(seed)
    return [
        {"id": str(i), "text": draw.choice(WORDS) + str(draw.random()), "other": draw.choice(WORDS)}
        for i in range(count)
    ]


def parts(scanned: Scanned, columns: list[str], unit_rows: int = 256) -> list[tuple[int, ...]]:
    """All rows, read unit by unit: number, then values."""
    job = Job(model="m", version="1", digest="", sources=(scanned.source,), unit_rows=unit_rows)
    found: list[tuple[int, ...]] = []
    for unit in plan(job, [scanned]):
        block = read(scanned.source, unit.rows, columns)
        found += zip(block.rows.tolist(), *(block.values(name) for name in columns), strict=True)
    return found


def as_csv(rows: list[dict[str, str]], end: str = "\r\n") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("unit_rows", [256, 512, 4096])
def test_csv_with_quotes_and_line_breaks_is_cut_between_rows(tmp_path: Path, end: str, unit_rows: int) -> None:
    rows = texts()
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(rows, end))
    [scanned] = scan_all([str(path)])
    assert scanned.source.rows == COUNT
    assert scanned.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = [(i, row["id"], row["text"] or None, row["other"] or None) for i, row in enumerate(rows)]
    assert parts(scanned, ["id", "text", "other"], unit_rows) == wanted


def test_csv_takes_a_quote_inside_of_a_value_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n5" pipe,x\n2,y\n')
    [scanned] = scan_all([str(path)])
    assert parts(scanned, ["a", "b"]) == [(0, '5" pipe', "x"), (1, "2", "y")]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_json_lines_are_cut_between_lines(tmp_path: Path, end: str) -> None:
    rows = [{"id": i, "text": word["text"]} for i, word in enumerate(texts())]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=bool(i % 2)) for i, row in enumerate(rows)) + end)
    [scanned] = scan_all([str(path)])
    assert parts(scanned, ["id", "text"]) == [(i, row["id"], row["text"]) for i, row in enumerate(rows)]


@pytest.mark.parametrize("count", [255, 256, 257, 512])
@pytest.mark.parametrize("end", ["", "\n"])
def test_no_row_is_lost_where_units_meet_the_end_of_the_file(tmp_path: Path, count: int, end: str) -> None:
    lines, cells = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    lines.write_text("\n".join(f'{{"n": {i}}}' for i in range(count)) + end)
    cells.write_text("\n".join(["n", *map(str, range(count))]) + end)
    assert [row[1] for row in parts(scan_all([str(lines)])[0], ["n"])] == list(range(count))
    assert [row[1] for row in parts(scan_all([str(cells)])[0], ["n"])] == list(map(str, range(count)))


@pytest.mark.parametrize("group", [100, 256, 700, 5000])
def test_parquet_is_cut_across_row_groups(tmp_path: Path, group: int) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"n": range(COUNT), "tags": [["a", str(i)] for i in range(COUNT)], "unused": ["x"] * COUNT})
    pq.write_table(table, path, row_group_size=group)
    [scanned] = scan_all([str(path)])
    assert parts(scanned, ["n", "tags"]) == [(i, i, ["a", str(i)]) for i in range(COUNT)]


def test_rows_that_cannot_be_read_are_told_and_the_others_kept(tmp_path: Path) -> None:
    lines, cells = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    lines.write_bytes(b'{"n": 1}\nnonsense\n[1]\n\n{"n": "\xff"}\n{"n": 2}\n')
    cells.write_bytes(b"n,m\n1,a\n2\n\xff,b\n\n3,c,d\n4,e\n")
    for path, good, bad in ((lines, [0, 5], [1, 2, 4]), (cells, [0, 5], [1, 2, 4])):
        [scanned] = scan_all([str(path)])
        job = Job(model="m", version="1", digest="", sources=(scanned.source,), unit_rows=256)
        block = read(scanned.source, plan(job, [scanned])[0].rows, ["n"])
        assert block.rows.tolist() == good
        assert [row.row for row in block.bad] == bad


def test_nan_counts_as_missing_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": [1.0, float("nan"), None]}), path)
    assert [row[1] for row in parts(scan_all([str(path)])[0], ["x"])] == [1.0, None, None]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "no header"),
        ("a.csv", b"x,x\n1,2\n", "more than once"),
        ("a.parquet", b"PAR1 and nothing", "no whole Parquet file"),
        ("a.csv.gz", b"", "cannot be read in parts"),
        ("a.txt", b"", r"expected a file named \*\.parquet"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        scan_all([str(tmp_path / name)])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfn,m\n1,2\n")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\n')
    for name in ("a.csv", "b.jsonl"):
        assert "n" in scan_all([str(tmp_path / name)])[0].source.columns
