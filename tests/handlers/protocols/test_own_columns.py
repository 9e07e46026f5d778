"""Tensors of tasks that are the user's own: optional inputs, numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from marctl_handlers.core.columns import Column
from marctl_handlers.core.messages import Model, Reply, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.protocols.open_inference import forms


class Reading(msgspec.Struct, frozen=True):
    value: float | None = None
    note: str = ""
    series: list[float] = []


class Sum(msgspec.Struct, frozen=True):
    total: float
    kind: str


class Adder(Task[Reading, Sum]):
    """Sums what there is; every input is optional."""

    inputs: ClassVar[tuple[Column, ...]] = (
        Column("value", "FP32", optional=True),
        Column("note", "BYTES", optional=True),
        Column("series", "FP32", wide=True, optional=True),
    )
    outputs = (Column("total", "FP32"), Column("kind", "BYTES"))

    def load(self, folder: Path | None = None) -> None:
        self.asked: list[Reading] = []

    def predict(self, questions: Sequence[Reading], deadline: float) -> list[Sum]:
        self.asked += questions
        return [Sum(sum(q.series, q.value or 0.0), "none" if q.value is None else "some") for q in questions]


@pytest.fixture
def adder() -> Pipeline:
    task = Adder(Settings(task="adder"))
    task.load()
    pipeline = Pipeline(task, Model("adder", "1.0"))
    pipeline.forms.update(forms(pipeline))
    return pipeline


def infer(pipeline: Pipeline, body: dict[str, Any], raw: bytes = b"") -> Reply:
    head = json.dumps(body).encode()
    headers = {"x-inference-protocol": "open", "inference-header-content-length": str(len(head))}
    [reply] = pipeline.answer([Request(head + raw, "id", headers=headers)])
    return reply


def outputs(reply: Reply) -> dict[str, list[Any]]:
    assert reply.code == 200, reply.body
    return {output["name"]: output["data"] for output in json.loads(reply.body)["outputs"]}


def test_any_of_the_optional_inputs_may_stand_alone(adder: Pipeline) -> None:
    note = {"name": "note", "datatype": "BYTES", "shape": [2], "data": ["a", ""]}
    series = {"name": "series", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}
    value = {"name": "value", "datatype": "FP32", "shape": [1], "data": [2.5]}
    assert outputs(infer(adder, {"inputs": [note]})) == {"total": [0.0, 0.0], "kind": ["none", "none"]}
    assert outputs(infer(adder, {"inputs": [series, note]})) == {"total": [3.0, 7.0], "kind": ["none", "none"]}
    assert outputs(infer(adder, {"inputs": [value]})) == {"total": [2.5], "kind": ["some"]}


def test_a_request_without_any_input_has_no_rows_and_is_told_so(adder: Pipeline) -> None:
    reply = infer(adder, {"inputs": []})
    assert reply.code == 422
    assert b"the request has no inputs, so it has no rows; there are: value FP32 (optional), note" in reply.body


def test_numbers_that_json_does_not_have_come_in_and_go_out_as_raw_tensors(adder: Pipeline) -> None:
    """Not a number is a reading, and no missing one."""
    values = np.array([math.nan, math.inf, -math.inf, -0.0, 1.5], dtype="<f4")
    value = {"name": "value", "datatype": "FP32", "shape": [5], "parameters": {"binary_data_size": 20}}
    wanted = [{"name": "total", "parameters": {"binary_data": True}}, {"name": "kind"}]
    reply = infer(adder, {"inputs": [value], "outputs": wanted}, values.tobytes())
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][1]["data"] == ["some"] * 5
    given = np.frombuffer(reply.body[length:], "<f4")
    np.testing.assert_array_equal(given, [math.nan, math.inf, -math.inf, 0.0, 1.5])
    assert isinstance(adder.task, Adder)
    assert math.isnan(adder.task.asked[0].value or 0.0)
