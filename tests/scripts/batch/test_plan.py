"""Units: what they hold depends on the input and the job alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marctl.batch.job import Job
from marctl.batch.plan import plan, sampled, unit_rows_for
from marctl.batch.sources import Scanned, scan_all

ROWS = 5000


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> list[Scanned]:
    """Two files; in the first one `day` grows from row group to row group."""
    folder = tmp_path_factory.mktemp("rows")
    table = pa.table({"n": range(ROWS), "day": [i // 1000 for i in range(ROWS)]})
    pq.write_table(table, folder / "a.parquet", row_group_size=1000)
    (folder / "b.csv").write_text("n,day\n" + "".join(f"{i},{i % 7}\n" for i in range(1000)))
    return scan_all([str(folder)])


@pytest.fixture
def job(scanned: list[Scanned]) -> Callable[..., Job]:
    def make(**options: Any) -> Job:
        sources = tuple(one.source for one in scanned)
        return Job(**{"model": "m", "version": "1", "digest": "", "sources": sources, "unit_rows": 512, **options})

    return make


def test_units_cover_every_row_once_in_order(scanned: list[Scanned], job: Callable[..., Job]) -> None:
    units = plan(job(), scanned)
    covered = [(unit.source, row) for unit in units for row in range(unit.start, unit.stop)]
    assert covered == [(0, row) for row in range(ROWS)] + [(1, row) for row in range(1000)]
    assert [unit.number for unit in units] == list(range(len(units)))


def test_row_groups_whose_statistics_rule_the_condition_out_are_not_read(
    scanned: list[Scanned], job: Callable[..., Job]
) -> None:
    units = plan(job(where="day == 3"), scanned[:1])
    assert min(unit.start for unit in units) > 2000
    assert max(unit.stop for unit in units) < 4700
    rows = {row for unit in units for row in range(unit.start, unit.stop)}
    assert rows >= set(range(3000, 4000))


@pytest.mark.parametrize("options", [{}, {"sample": 0.25}, {"where": "day > 2"}, {"where": "day > 2", "sample": 0.5}])
def test_a_limit_takes_the_first_rows_that_the_other_options_leave(
    scanned: list[Scanned], job: Callable[..., Job], options: dict[str, Any]
) -> None:
    units = plan(job(limit=700, **options), scanned)
    assert sum(unit.take or 0 for unit in units) == 700


def test_a_limit_beyond_the_rows_takes_them_all(scanned: list[Scanned], job: Callable[..., Job]) -> None:
    assert sum(unit.take or 0 for unit in plan(job(limit=10**9), scanned)) == ROWS + 1000


def test_a_sample_is_a_share_of_the_rows_however_they_are_cut(scanned: list[Scanned], job: Callable[..., Job]) -> None:
    source, one = scanned[0].source, job(sample=0.1)
    whole = sampled(one, source, np.arange(100_000))
    assert 9_600 < whole.sum() < 10_400
    halves = [sampled(one, source, np.arange(0, 33_333)), sampled(one, source, np.arange(33_333, 100_000))]
    assert (np.concatenate(halves) == whole).all()
    other = sampled(one, scanned[1].source, np.arange(100_000))
    assert 700 < (whole & other).sum() < 1_300, "files are drawn apart from each other"


@pytest.mark.parametrize(("rows", "unit"), [(0, 512), (100, 512), (100_000, 1536), (10_000_000, 16_384)])
def test_units_are_few_in_large_inputs_and_short_in_small_ones(rows: int, unit: int) -> None:
    assert unit_rows_for(rows) == unit
