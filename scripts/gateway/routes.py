"""Envoy's routes: they are the same whatever is served, but for the pages that tell it.

A request that names a model first finds one of `entries`, which let resolve.lua look its version up. The headers that
this leaves name the version's cluster, the time there is, and one of `ways`, the routes by which it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from marctl.core.explainers import models_in
from marctl.core.json_text import compact
from marctl.gateway import openapi
from marctl.gateway.names import (
    ANSWERED_HEADER,
    API_KEYS,
    CLUSTER_HEADER,
    COPIES_HEADER,
    COPY_HEADER,
    FALLBACK,
    FALLBACK_HEADER,
    GATEWAY,
    HTTP_STATUS_HEADER,
    LIMIT,
    METRICS,
    NO_WORKER,
    PROBES,
    RESOLVE,
    ROUTE_HEADER,
    SHADOW_HEADER,
    VERSION_HEADER,
    WORKERS,
    Json,
    Role,
    counted,
    extension,
    seconds,
    typed,
)
from marctl.gateway.policies import Served
from marctl.gateway.settings import GatewaySettings
from marctl_handlers.core.messages import LOADING_HEADER, ROLE_HEADER, START_HEADER

RETRY_AFTER_S = 1
LONGEST_ANSWER_BYTES = 256 * 1024
"""Of what a route answers by itself."""
PAGE_TIMEOUT_S = 5.0
"""For a page of figures; a little longer than any part of it may take."""
MOST_PATHS = 50
"""Models that have paths of their own in the OpenAPI document."""
LONGEST_TIMEOUT_S = 3600.0
"""Of a traffic policy."""
SLACK_S = 60.0
"""A client has so much longer than the answer may take, to send its request and to read the answer."""
ASKING = "(/v1)?/(predict|explain)|/(predictions|explanations)/.*|/v1/models/[^/]+:.*|/(embed|feedback)"
INFERRING = "/v2/.*/infer"
"""Paths that take POST, and those of the Open Inference Protocol that do."""
SHOWING = "/(healthz|health|ready|metrics|openapi\\.json)|/v1/models(/[^/:]+)?"
DESCRIBING = "/v2(/health/.*|/models/[^/]+(/versions/[^/]+)?(/ready)?)?"
"""The same for GET."""
BODY_NAMES_MODEL = "(/v1)?/(predict|explain)|/feedback"
NAMING_MODELS = "/(predictions|explanations|v1/models|v2/models|grpc/v2/models|grpc/predictions)/.*|/embed"
"""Paths of requests that name a model in their body, and in the path; /embed always means the same one."""
CORS = "envoy.filters.http.cors"
ASKED_BY_PAGES = ("content-type", "x-api-key", "x-user-id", "x-request-id", VERSION_HEADER)
TOLD_TO_PAGES = ("retry-after", "x-cache", FALLBACK_HEADER, "x-request-id", VERSION_HEADER)
"""Headers that a page of an allowed origin may send, and read."""
DEFAULTS = GatewaySettings()
LOADING_TRIES = 150
"""About ten seconds' worth; the request's own time may end sooner."""
FAILED_CODES = [500, 502, 503, 504, 507]
"""What another version may do better. 501 is not among them: it means that this kind of request is not supported."""


def gateway_routes(
    served: Served,
    further: Iterable[Json] = (),
    declared: openapi.Declared | None = None,
    sections: Sequence[openapi.Section] = (),
    settings: GatewaySettings = DEFAULTS,
) -> Json:
    """The open listener's routes; `further` are tried after its own.

    For the OpenAPI document, `declared`: what the models' archives say of their tasks; `sections`: of other services.
    """
    origins, described = settings.allowed_origins, pages(served, declared or {}, sections, keys=bool(settings.api_keys))
    routes = [*wrong_requests(origins), *described, *further, *entries(origins), nothing_there()]
    return route_configuration(GATEWAY, ways(), routes, cross_origin(origins))


def fallback_routes(further: Iterable[Json] = ()) -> Json:
    """The inner listener's: of copies, and of requests that a version failed."""
    nobody = {"match": {"prefix": "/"}, "direct_response": {"status": 503}}
    return route_configuration(FALLBACK, inner_ways(), [*further, nobody])


def metrics_routes() -> Json:
    """Of the listener for figures, which has no other page."""
    figures = {"match": {"path": "/metrics"}, "route": {"cluster": METRICS, "timeout": seconds(PAGE_TIMEOUT_S)}}
    nothing = {"match": {"prefix": "/"}, **answer(404, {"error": "no_such_path", "detail": "there is: /metrics"})}
    return {"name": METRICS, "virtual_hosts": [{"name": METRICS, "domains": ["*"], "routes": [figures, nothing]}]}


def cross_origin(origins: Sequence[str]) -> Json:
    """What the pages of these origins may do in a browser, filter to settings; nothing without any.

    Keys are sent in a header that a page must set itself, so no cookies are allowed.
    """
    if not origins:
        return {}
    policy = typed(
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"safe_regex": {"regex": ".*"}} if o == "*" else {"exact": o} for o in origins],
        allow_methods="GET, POST, DELETE",
        allow_headers=", ".join(ASKED_BY_PAGES),
        expose_headers=", ".join(TOLD_TO_PAGES),
        max_age="600",
    )
    return {CORS: policy}


def route_configuration(name: str, ways: dict[str, Json], routes: list[Json], filters: Json | None = None) -> Json:
    """Those `ways` that the header names, by one look; where it names none, `routes`, one after the other.

    `filters`: filter to its settings for all of them.
    """
    by_name = {way: route_list([{"match": {"prefix": "/"}, **route}]) for way, route in ways.items()}
    header = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=ROUTE_HEADER)
    tree = {"input": {"name": ROUTE_HEADER, "typed_config": header}, "exact_match_map": {"map": by_name}}
    matcher = {"matcher_tree": tree, "on_no_match": route_list(routes)}
    return typed(
        "envoy.config.route.v3.RouteConfiguration",
        name=name,
        virtual_hosts=[{"name": name, "domains": ["*"], "matcher": matcher}],
        typed_per_filter_config=filters or {},
        # Of this attempt: a fallback's begins when it is its turn.
        request_headers_to_add=[label(START_HEADER, "%START_TIME(%s%3f)%", overwrite=True)],
        # TorchServe answers 417 to an expectation that it does not know, and takes the body, which comes all the same,
        # for the connection's next request, so that somebody else gets its answer. Envoy answers 100-continue itself.
        request_headers_to_remove=["expect"],
        max_direct_response_body_size_bytes=LONGEST_ANSWER_BYTES,
    )


def route_list(routes: list[Json]) -> Json:
    return {"action": extension("routes", "envoy.config.route.v3.RouteList", routes=routes)}


def wrong_requests(origins: Sequence[str] = ()) -> Iterator[Json]:
    """What must not reach TorchServe, which looks at no method but OPTIONS, or would not be understood there.

    Over gRPC all is POST.
    """
    yield from asked_beforehand(origins)
    yield from foreign_pages(origins)
    # A worker answers DESCRIBING, and must not be asked by HEAD.
    takes = {ASKING: ["POST"], INFERRING: ["POST"], SHOWING: ["GET", "HEAD"], DESCRIBING: ["GET"]}
    for path, methods in takes.items():
        yield other_methods(path, methods, in_protocols_form=path in (INFERRING, DESCRIBING))
    packed = [{"name": "content-encoding", "present_match": True}, other_than("content-encoding", "identity")]
    detail = "compressed bodies are not read; send the body as it is, without the header content-encoding"
    told = {"error": "unsupported_encoding", "detail": detail}
    yield {"match": {"prefix": "/", "headers": packed}, **answer(415, told)}
    detail = "no path ends with a slash; send the same request to the path without it"
    slash = {"safe_regex": {"regex": "/(v1|v2|predict|explain|predictions|explanations|embed|feedback)/(.*/)?"}}
    yield {"match": slash, **no_such("path", detail)}


def asked_beforehand(origins: Sequence[str]) -> Iterator[Json]:
    """What browsers ask before a page of these origins may send its request: the CORS filter answers, which looks at
    routes to clusters only."""
    asks: list[Json] = [{"name": ":method", "string_match": {"exact": "OPTIONS"}}]
    asks.append({"name": "access-control-request-method", "present_match": True})
    for origin in origins:
        said: Json = {"present_match": True} if origin == "*" else {"string_match": {"exact": origin}}
        match = {"prefix": "/", "headers": [*asks, {"name": "origin", **said}]}
        yield {"match": match, "route": {"cluster": NO_WORKER}}


def foreign_pages(origins: Sequence[str]) -> Iterator[Json]:
    """What a page of another origin has a browser send, which could label predictions in its user's name.

    Browsers mark such requests (https://www.w3.org/TR/fetch-metadata/); no other client does.
    """
    if "*" in origins:
        return
    headers = [{"name": "sec-fetch-site", "string_match": {"safe_regex": {"regex": "cross-site|same-site"}}}]
    headers += [other_than("origin", origin) for origin in origins]
    detail = "pages of this origin may not call the gateway; allowed_origins in its configuration names those that may"
    match = {"prefix": "/", "headers": [*headers, other_than(":method", "GET")]}
    yield {"match": match, **answer(403, {"error": "forbidden", "detail": detail})}


def other_methods(path: str, methods: list[str], *, in_protocols_form: bool = False) -> Json:
    """405 for methods that a path does not take; `path`: a regular expression."""
    told = {"error": "method_not_allowed", "detail": f"this path takes {' or '.join(methods)}"}
    return {
        "match": {"safe_regex": {"regex": path}, "headers": [other_than(":method", name) for name in methods]},
        **answer(405, {"error": ": ".join(told.values())} if in_protocols_form else told),
        "response_headers_to_add": [label("allow", ", ".join(methods), overwrite=True)],
    }


def other_than(header: str, value: str) -> Json:
    return {"name": header, "string_match": {"exact": value, "ignore_case": True}, "invert_match": True}


def pages(
    served: Served, declared: openapi.Declared, sections: Sequence[openapi.Section], *, keys: bool = False
) -> Iterator[Json]:
    """Liveness, readiness, health, figures, and what is served."""
    alive = {"match": {"path": "/healthz"}, **answer(200, {"status": "alive"})}
    ready = {"match": {"path": "/ready"}, "route": {"cluster": PROBES}}
    for probe in (alive, ready):
        yield probe | {"typed_per_filter_config": open_to_all()}
    yield {"match": {"path": "/health"}, **lua("health")}
    yield {"match": {"path": "/metrics"}, **lua("metrics")}
    yield {"match": {"path": openapi.PATH}, **answer(200, openapi_within(served, declared, sections, keys=keys))}
    yield {"match": {"path": "/v1/models"}, **answer(200, {"models": models_in(served)})}


def openapi_within(
    served: Served, declared: openapi.Declared, sections: Sequence[openapi.Section] = (), *, keys: bool = False
) -> Json:
    """The OpenAPI document; without the types of models, or the paths, where it would be too long for an answer."""
    for types in (declared, {}) if len(served) <= MOST_PATHS else ():
        found = openapi.document(served, types, sections, keys=keys)
        if len(compact(found).encode()) < LONGEST_ANSWER_BYTES:
            return found
    return openapi.document(served, {}, sections, one_for_all=True, keys=keys)


def readiness() -> Json:
    """Of all versions with traffic; over HTTP, where the code says it."""
    why = {"error": "not_ready: a version with traffic has no worker that is ready"}
    return ready({"ready": True}, {**why, "ready": False}, 503)


def ready(yes: Json, no: Json, code: int) -> Json:
    """`yes`, or `no` with its code, by what the listener for probes says."""
    return lua("ready", yes=compact(yes), no=compact(no), code=str(code))


def open_to_all() -> Json:
    """Neither key nor limit: whoever watches over this machine may ask."""
    return {API_KEYS: switched(on=False)} | {f"{LIMIT}.{what}": switched(on=False) for what in ("requests", "bytes")}


def switched(*, on: bool) -> Json:
    """A filter of one route."""
    return typed("envoy.config.route.v3.FilterConfig", config={}, disabled=not on)


def lua(name: str, **context: object) -> Json:
    """Answer by a script of filters.lua; by 503 if the script fails."""
    kind = "envoy.extensions.filters.http.lua.v3.LuaPerRoute"
    config = {"envoy.filters.http.lua": typed(kind, name=name, filter_context=context)}
    return {"direct_response": {"status": 503}, "typed_per_filter_config": config}


def resolved() -> Json:
    """The filters that look up who answers."""
    return {RESOLVE: switched(on=True), WORKERS: switched(on=True)}


def entries(origins: Sequence[str] = ()) -> Iterator[Json]:
    """Where requests arrive that name a model. Each is routed twice: here, and with the headers of resolve.lua."""
    # What comes out of here without a way has met a fault of resolve.lua. The CORS filter needs a cluster.
    fault = {"route": {"cluster": NO_WORKER}} if origins else {"direct_response": {"status": 500}}
    body = {"envoy.filters.http.json_to_metadata": switched(on=True)}
    for paths, filters in ((BODY_NAMES_MODEL, body), (NAMING_MODELS, {})):
        nowhere = {"match": {"safe_regex": {"regex": paths}}, **fault}
        yield nowhere | {"typed_per_filter_config": filters | resolved()}


def ways() -> dict[str, Json]:
    """How requests leave the open listener; those of gRPC calls have another form of answer."""
    over_http = {
        "split": copied(to_version(Role.SPLIT)),
        "guarded": copied(to_version(Role.SPLIT, falls_back())),
        # Of a version that has no worker: no attempt at it is made.
        "passed-over": copied(to_version(Role.SPLIT)),
        "pinned": to_version(Role.PINNED),
        "describe": to_version(Role.OTHER),
        "explain": to_version(Role.EXPLAIN),
    }
    over_http |= {
        f"{name}-shared": to_version(role, waits_for_load())
        for name, role in (("pinned", Role.PINNED), ("describe", Role.OTHER), ("explain", Role.EXPLAIN))
    }
    over_http["split-shared"] = copied(to_version(Role.SPLIT, waits_for_load()))
    over_grpc = {f"{name}-grpc": with_status(way) for name, way in over_http.items()}
    inside = with_status({"route": {"cluster": FALLBACK}})
    labels = {"label": asked(Role.OTHER), "label-shared": asked(Role.OTHER, waits_for_load())}
    return over_http | over_grpc | labels | {"inside": inside}


def inner_ways() -> dict[str, Json]:
    """How they leave the inner one."""
    told = [label(FALLBACK_HEADER, f"%REQ({ANSWERED_HEADER})%")]
    fallback = to_version(Role.FALLBACK, falls_back())
    last = to_version(Role.FALLBACK, waits_for_load())
    return {
        "shadow": copied(asked(Role.SHADOW)),
        "fallback": fallback | {"response_headers_to_add": [*fallback["response_headers_to_add"], *told]},
        "fallback-shared": last | {"response_headers_to_add": [*last["response_headers_to_add"], *told]},
        "passed-over": asked(Role.FALLBACK),
        "stale": asked(Role.OTHER) | {"response_headers_to_add": told},
    }


def asked(role: Role, retry: Json | None = None) -> Json:
    """To the cluster that a header names, counted in a role.

    The time for each attempt and for all of them stands in headers, too.
    """
    return {
        "route": {
            "cluster_header": CLUSTER_HEADER,
            "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
            "timeout": seconds(LONGEST_TIMEOUT_S),
            # A worker may compute without a byte coming or going. (A route's own max_stream_duration would end
            # `timeout`.)
            "idle_timeout": seconds(LONGEST_TIMEOUT_S + SLACK_S),
            "retry_policy": retry or tries_again(),
        },
        "metadata": counted(role=role.value),
        "request_headers_to_add": [label(ROLE_HEADER, role.value, overwrite=True)],
        "request_headers_to_remove": [ROUTE_HEADER, CLUSTER_HEADER],
    }


def to_version(role: Role, retry: Json | None = None) -> Json:
    """The same, whose answer names the version."""
    return asked(role, retry) | {"response_headers_to_add": [label(VERSION_HEADER, f"%REQ({VERSION_HEADER})%")]}


def copied(way: Json) -> Json:
    """With a copy to the inner listener for shadows, where a header says so."""
    shadows = label(SHADOW_HEADER, f"%REQ({COPIES_HEADER})%", overwrite=True)
    mirror = {"cluster_header": COPY_HEADER, "request_headers_mutations": [{"append": shadows}]}
    return way | {"route": way["route"] | {"request_mirror_policies": [mirror]}}


def with_status(way: Json) -> Json:
    """What filters.lua makes gRPC's code of."""
    told = [*way.get("response_headers_to_add", []), label(HTTP_STATUS_HEADER, "%RESP(:status)%")]
    return way | {"response_headers_to_add": told}


def falls_back() -> Json:
    """A failure goes to the fallback listener, the second part of the guarded cluster."""
    kind = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    return {
        "retry_on": "retriable-status-codes,reset,connect-failure",
        "retriable_status_codes": FAILED_CODES,
        "num_retries": 1,
        "retry_priority": extension("envoy.retry_priorities.previous_priorities", kind, update_frequency=1),
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    }


def tries_again() -> Json:
    """Only what was never begun; where there are several servers, at another one."""
    kind = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    predicate = extension("envoy.retry_host_predicates.previous_hosts", kind)
    return {
        "retry_on": "connect-failure,reset-before-request",
        "num_retries": 1,
        "retry_host_predicate": [predicate],
        "host_selection_retry_max_attempts": 3,
    }


def waits_for_load() -> Json:
    """The same of a version in a shared worker, which may have to load it: it is asked until it has."""
    loading = {"name": LOADING_HEADER, "present_match": True}
    again = tries_again()
    return again | {
        "retry_on": f"retriable-headers,{again['retry_on']}",
        "retriable_headers": [loading],
        "num_retries": LOADING_TRIES,
        "retry_back_off": {"base_interval": "0.010s", "max_interval": "0.100s"},
    }


def label(name: str, value: str, *, overwrite: bool = False) -> Json:
    """A header; who sets it first keeps it, unless it is to be overwritten."""
    action = "OVERWRITE_IF_EXISTS_OR_ADD" if overwrite else "ADD_IF_ABSENT"
    return {"header": {"key": name, "value": value}, "append_action": action}


def nothing_there() -> Json:
    detail = "no such path; there are: /predict, /v1/predict, /predictions/MODEL, /v1/models/MODEL:predict, /explain, "
    detail += "/explanations/MODEL, /embed, /feedback, /v1/models, /v2, /healthz, /health, /ready, /metrics, "
    detail += openapi.PATH
    return {"match": {"prefix": "/"}, **no_such("path", detail)}


def no_such(what: str, detail: str) -> Json:
    return answer(404, {"error": f"no_such_{what}", "detail": detail})


def answer(code: int, content: Json) -> Json:
    """An answer of Envoy's own."""
    return {"direct_response": {"status": code, "body": {"inline_string": compact(content)}}}
