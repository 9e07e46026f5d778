"""The page of the API is the one that the types give, and says something of each of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from marctl.cli import main
from marctl.gateway.reference import table, type_of

PROJECT = Path(__file__).parents[3]
PAGE = PROJECT / "scripts" / "gateway" / "API.md"


def api(*options: str) -> str:
    done = CliRunner().invoke(main, ["api", "--recipes", str(PROJECT / "model_store"), *options])
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(api("--json"))
    return made


def test_the_page_in_the_repository_is_current() -> None:
    assert PAGE.read_text() == api(), "run: marctl api --out scripts/gateway/API.md"


def test_every_call_and_every_type_is_on_the_page_and_every_link_leads_there(document: dict[str, Any]) -> None:
    page = PAGE.read_text()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"| `{method.upper()} {path}` |" in page
    for name in document["components"]["schemas"]:
        assert f"### {name}\n" in page
    headings = {re.sub(r"[^\w -]", "", line).strip().lower() for line in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= headings


def test_limits_and_defaults_are_told() -> None:
    [question] = re.findall(r"### mcqa\.Question\n(.*?)###", PAGE.read_text(), re.DOTALL)
    assert "| `choices` | list of string | at least 2; at most 16 |" in question
    assert "| `context` | string or null | may be left out |" in question


def test_types_in_a_few_words() -> None:
    assert type_of({}) == "anything"
    assert type_of({"type": "array", "items": {"$ref": "#/components/schemas/a.B"}}) == "list of [a.B](#ab)"
    assert type_of({"anyOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]}) == "string or null"
    assert type_of({"enum": ["a", 1]}) == '`"a"`, `1`'
    assert type_of({"type": "object", "additionalProperties": {"type": "number"}}) == "object of number"
    assert table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"
