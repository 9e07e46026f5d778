"""Translates traffic policies into Envoy's routes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise

from handlers.core.messages import EXPERIMENT_HEADER, ROLE_HEADER, START_HEADER, TIMEOUT_HEADER
from scripts.core.explainers import explainer_of, models_in
from scripts.core.order import version_order
from scripts.gateway import openapi
from scripts.gateway.names import (
    BODY_MODEL,
    FAILED_HEADER,
    FALLBACK,
    FALLBACK_HEADER,
    GATEWAY,
    LIMIT,
    PROBES,
    SHADOW_HEADER,
    STALE_HEADER,
    VERSION_HEADER,
    Json,
    Role,
    cluster,
    counted,
    extension,
    guarded_cluster,
    seconds,
    shadow_cluster,
    typed,
)
from scripts.gateway.policies import STALE, Served, Traffic

MAIN_MODEL = "mcqa"
"""Who answers `/predict` when the body names no model."""
TOTAL_WEIGHT = 10_000
PREDICT, EXPLAIN = "predictions", "explanations"
VERBS = {PREDICT: "predict", EXPLAIN: "explain"}
"""TorchServe's path to the verb of KServe's V1 protocol and of the short path."""
WORKERS_HEADER = "x-explain-workers"
"""Names who explains for the version that the split has chosen; the path is made from it."""
EXPLAIN_TIMEOUT_S = 60.0
"""At least: explanations may compute for longer than a prediction may take."""
FEEDBACK = "/feedback"
"""Where true labels are sent; handlers/torchserve/adapter.py knows this ending of a path, too."""
RETRY_AFTER_S = 1
LONGEST_ANSWER_BYTES = 256 * 1024
"""Of what a route answers by itself."""
SLACK_S = 60.0
"""A client has so much longer than the answer may take, to send its request and to read the answer."""
ASKING = "(/v1)?/(predict|explain)|/(predictions|explanations)/.*|/v1/models/[^/]+:.*|/(embed|feedback)"
INFERRING = "/v2/.*/infer"
"""Paths that take POST, and those of the Open Inference Protocol that do."""
SHOWING = "/(healthz|health|ready|metrics|openapi\\.json)|/v1/models(/[^/:]+)?"
DESCRIBING = "/v2(/health/.*|/models/[^/]+(/versions/[^/]+)?(/ready)?)?"
"""The same for GET."""
LATER_S = 0.02
"""The request's own time ends so much later than its last attempt's, or Envoy would count no attempt as out of time."""
FAILED_CODES = [500, 502, 503, 504, 507]
"""What another version may do better. 501 is not among them: it means that this kind of request is not supported."""


def gateway_routes(
    served: Served,
    policies: Mapping[str, Traffic],
    further: Iterable[Json] = (),
    declared: openapi.Declared | None = None,
) -> Json:
    """The open listener's routes; `policies` holds one for each served model, `further` are tried after these.

    `declared`: what the models' archives say of their tasks, for the OpenAPI document.
    """
    routes = [*wrong_requests(), *pages(served, policies, declared or {})]
    for model in models_in(served):
        routes += model_routes(model, served, policies[model])
    routes += [*further, *refusals(served)]
    return route_configuration(GATEWAY, routes)


def route_configuration(name: str, routes: list[Json]) -> Json:
    return typed(
        "envoy.config.route.v3.RouteConfiguration",
        name=name,
        virtual_hosts=[{"name": name, "domains": ["*"], "routes": routes}],
        # Of this attempt: a fallback's begins when it is its turn.
        request_headers_to_add=[label(START_HEADER, "%START_TIME(%s%3f)%", overwrite=True)],
        # TorchServe answers 417 to an expectation that it does not know, and takes the body, which comes all the same,
        # for the connection's next request, so that somebody else gets its answer. Envoy answers 100-continue itself.
        request_headers_to_remove=["expect"],
        # Longer lists of routes than the default lets pass (4096 bytes) come with a few dozen models.
        max_direct_response_body_size_bytes=LONGEST_ANSWER_BYTES,
    )


def wrong_requests() -> Iterator[Json]:
    """What must not reach TorchServe, which looks at no method but OPTIONS, or would not be understood there.

    Over gRPC all is POST.
    """
    # A worker answers DESCRIBING, and must not be asked by HEAD.
    takes = {ASKING: ["POST"], INFERRING: ["POST"], SHOWING: ["GET", "HEAD"], DESCRIBING: ["GET"]}
    for path, methods in takes.items():
        told = {"error": "method_not_allowed", "detail": f"this path takes {' or '.join(methods)}"}
        in_its_form = {"error": ": ".join(told.values())} if path in (INFERRING, DESCRIBING) else told
        yield {
            "match": {"safe_regex": {"regex": path}, "headers": [other_than(":method", name) for name in methods]},
            **answer(405, in_its_form),
            "response_headers_to_add": [label("allow", ", ".join(methods), overwrite=True)],
        }
    packed = [{"name": "content-encoding", "present_match": True}, other_than("content-encoding", "identity")]
    detail = "compressed bodies are not read; send the body as it is, without the header content-encoding"
    told = {"error": "unsupported_encoding", "detail": detail}
    yield {"match": {"prefix": "/", "headers": packed}, **answer(415, told)}
    detail = "no path ends with a slash; send the same request to the path without it"
    slash = {"safe_regex": {"regex": "/(v1|v2|predict|explain|predictions|explanations|embed|feedback)/(.*/)?"}}
    yield {"match": slash, **no_such("path", detail)}


def other_than(header: str, value: str) -> Json:
    return {"name": header, "string_match": {"exact": value, "ignore_case": True}, "invert_match": True}


def pages(served: Served, policies: Mapping[str, Traffic], declared: openapi.Declared) -> Iterator[Json]:
    """Liveness, readiness, health, figures, and what is served."""
    names = {model: sorted(served[model], key=version_order) for model in sorted(served)}
    routed = " ".join(name for model in models_in(names) for name in with_weight(model, served, policies[model]))
    listed = " ".join(f"{model}/{version}" for model, versions in names.items() for version in versions)
    alive = {"match": {"path": "/healthz"}, **answer(200, {"status": "alive"})}
    ready = {"match": {"path": "/ready"}, "route": {"cluster": PROBES}}
    for probe in (alive, ready):
        yield probe | {"typed_per_filter_config": open_to_all()}
    yield {"match": {"path": "/health"}, **lua("health", versions=listed, routed=routed)}
    yield {"match": {"path": "/metrics"}, **lua("metrics")}
    yield {"match": {"path": openapi.PATH}, **answer(200, openapi_within(served, declared))}
    yield {"match": {"path": "/v1/models"}, **answer(200, {"models": models_in(served)})}
    for model in models_in(served):
        told = readiness(with_weight(model, served, policies[model]), {"name": model, "versions": names[model]})
        yield {"match": {"path": f"/v1/models/{model}"}, **told}


def openapi_within(served: Served, declared: openapi.Declared) -> Json:
    """The OpenAPI document; without the models' own types where it would be too long for a route's answer."""
    whole = openapi.document(served, declared)
    return whole if len(json.dumps(whole)) < LONGEST_ANSWER_BYTES else openapi.document(served, {})


def with_weight(model: str, served: Served, policy: Traffic) -> list[str]:
    """`model/version` of those that the split may choose."""
    return [f"{model}/{v}" for v in sorted(served[model], key=version_order) if policy.split.get(v)]


def readiness(versions: list[str], also: Json) -> Json:
    """Over HTTP, where the code says it; `also` comes with the answer."""
    why = {"error": "not_ready: a version with traffic has no worker that is ready"}
    return ready(versions, {**also, "ready": True}, {**why, **also, "ready": False}, 503)


def ready(versions: list[str], yes: Json, no: Json, code: int) -> Json:
    """`yes`, or `no` with its code, by what the listener for probes says of these versions."""
    return lua("ready", versions=" ".join(versions), yes=json.dumps(yes), no=json.dumps(no), code=str(code))


def open_to_all() -> Json:
    """Neither key nor limit: whoever watches over this machine may ask."""
    off = typed("envoy.config.route.v3.FilterConfig", config={}, disabled=True)
    return {"envoy.filters.http.api_key_auth": off, f"{LIMIT}.requests": off, f"{LIMIT}.bytes": off}


def lua(name: str, **context: object) -> Json:
    """Answer by a script of filters.lua; by 503 if the script fails."""
    kind = "envoy.extensions.filters.http.lua.v3.LuaPerRoute"
    config = {"envoy.filters.http.lua": typed(kind, name=name, filter_context=context)}
    return {"direct_response": {"status": 503}, "typed_per_filter_config": config}


def model_routes(model: str, served: Served, policy: Traffic) -> Iterator[Json]:
    """Everything that is addressed to one model: pinned by path, pinned by header, split."""
    for kind in VERBS:
        to_versions = {
            version: to_version(kind, model, version, policy)
            if kind == PREDICT
            else to_explainer(model, version, served, policy)
            for version in sorted(served[model])
        }
        for version, action in to_versions.items():
            yield {"match": {"path": f"/{kind}/{model}/{version}"}, **action}
        yield {"match": {"prefix": f"/{kind}/{model}/"}, **no_such_version(model, served)}
        for match in addresses(kind, model):
            body = looks_into_body(match)
            for version, action in to_versions.items():
                yield {"match": pinned(match, {"string_match": {"exact": version}}), **action, **body}
            yield {"match": pinned(match, {"present_match": True}), **no_such_version(model, served), **body}
            split = to_split(kind, model, policy) if kind == PREDICT else to_explainers(model, served, policy)
            yield {"match": match, **split, **body}
    for match in named(FEEDBACK, model):
        yield {"match": match, **to_log(model, policy), **looks_into_body(match)}


def addresses(kind: str, model: str) -> Iterator[Json]:
    """Where requests for a model without a version arrive."""
    verb = VERBS[kind]
    yield {"path": f"/{kind}/{model}"}
    yield {"path": f"/v1/models/{model}:{verb}"}
    if model == openapi.EMBED_MODEL and kind == "predictions":
        yield {"path": "/embed"}
    for path in (f"/{verb}", f"/v1/{verb}"):
        yield from named(path, model)


def named(path: str, model: str) -> Iterator[Json]:
    """A path whose model is the body's, or the main one where the body names none."""
    yield {"path": path, "dynamic_metadata": [named_in_body({"string_match": {"exact": model}})]}
    if model == MAIN_MODEL:
        unnamed = named_in_body({"present_match": True}) | {"invert": True}
        yield {"path": path, "dynamic_metadata": [unnamed]}


def named_in_body(value: Json) -> Json:
    return {"filter": "envoy.lb", "path": [{"key": BODY_MODEL}], "value": value}


def looks_into_body(match: Json) -> Json:
    """Switches json_to_metadata on. Each request is routed twice then: first without the body's model, and again."""
    if "dynamic_metadata" not in match:
        return {}
    kind = "envoy.config.route.v3.FilterConfig"
    return {"typed_per_filter_config": {"envoy.filters.http.json_to_metadata": typed(kind, config={}, disabled=False)}}


def pinned(match: Json, test: Json) -> Json:
    """Only where the client names a version in a header."""
    return match | {"headers": [{"name": VERSION_HEADER, **test}]}


def explainers(model: str, version: str, served: Served) -> str:
    """Who explains a version; the version itself where it has no workers for that, which then says so."""
    return explainer_of(model) if version in served.get(explainer_of(model), ()) else model


def to_version(kind: str, model: str, version: str, policy: Traffic, role: Role = Role.PINNED) -> Json:
    """A route to one version, asked for by name: nobody stands in for it."""
    action = {"cluster": cluster(model, version), "path_rewrite": f"/{kind}/{model}/{version}"}
    return {
        **asked(action, patience(policy.timeout_s, fallback=False), role),
        "response_headers_to_add": [label(VERSION_HEADER, version)],
    }


def asked(action: Json, patience: Json, role: Role) -> Json:
    """A route to workers: `action` with its `patience`, counted in a role."""
    attempt_s = float(patience["retry_policy"]["per_try_timeout"].removesuffix("s"))
    whole_s = float(patience["timeout"].removesuffix("s"))
    return {
        # A worker may compute without a byte coming or going. (A route's own max_stream_duration would end `timeout`.)
        "route": action | patience | {"idle_timeout": seconds(whole_s + SLACK_S)},
        "metadata": counted(role=role.value),
        "request_headers_to_add": [
            label(TIMEOUT_HEADER, f"{attempt_s * 1000:.0f}", overwrite=True),
            label(ROLE_HEADER, role.value, overwrite=True),
        ],
    }


def to_explainer(model: str, version: str, served: Served, policy: Traffic) -> Json:
    """The same to those who explain a version."""
    workers = explainers(model, version, served)
    action = {"cluster": cluster(workers, version), "path_rewrite": f"/{EXPLAIN}/{workers}/{version}"}
    return {
        **asked(action, explaining(policy), Role.EXPLAIN),
        "response_headers_to_add": [label(VERSION_HEADER, version)],
    }


def explaining(policy: Traffic) -> Json:
    """Nobody stands in, for another version's explanation is one of another answer."""
    return patience(max(policy.timeout_s, EXPLAIN_TIMEOUT_S), fallback=False)


def to_explainers(model: str, served: Served, policy: Traffic) -> Json:
    """A route for explanations by weight: who explains the version that predicts for this user.

    No shadow gets a copy.
    """
    clusters = []
    for version, weight in ranges(policy.split):
        name = explainers(model, version, served)
        chosen = {VERSION_HEADER: version, WORKERS_HEADER: name}
        clusters.append(
            {
                "name": cluster(name, version),
                "weight": weight,
                "request_headers_to_add": [label(key, value, overwrite=True) for key, value in chosen.items()],
                "response_headers_to_add": [label(VERSION_HEADER, version)],
            }
        )
    action = {
        "weighted_clusters": {"clusters": clusters, "use_hash_policy": True},
        "hash_policy": [sticky(policy)],
        "path_rewrite": f"/{EXPLAIN}/%REQ({WORKERS_HEADER})%/%REQ({VERSION_HEADER})%",
    }
    return asked(action, explaining(policy), Role.EXPLAIN)


def to_split(kind: str, model: str, policy: Traffic, role: Role = Role.SPLIT) -> Json:
    """A route to versions by weight. Each names itself in a header, which the path is then made from.

    What is no prediction gets neither fallback nor copies.
    """
    predicts = role is Role.SPLIT
    guarded = predicts and bool(policy.fallback)
    clusters = [
        {
            "name": (guarded_cluster if guarded else cluster)(model, version),
            "weight": weight,
            "request_headers_to_add": [label(VERSION_HEADER, version, overwrite=True)],
            "response_headers_to_add": [label(VERSION_HEADER, version)],
        }
        for version, weight in ranges(policy.split)
    ]
    action = {
        "weighted_clusters": {"clusters": clusters, "use_hash_policy": True},
        "hash_policy": [sticky(policy)],
        "path_rewrite": f"/{kind}/{model}/%REQ({VERSION_HEADER})%",
        "request_mirror_policies": [mirror(model, *shadow) for shadow in policy.shadow.items()] if predicts else [],
    }
    route = asked(action, patience(policy.timeout_s, fallback=guarded), role)
    named = [label(EXPERIMENT_HEADER, policy.experiment, overwrite=True)] if policy.experiment else []
    return with_headers(route, named)


def to_log(model: str, policy: Traffic) -> Json:
    """A route for true labels: a worker of the model takes them to the prediction log, no matter of which version."""
    version = max(policy.split, key=lambda name: (policy.split[name], version_order(name)))
    action = {"cluster": cluster(model, version), "path_rewrite": f"/{PREDICT}/{model}/{version}{FEEDBACK}"}
    return asked(action, patience(policy.timeout_s, fallback=False), Role.OTHER)


def ranges(split: Mapping[str, float]) -> list[tuple[str, int]]:
    """Weights out of 10,000, newest version first.

    Envoy lays them side by side in this order and looks where the hash, modulo their sum, falls. With a constant sum
    and the newest version at the beginning, all that a growing newest version had stays inside its range.
    """
    versions = sorted((v for v, weight in split.items() if weight > 0), key=version_order, reverse=True)
    total = sum(split[version] for version in versions)
    ends = [0, *(round(end / total * TOTAL_WEIGHT) for end in accumulate(split[version] for version in versions))]
    return [(v, end - start) for v, (start, end) in zip(versions, pairwise(ends), strict=True) if end > start]


def sticky(policy: Traffic) -> Json:
    """What is hashed: the experiment's name before the header's value. Without the header, Envoy draws at random."""
    salted = {"pattern": {"regex": "^(.*)$"}, "substitution": f"{policy.experiment}/\\1"}
    return {"header": {"header_name": policy.sticky, "regex_rewrite": salted}}


def mirror(model: str, version: str, percent: float) -> Json:
    """Copies go through the fallback's listener, which writes their version into the path."""
    share = {"numerator": round(percent * 10_000), "denominator": "MILLION"}
    copied = label(SHADOW_HEADER, version, overwrite=True)
    return {
        "cluster": FALLBACK,
        "runtime_fraction": {"default_value": share},
        "request_headers_mutations": [{"append": copied}],
    }


def patience(timeout_s: float, *, fallback: bool, last: bool = False) -> Json:
    """How long to wait, and what to try again.

    With a fallback, the version has half of the time, the last in the list all that is left, and a failure goes to the
    fallback listener, the second part of its guarded cluster. Without one, only what was never begun is tried again.
    """
    if not fallback:
        retry: Json = {"retry_on": "connect-failure,reset-before-request", "num_retries": 1} | elsewhere()
        retry["per_try_timeout"] = seconds(timeout_s)
        return {"timeout": seconds(timeout_s + LATER_S), "retry_policy": retry}
    kind = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    retry = {
        "retry_on": "retriable-status-codes,reset,connect-failure",
        "retriable_status_codes": FAILED_CODES,
        "num_retries": 1,
        "per_try_timeout": seconds(timeout_s if last else timeout_s / 2),
        "retry_priority": extension("envoy.retry_priorities.previous_priorities", kind, update_frequency=1),
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    }
    return {"timeout": seconds(timeout_s + LATER_S), "retry_policy": retry}


def elsewhere() -> Json:
    """Where there are several servers, the second try goes to another one."""
    kind = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    predicate = extension("envoy.retry_host_predicates.previous_hosts", kind)
    return {"retry_host_predicate": [predicate], "host_selection_retry_max_attempts": 3}


def label(name: str, value: str, *, overwrite: bool = False) -> Json:
    """A header; who sets it first keeps it, unless it is to be overwritten."""
    action = "OVERWRITE_IF_EXISTS_OR_ADD" if overwrite else "ADD_IF_ABSENT"
    return {"header": {"key": name, "value": value}, "append_action": action}


def refusals(served: Served) -> Iterator[Json]:
    """What is left: models and paths that are not there."""
    models = ", ".join(models_in(served)) or "none"
    for kind, verb in VERBS.items():
        for path in (f"/{verb}", f"/v1/{verb}", *([FEEDBACK] if kind == "predictions" else [])):
            detail = f"no model of the name that the body gives (or {MAIN_MODEL} if none); served: {models}"
            yield {"match": {"path": path}, **no_such("model", detail), **looks_into_body({"dynamic_metadata": []})}
        yield {"match": {"prefix": f"/{kind}/"}, **no_such("model", f"no such model; served: {models}")}
    for model in models_in(served):
        verbs = " and ".join(f":{verb}" for verb in VERBS.values())
        detail = f"{model} takes {verbs} after its name, and GET on /v1/models/{model}"
        yield {"match": {"safe_regex": {"regex": f"/v1/models/{re.escape(model)}[:/].*"}}, **no_such("path", detail)}
    yield {"match": {"prefix": "/v1/models/"}, **no_such("model", f"no such model; served: {models}")}
    detail = f"/embed is answered by a model named {openapi.EMBED_MODEL}, and there is none; served: {models}"
    yield {"match": {"path": "/embed"}, **no_such("model", detail)}
    detail = "no such path; there are: /predict, /v1/predict, /predictions/MODEL, /v1/models/MODEL:predict, /explain, "
    detail += "/explanations/MODEL, /embed, /feedback, /v1/models, /v2, /healthz, /health, /ready, /metrics, "
    detail += openapi.PATH
    yield {"match": {"prefix": "/"}, **no_such("path", detail)}


def no_such_version(model: str, served: Served) -> Json:
    versions = ", ".join(sorted(served[model], key=version_order))
    return no_such("version", f"no such version of {model}; served: {versions}")


def no_such(what: str, detail: str) -> Json:
    return answer(404, {"error": f"no_such_{what}", "detail": detail})


def answer(code: int, content: Json) -> Json:
    """An answer of Envoy's own."""
    return {"direct_response": {"status": code, "body": {"inline_string": json.dumps(content)}}}


def fallback_routes(served: Served, policies: Mapping[str, Traffic], further: Iterable[Json] = ()) -> Json:
    """The inner listener's routes: copies for shadows, then each version's next fallback, then `further` ones."""
    routes: list[Json] = []
    for model in models_in(served):
        routes += [shadow_route(model, version, policies[model]) for version in sorted(served[model])]
        for version in sorted(served[model]):
            routes += fallback_routes_of(model, version, policies[model], served)
        routes.append(fallback_of_withdrawn(model, policies[model]))
    return route_configuration(FALLBACK, [*routes, *further])


def shadow_route(model: str, version: str, policy: Traffic) -> Json:
    match = path_of(model, "[^/]+") | {"headers": [{"name": SHADOW_HEADER, "string_match": {"exact": version}}]}
    action = {"cluster": shadow_cluster(model, version), **rewrite(model, version)}
    return {"match": match, **asked(action, patience(policy.timeout_s, fallback=False), Role.SHADOW)}


def fallback_routes_of(model: str, failed: str, policy: Traffic, served: Served) -> Iterator[Json]:
    """Where a request goes that this version failed."""
    match = path_of(model, re.escape(failed))
    fallbacks = policy.fallbacks_after(failed)
    if fallbacks[:1] == [STALE]:
        yield from stale_route(model, failed, policy, served)
    elif fallbacks:
        yield fallback_route(match, model, failed, policy, fallbacks)
        return
    yield {"match": match, "direct_response": {"status": 503}}


def fallback_of_withdrawn(model: str, policy: Traffic) -> Json:
    """Where a request goes that was under way to a version when its routes were taken away."""
    match = path_of(model, "[^/]+")
    if not policy.stand_ins:
        return {"match": match, "direct_response": {"status": 503}}
    return fallback_route(match, model, None, policy, policy.fallback)


def stale_route(model: str, failed: str, policy: Traffic, served: Served) -> Iterator[Json]:
    """To a worker of another version, which computes nothing, and looks into the cache.

    There is none without another version. Explanations are not kept.
    """
    used = {*policy.split, *policy.fallback}
    others = sorted(set(served[model]) - {failed}, key=lambda v: (v not in used, version_order(v)), reverse=True)
    if not others:
        return
    action = {"cluster": cluster(model, others[0]), **rewrite(model, others[0])}
    route = asked(action, patience(policy.timeout_s, fallback=False), Role.OTHER)
    marks = [label(FAILED_HEADER, failed), label(STALE_HEADER, "1", overwrite=True)]
    yield {
        "match": {"path": f"/{PREDICT}/{model}/{failed}"},
        **with_headers(route, marks),
        "response_headers_to_add": [label(FALLBACK_HEADER, STALE)],
    }


def fallback_route(match: Json, model: str, failed: str | None, policy: Traffic, fallbacks: list[str]) -> Json:
    """To the next version."""
    version = fallbacks[0]
    action = {"cluster": guarded_cluster(model, version), **rewrite(model, version)}
    # Each fallback has half of the time that the one above had.
    timeout_s = policy.timeout_s / 2 ** (policy.fallback.index(version) + 1)
    patient = patience(timeout_s, fallback=True, last=len(fallbacks) == 1)
    return {
        "match": match,
        **with_headers(asked(action, patient, Role.FALLBACK), [label(FAILED_HEADER, failed)] if failed else []),
        "response_headers_to_add": [label(VERSION_HEADER, version), label(FALLBACK_HEADER, version)],
    }


def with_headers(route: Json, headers: list[Json]) -> Json:
    """The same route, whose requests get further headers."""
    return route | {"request_headers_to_add": [*route.get("request_headers_to_add", []), *headers]}


def path_of(model: str, version_regex: str) -> Json:
    return {"safe_regex": {"regex": f"^/{PREDICT}/{re.escape(model)}/{version_regex}$"}}


def rewrite(model: str, version: str) -> Json:
    return {"regex_rewrite": {"pattern": {"regex": "^.*$"}, "substitution": f"/{PREDICT}/{model}/{version}"}}
