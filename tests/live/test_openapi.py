"""Every path of the published schema, fuzzed: no answer that the schema does not know, and no failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from marctl.build.reader import read_archive
from marctl.gateway.openapi import document
from tests.declared import declared_of
from tests.live.conftest import Site

pytestmark = pytest.mark.live
EXAMPLES = 10
"""Per path and mode; --hypothesis-seed deals others."""
SERVED = {"quiz": ["1.0", "2.0"]}
CONFORMS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
TAKES_ALL_THAT_IS_VALID = "POST /predictions/quiz/{version}"
"""The other paths can be asked for versions that are not there."""
DECLARED = declared_of(quiz="multiple_choice")


def operations() -> dict[str, Any]:
    schema = schemathesis.openapi.from_dict(document(SERVED, DECLARED))
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


OPERATIONS = operations()


@pytest.fixture(scope="module")
def url(quiz_gateway: Site) -> str:
    return str(quiz_gateway.call("status")["gateway"])


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


def test_the_schema_is_served_as_it_is_made(quiz_gateway: Site, url: str) -> None:
    """With the newest version's first sample as an example."""
    example = read_archive(quiz_gateway.store / "quiz-2.0.mar").samples[0].request
    made = document(SERVED, {"quiz": DECLARED["quiz"] | {"example": example}})
    got = requests.get(f"{url}/openapi.json", timeout=30)
    assert got.headers["content-type"] == "application/json"
    assert got.json() == json.loads(json.dumps(made))


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_answer_is_one_that_the_schema_knows(
    url: str, session: requests.Session, name: str, mode: GenerationMode
) -> None:
    """501 is for explanations, which this model does not give."""
    operation = OPERATIONS[name]
    if mode is GenerationMode.NEGATIVE and not operation.body:
        pytest.skip("takes no input that could be wrong: a model or a version is any text")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        if name == TAKES_ALL_THAT_IS_VALID and mode is GenerationMode.POSITIVE:
            case.path_parameters["version"] = "2.0"  # which any text might be, as far as the schema knows
        answer = case.call(base_url=url, session=session, timeout=30)
        case.validate_response(answer, checks=CONFORMS)
        assert answer.status_code < 500 or answer.status_code == 501, answer.text
        if name == TAKES_ALL_THAT_IS_VALID and mode is GenerationMode.POSITIVE:
            assert answer.status_code == 200, answer.text

    ask()


def test_a_path_that_the_gateway_itself_refuses_is_told_in_the_protocols_form(url: str) -> None:
    got = requests.get(f"{url}/v2/models/%5C/ready", timeout=30)
    assert (got.status_code, got.json()) == (400, {"error": "bad_request: the request breaks HTTP's rules"})
