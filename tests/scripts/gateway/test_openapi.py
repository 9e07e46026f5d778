"""The document, as validators and generators of clients want it; that it is true is proved in tests/live."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from marctl.gateway import batch
from marctl.gateway.openapi import ANY_MODEL, document
from marctl.gateway.settings import GatewaySettings
from tests.declared import declared_of

DECLARED = declared_of(mcqa="multiple_choice", embed="embedding", credit="tabular")
SERVED = {"mcqa": ["1.0", "2.0"], "embed": ["1.0"], "credit": ["1.0"]}
SECTIONS = batch.sections(GatewaySettings(batch="127.0.0.1:9"))


@pytest.fixture(scope="module")
def whole() -> Any:
    return document(SERVED, DECLARED, SECTIONS, keys=True)


def operations(found: Any) -> Iterator[tuple[str, Any]]:
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from nodes(part)


@pytest.mark.parametrize("options", [{}, {"keys": True}, {"one_for_all": True}], ids=str)
def test_it_is_valid(options: dict[str, bool]) -> None:
    validate(document(SERVED, DECLARED, SECTIONS, **options))


def test_each_operation_has_a_name_of_its_own_and_a_tag(whole: Any) -> None:
    names = Counter(operation["operationId"] for _, operation in operations(whole))
    assert [name for name, count in names.items() if count > 1 or not re.fullmatch(r"\w+", name)] == []
    tags = {tag["name"] for tag in whole["tags"]}
    assert all(set(operation["tags"]) <= tags for _, operation in operations(whole))
    assert whole["servers"]


def test_every_array_says_of_what(whole: Any) -> None:
    assert [node for node in nodes(whole) if node.get("type") == "array" and "items" not in node] == []


def test_types_of_two_models_have_different_titles(whole: Any) -> None:
    titles = Counter(schema["title"] for schema in whole["components"]["schemas"].values() if "title" in schema)
    assert [title for title, count in titles.items() if count > 1] == []


def test_a_client_of_today_may_name_the_versions_of_tomorrow(whole: Any) -> None:
    for name in ("model", "version"):
        assert "enum" not in whole["components"]["parameters"][name]["schema"]


def test_what_may_be_left_out_has_no_empty_default(whole: Any) -> None:
    question = whole["components"]["schemas"]["mcqa.Question"]
    assert "default" not in question["properties"]["context"]
    assert "context" not in question["required"]


def test_an_example_stands_where_the_archive_has_a_sample() -> None:
    sample = {"question": "?", "choices": ["a", "b"]}
    found = document({"mcqa": ["1.0"]}, {"mcqa": DECLARED["mcqa"] | {"example": sample}})
    for path in ("/predictions/mcqa", "/explanations/mcqa"):
        assert found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] == sample
    assert ANY_MODEL not in found["components"]["schemas"]


def test_keys_are_told_where_the_gateway_asks_for_them(whole: Any) -> None:
    [(name, scheme)] = whole["components"]["securitySchemes"].items()
    assert (scheme["in"], scheme["name"], whole["security"]) == ("header", "x-api-key", [{name: []}])
    open_ = {path for path, operation in operations(whole) if operation.get("security") == []}
    assert open_ == {"get /healthz", "get /ready"}
    assert "security" not in document(SERVED, DECLARED)
