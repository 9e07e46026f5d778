"""What the service makes of a job: one command, whose options are the client's and the operator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from marctl.batch.service.command import command_of
from marctl.batch.service.records import Record
from marctl.batch.service.settings import ServiceSettings
from marctl.cli.batch import batch
from marctl.core.batch_jobs import BatchPredict

ASKED: dict[str, Any] = {"model": "mcqa", "version": "2.0", "input": ["/in/a.csv", "/in/b.csv"], "output": "/out/x"}
SETTINGS = ServiceSettings(read=["/in"], write=["/out"])


def words(attempts: int = 1, **asked: Any) -> list[str]:
    job = msgspec.convert({**ASKED, **asked}, BatchPredict)
    record = Record(id="batch-0", asked=job, client="", status="running", submitted_at="", attempts=attempts)
    found = command_of(record, SETTINGS, Path("/state/batch/batch-0.progress"), Path("/state"), Path("/store"))
    return found[found.index("batch") + 1 :]


def parameters(**asked: Any) -> dict[str, Any]:
    """As the command itself reads them."""
    return dict(batch.make_context("batch", words(**asked)).params)


def test_every_option_of_a_job_reaches_the_command() -> None:
    asked = {
        "map": {"question": "prompt"},
        "key": ["id"],
        "where": "amount > 100",
        "sample": 0.5,
        "limit": 7,
        "features": {"customer": "/in/history.parquet"},
        "as_of": "asked_at",
        "explain": {"method": "tree_shap"},
        "log": True,
        "max_errors": 0,
        "restart": True,
    }
    assert asked.keys() == set(BatchPredict.__struct_fields__) - ASKED.keys()
    read = parameters(**asked)
    assert (read["version"], read["inputs"], read["output"]) == ("mcqa/2.0", ("/in/a.csv", "/in/b.csv"), "/out/x")
    assert (read["mapping"], read["keys"], read["where"]) == (("question=prompt",), ("id",), "amount > 100")
    assert (read["sample"], read["limit"], read["max_errors"]) == (0.5, 7, 0)
    assert (read["features"], read["as_of"]) == (("customer=/in/history.parquet",), "asked_at")
    assert (read["explain"], read["logged"], read["state"]) == ('{"method":"tree_shap"}', True, Path("/state"))
    assert (read["read_below"], read["write_below"]) == (("/in",), ("/out",))


@pytest.mark.parametrize("value", ["--restart", "-h", "--write-below", "--"])
def test_a_value_that_looks_like_an_option_is_none(value: str) -> None:
    read = parameters(key=[value], where=value, as_of=value, input=[value], output=value)
    assert (read["keys"], read["where"], read["as_of"]) == ((value,), value, value)
    assert (read["inputs"], read["output"], read["restart"]) == ((value,), value, False)
    assert read["write_below"] == ("/out",)


def test_only_the_first_attempt_discards_what_is_there() -> None:
    assert "--restart" in words(restart=True)
    assert "--restart" not in words(attempts=2, restart=True)
