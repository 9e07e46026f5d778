"""What the routes say; what Envoy makes of them is proved in tests/live."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import marctl.gateway.routes
from marctl.core.json_text import compact
from marctl.gateway import names
from marctl.gateway.openapi import document
from marctl.gateway.routes import (
    LONGEST_ANSWER_BYTES,
    fallback_routes,
    gateway_routes,
    inner_ways,
    openapi_within,
    tries_again,
    waits_for_load,
    ways,
)
from marctl_handlers.core.messages import EXPERIMENT_HEADER, TIMEOUT_HEADER
from tests.declared import declared_of

LUA = Path(marctl.gateway.routes.__file__).parent
SHARED = [f"{name}-shared" for name in ("split", "pinned", "describe", "explain", "label")]
"""Ways of versions that a worker may have to load."""


def test_only_the_pages_change_with_what_is_served() -> None:
    """Or each further model would cost every request, and each change all routes."""
    few, many = (
        gateway_routes({f"model-{number:03}": {"1.0", "2.0"} for number in range(count)}) for count in (1, 100)
    )
    few_matcher, many_matcher = (found["virtual_hosts"][0]["matcher"] for found in (few, many))
    assert few_matcher["matcher_tree"] == many_matcher["matcher_tree"]
    few_routes, many_routes = (routes_of(matcher) for matcher in (few_matcher, many_matcher))
    different = [a["match"] for a, b in zip(few_routes, many_routes, strict=True) if a != b]
    assert different == [{"path": "/openapi.json"}, {"path": "/v1/models"}]


def routes_of(matcher: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = matcher["on_no_match"]["action"]["typed_config"]["routes"]
    return found


def test_every_way_that_the_scripts_name_is_there() -> None:
    """A request that is sent on a way that is not there would be a 500."""
    text = (LUA / "resolve.lua").read_text() + (LUA / "workers.lua").read_text()
    assert set(SHARED) <= set(ways())
    named = set(re.findall(r'"(split|guarded|pinned|describe|explain|label|inside|passed-over)"', text))
    assert named <= set(ways())
    inner = set(re.findall(r'send\(handle, headers, "([a-z-]+)"', text)) - {"explain", "label"}
    assert inner == {"shadow", "fallback", "fallback-shared", "stale"}
    assert inner | {"passed-over"} == set(inner_ways())


def test_the_scripts_call_headers_by_the_routes_names() -> None:
    text = (LUA / "resolve.lua").read_text()
    headers = [names.ROUTE_HEADER, names.CLUSTER_HEADER, names.MODEL_HEADER, names.COUNTED_HEADER, names.COPY_HEADER]
    headers += [
        names.COPIES_HEADER,
        names.ANSWERED_HEADER,
        names.SHADOW_HEADER,
        names.VERSION_HEADER,
        names.FAILED_HEADER,
    ]
    headers += [names.PROTOCOL_HEADER, names.STALE_HEADER, EXPERIMENT_HEADER, TIMEOUT_HEADER]
    assert [header for header in headers if f'"{header}"' not in text] == []


def test_without_a_fallback_nothing_that_was_begun_is_asked_again() -> None:
    policy = tries_again()
    assert (policy["retry_on"], policy["num_retries"]) == ("connect-failure,reset-before-request", 1)
    others = {name for name, way in ways().items() if way["route"].get("retry_policy", policy) != policy}
    over_grpc = {f"{name}-grpc" for name in SHARED if name != "label-shared"}
    assert others == {"guarded", "guarded-grpc", *SHARED, *over_grpc}


def test_who_waits_for_a_load_is_asked_again_for_nothing_else_that_was_begun() -> None:
    policy = waits_for_load()
    assert set(policy["retry_on"].split(",")) == {"retriable-headers", *tries_again()["retry_on"].split(",")}
    assert [header["name"] for header in policy["retriable_headers"]] == ["x-loading"]


def test_below_the_last_rung_is_a_503() -> None:
    assert routes_of(fallback_routes()["virtual_hosts"][0]["matcher"])[-1]["direct_response"] == {"status": 503}


def test_a_document_too_long_for_a_route_leaves_the_types_out_and_then_the_models() -> None:
    declared = declared_of(mcqa="multiple_choice")["mcqa"]
    for count, told in ((20, "/predictions/model-19"), (100, "/predictions/{model}"), (2000, "/predictions/{model}")):
        many = {f"model-{number}": {"1.0"} for number in range(count)}
        found = openapi_within(many, dict.fromkeys(many, declared))
        assert found != document(many, dict.fromkeys(many, declared))
        assert len(compact(found).encode()) < LONGEST_ANSWER_BYTES
        assert told in found["paths"]
