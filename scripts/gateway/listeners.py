"""Envoy's start configuration: the open listener with its guards, the inner one, and the fixed clusters."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from marctl.gateway import batch, secrets, web
from marctl.gateway.clusters import address_of, fallback_cluster, no_worker_cluster, plain_cluster
from marctl.gateway.counts import attempt_logs, histogram_settings, refusal_log
from marctl.gateway.failure_log import failure_log
from marctl.gateway.health import WITHOUT_WORKERS
from marctl.gateway.names import (
    ADMIN,
    BODY,
    BODY_MODEL,
    COUNTED_HEADER,
    FALLBACK,
    FALLBACK_HEADER,
    GATEWAY,
    LIMIT,
    MANAGEMENT,
    METRICS,
    MODEL_HEADER,
    ORDERS,
    PROBES,
    PROTOCOL_HEADER,
    RESOLVE,
    SHADOW_HEADER,
    WEB,
    WORKERS,
    Json,
    extension,
    seconds,
    socket_address,
    typed,
    watched,
)
from marctl.gateway.routes import CORS, LONGEST_TIMEOUT_S, RETRY_AFTER_S, SLACK_S, metrics_routes
from marctl.gateway.secrets import CLIENT_HEADER
from marctl.gateway.settings import GatewaySettings
from marctl.gateway.traffic import LUA
from marctl_handlers.core.messages import EXPERIMENT_HEADER, ROLE_HEADER, SAMPLE_HEADER

HTTP = "envoy.extensions.filters.http"
ROUTER = "envoy.filters.http.router"
TYPES = "type.googleapis.com"
TRAFFIC_FILE = "traffic.json"
GRPC_SERVICES = Path(__file__).parent / "grpc" / "services.pb"
"""The .proto files beside it, compiled: python -m grpc_tools.protoc --include_imports --descriptor_set_out ..."""
HEADERS_KB = 7
"""TorchServe takes 8 (Netty's HttpServerCodec), and Envoy adds some of its own."""
CLIENTS_COUNTED = 10_000
"""Buckets of the rate limit that are kept at once; the client that was away longest loses its own."""
PROBE_CONNECTIONS = 64
"""To the listener for probes."""
METRICS_CONNECTIONS = 16
"""To the listener for figures."""
PAGES = 8
"""/metrics and /health under way at once: each costs Envoy's main thread or TorchServe some milliseconds, and a page is
large. More get 503."""
INNER_PROBES = "inner-probes"
"""The same pages inside Envoy, for the open listener."""
LONGEST_STREAM_S = LONGEST_TIMEOUT_S + SLACK_S
HEAP = "envoy.resource_monitors.fixed_heap"
TRACKED_BYTES = 16
"""Streams that hold at least 2 to this power of bytes are ended when the heap is nearly full, the largest first."""

VERSION_CLUSTERS = {"safe_regex": {"regex": r"^cluster\.[^|]*\|.*"}}

LOCAL_ERRORS = {
    200: None,
    400: ("bad_request", "the request breaks HTTP's rules"),
    401: ("no_api_key", "send a valid key in the header x-api-key"),
    403: None,
    404: None,
    405: None,
    408: ("request_too_slow", "the request did not arrive in time"),
    413: ("too_large", "the body is larger than {body_bytes} bytes; send less at a time"),
    415: None,
    429: ("too_many_requests", "this client's rate is used up; ask more slowly"),
    431: ("headers_too_large", "the headers are larger than the gateway takes"),
    503: ("unavailable", "no version of this model can answer now; try again"),
    504: ("out_of_time", "no answer came within the time that this model has"),
}
"""Code to the error that Envoy tells; None where its routes bring their own JSON."""
LOG_LINE = {"time": "%Y-%m-%dT%T.%e%z", "level": "%l", "part": "envoy", "logger": "%n", "message": "%j"}
"""Of Envoy's own log."""
ASKED = f"%REQ({MODEL_HEADER})% %REQ({COUNTED_HEADER})%"
"""The model and version that a request was routed to."""
UNAVAILABLE = {
    "UH": (
        "no_worker",
        f"{ASKED} has no worker that can answer; try again. Its workers are shown by marctl status, and started by "
        f"marctl scale {ASKED} WORKERS",
    ),
    "UO": (
        "unavailable",
        f"too many requests to {ASKED} are under way; try again. The limit is requests_per_version in the gateway's "
        "configuration",
    ),
    "OM": ("overloaded", "the gateway's memory is nearly full; try again later"),
}
"""Why a request got a 503, by Envoy's response flag: a finer error than that of LOCAL_ERRORS."""
DRAINING: Json = {
    "error": "draining",
    "detail": "this server is being taken out of service: it answers what it gets, and should be sent nothing new. "
    "It is put back into service by marctl drain --undo",
    "status": "not ready",
}
"""What readiness says while Envoy drains."""


def bootstrap(files: Path, admin_port: int, gateway_port: int, torchserve: Json, settings: GatewaySettings) -> Json:
    """`files`: the folder that Envoy watches; `torchserve`: the URLs of its three ports."""
    admin = f"http://127.0.0.1:{admin_port}"
    return {
        "node": {"id": GATEWAY, "cluster": GATEWAY},
        "admin": {"address": socket_address("127.0.0.1", admin_port)},
        "bootstrap_extensions": [
            extension(
                "envoy.bootstrap.internal_listener",
                "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            )
        ],
        # What Envoy itself would count of each version's clusters nobody reads: scripts/gateway/counts.py has its own.
        "stats_config": {**histogram_settings(), "stats_matcher": {"exclusion_list": {"patterns": [VERSION_CLUSTERS]}}},
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        "cluster_manager": {"enable_deferred_cluster_creation": True},
        "application_log_config": {"log_format": {"json_format": LOG_LINE}},
        "overload_manager": overload_manager(settings),
        "dynamic_resources": {"cds_config": watched(files, "clusters.json")},
        "static_resources": {
            "listeners": [
                gateway_listener(files, gateway_port, settings),
                fallback_listener(files, settings),
                probe_listener(files, settings),
                inner_probe_listener(files, settings),
                *([web_listener(files, settings)] if settings.page else []),
                *([metrics_listener(files, settings)] if settings.metrics_port else []),
            ],
            "clusters": [
                fallback_cluster(),
                no_worker_cluster(),
                plain_cluster(PROBES, {"envoy_internal_address": {"server_listener_name": INNER_PROBES}}),
                plain_cluster(MANAGEMENT, address_of(torchserve["management"]), PAGES),
                plain_cluster(METRICS, address_of(torchserve["metrics"]), PAGES),
                plain_cluster(ADMIN, address_of(admin), PAGES),
                *batch.clusters(settings),
                *web.clusters(settings),
            ],
        },
    }


def overload_manager(settings: GatewaySettings) -> Json:
    """Limits of all connections and of the heap, with what is done near them, each beyond a share of the limit."""
    monitors = "envoy.extensions.resource_monitors"
    connections = extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        f"{monitors}.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=settings.connections,
    )
    heap = extension(HEAP, f"{monitors}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=settings.memory_mb << 20)
    actions = {
        "shrink_heap": {"threshold": {"value": 0.8}},
        # From here on more and more of the largest streams, at the end all of them.
        "reset_high_memory_stream": {"scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}},
        "stop_accepting_requests": {"threshold": {"value": 0.95}},
        "stop_accepting_connections": {"threshold": {"value": 0.98}},
    }
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [connections, heap],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": TRACKED_BYTES},
        "actions": [
            {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": HEAP, **trigger}]}
            for name, trigger in actions.items()
        ],
    }


def gateway_listener(files: Path, port: int, settings: GatewaySettings) -> Json:
    manager = connection_manager(GATEWAY, files, settings, gateway_filters(files, settings)) | {
        "use_remote_address": True,
        "early_header_mutation_extensions": [without_orders()],
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_timeout": seconds(settings.request_timeout_s),
        "request_headers_timeout": seconds(settings.request_timeout_s / 3),
        "max_request_headers_kb": HEADERS_KB,
        # What Envoy advises where clients are not known: one connection can hold that much and no more.
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 64 << 10,
            "initial_connection_window_size": 1 << 20,
        },
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_header_transformation": "PASS_THROUGH",
    }
    manager["access_log"] = [*manager["access_log"], failure_log(files)]
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if settings.tls:
        chain["transport_socket"] = secrets.tls_socket(files)  # type: ignore[assignment]  # a chain's values differ
    return {
        "name": GATEWAY,
        "address": socket_address(settings.address, port),
        # Two gateways on one port would share its connections between them.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": settings.body_bytes,
        # The inspector waits for a connection's first bytes, with or without TLS; one that never sends any is closed.
        "listener_filters": [
            extension(
                "envoy.filters.listener.tls_inspector",
                "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            )
        ],
        "listener_filters_timeout": seconds(settings.request_timeout_s / 3),
        "filter_chains": [chain],
    }


def without_orders() -> Json:
    """Takes away what no client may say: orders to Envoy (timeouts, retries, inner routes), and marks for the log."""
    marks = (SHADOW_HEADER, FALLBACK_HEADER, PROTOCOL_HEADER, SAMPLE_HEADER, ROLE_HEADER, EXPERIMENT_HEADER)
    prefixes = ("x-envoy-", ORDERS, *marks)
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes],
    )


def fallback_listener(files: Path, settings: GatewaySettings) -> Json:
    manager = connection_manager(FALLBACK, files, settings, [pages(), *resolving(files), to_workers()])
    return {
        "name": FALLBACK,
        "internal_listener": {},
        "drain_type": "MODIFY_ONLY",
        "per_connection_buffer_limit_bytes": settings.body_bytes,
        "ignore_global_conn_limit": True,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def probe_listener(files: Path, settings: GatewaySettings) -> Json:
    """/healthz and /ready on a port of their own, past every limit but one of its own."""
    limit = connection_limit(PROBES, PROBE_CONNECTIONS)
    return {
        "name": PROBES,
        "address": socket_address(settings.address, settings.probe_port),
        "enable_reuse_port": False,
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [{"filters": [limit, probe_pages(files, settings)]}],
    }


def inner_probe_listener(files: Path, settings: GatewaySettings) -> Json:
    return {
        "name": INNER_PROBES,
        "internal_listener": {},
        "drain_type": "MODIFY_ONLY",
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [{"filters": [probe_pages(files, settings)]}],
    }


def probe_pages(files: Path, settings: GatewaySettings) -> Json:
    manager = connection_manager(PROBES, files, settings, [not_ready_while_draining(), plain_router()])
    # Whoever asks now and then need not keep one of a few connections.
    return {"name": "http", "typed_config": manager | {"common_http_protocol_options": {"idle_timeout": "5s"}}}


def not_ready_while_draining() -> Json:
    """Readiness is 503 from /healthcheck/fail on Envoy's admin page to /healthcheck/ok, whatever else is known."""
    return extension(
        "envoy.filters.http.health_check",
        f"{HTTP}.health_check.v3.HealthCheck",
        pass_through_mode=True,
        headers=[{"name": ":path", "string_match": {"exact": "/ready"}}],
    )


def metrics_listener(files: Path, settings: GatewaySettings) -> Json:
    """/metrics for a Prometheus on another machine. Its routes never change."""
    manager = connection_manager(METRICS, files, settings, [plain_router()])
    del manager["rds"]
    manager["route_config"] = metrics_routes()
    return {
        "name": METRICS,
        "address": socket_address(settings.address, settings.metrics_port),
        "enable_reuse_port": False,
        "ignore_global_conn_limit": True,
        "filter_chains": [
            {
                "filters": [
                    connection_limit(METRICS, METRICS_CONNECTIONS),
                    {"name": "http", "typed_config": manager},
                ]
            }
        ],
    }


def web_listener(files: Path, settings: GatewaySettings) -> Json:
    """The files for a browser, inside Envoy: they are sent as they are, whatever their length."""
    manager = connection_manager(WEB, files, settings, [plain_router()])
    del manager["rds"], manager["local_reply_config"]
    manager["route_config"] = web.file_routes()
    return {
        "name": WEB,
        "internal_listener": {},
        "drain_type": "MODIFY_ONLY",
        "ignore_global_conn_limit": True,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def plain_router() -> Json:
    return extension(ROUTER, f"{HTTP}.router.v3.Router")


def connection_limit(name: str, connections: int) -> Json:
    return extension(
        "envoy.filters.network.connection_limit",
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        stat_prefix=name,
        max_connections=connections,
    )


def connection_manager(name: str, files: Path, settings: GatewaySettings, filters: list[Json]) -> Json:
    return typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        rds={"route_config_name": name, "config_source": watched(files, f"{name}.json")},
        http_filters=filters,
        access_log=[refusal_log()],
        local_reply_config=local_replies(settings),
        # Of what stalls, on the way in or out; routes to workers, which may compute for long, have their own.
        common_http_protocol_options={
            "idle_timeout": seconds(settings.idle_timeout_s),
            "max_stream_duration": seconds(LONGEST_STREAM_S),
        },
        stream_idle_timeout=seconds(settings.request_timeout_s),
        stream_flush_timeout=seconds(settings.request_timeout_s),
        # A request id is the client's own or a plain UUID: nothing of Envoy's is written into it.
        request_id_extension={
            "typed_config": typed("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", pack_trace_reason=False)
        },
    )


def local_replies(settings: GatewaySettings) -> Json:
    """Envoy's own errors in the one form of all errors; the Open Inference Protocol and gRPC know one text only."""
    over_grpc = header_filter("te", {"exact": "trailers"})
    open_protocol = [header_filter(":path", {"prefix": "/v2/"}), header_filter(PROTOCOL_HEADER, {"exact": "open"})]
    told: list[tuple[int, list[Json], tuple[str, str]]]
    told = [(503, [{"response_flag_filter": {"flags": [flag]}}], words) for flag, words in UNAVAILABLE.items()]
    told += [(code, [], words) for code, words in LOCAL_ERRORS.items() if words is not None]
    in_one_form, in_one_text, for_grpc = [], [], []
    for code, where, (error, words) in told:
        detail = words.format(body_bytes=f"{settings.body_bytes:,}")
        text = f"{error}: {detail}"
        for_grpc.append(mapper(code, [*where, over_grpc], {"text_format_source": {"inline_string": text}}))
        in_the_protocol = [*where, {"or_filter": {"filters": open_protocol}}]
        in_one_text.append(mapper(code, in_the_protocol, {"json_format": {"error": text}}))
        in_one_form.append(mapper(code, where, {"json_format": {"error": error, "detail": detail}}))
    as_it_is = [mapper(code, [], OWN_WORDS) for code, words in LOCAL_ERRORS.items() if words is None]
    readiness = header_filter(":path", {"safe_regex": {"regex": "(/v2/.*)?/ready|/v1/models/[^/:]*"}})
    draining = mapper(503, [{"response_flag_filter": {"flags": ["LH"]}}], {"json_format": DRAINING})
    of_probes = [draining, mapper(503, [readiness], OWN_WORDS)]
    return {"mappers": [*of_probes, *for_grpc, *in_one_text, *in_one_form, *as_it_is]}


OWN_WORDS: Json = {
    "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
    "content_type": "application/json",
}


def header_filter(name: str, match: Json) -> Json:
    return {"header_filter": {"header": {"name": name, "string_match": match}}}


def mapper(code: int, where: list[Json], body: Json) -> Json:
    """The body of a code, where all these filters hold."""
    comparison = {"op": "EQ", "value": {"default_value": code, "runtime_key": f"gateway.{code}"}}
    is_code: Json = {"status_code_filter": {"comparison": comparison}}
    wait = {"header": {"key": "retry-after", "value": str(RETRY_AFTER_S)}, "append_action": "ADD_IF_ABSENT"}
    return {
        "filter": {"and_filter": {"filters": [is_code, *where]}} if where else is_code,
        "body_format_override": body,
        "headers_to_add": [wait] if code in (429, 503) else [],
    }


def gateway_filters(files: Path, settings: GatewaySettings) -> list[Json]:
    """In the order in which a request passes them: who asks, how often, how much, for which model, and who answers."""
    # A browser asks beforehand whether a page may ask, and sends no key with that.
    filters = [extension(CORS, f"{HTTP}.cors.v3.Cors")] if settings.allowed_origins else []
    if settings.api_keys:
        filters.append(secrets.api_key_filter(files))
    by_key, limit = bool(settings.api_keys), settings.rate_limit
    if limit:
        filters.append(rate_limit("requests", bucket(limit.requests_per_s, limit.burst), by_key=by_key))
    size = extension("envoy.filters.http.buffer", f"{HTTP}.buffer.v3.Buffer", max_request_bytes=settings.body_bytes)
    filters += [*grpc(settings), pages(), size]
    if limit and limit.kilobytes_per_s:
        per_s = 1024 * limit.kilobytes_per_s
        # Behind the filter that waits for the whole body, which gives one that came in chunks its length.
        charged = bucket(per_s, max(per_s, settings.body_bytes))
        filters.append(rate_limit("bytes", charged, by_key=by_key, hits={"format": "%REQ(content-length)%"}))
    return [*filters, body_model(), *(found | {"disabled": True} for found in resolving(files)), to_workers()]


def resolving(files: Path) -> list[Json]:
    """The filters that look up who answers. Their code, and the tables in it, stand in files that Envoy watches."""
    return [
        {"name": name, "config_discovery": {"config_source": watched(files, file), "type_urls": [f"{TYPES}/{LUA}"]}}
        for name, file in ((RESOLVE, TRAFFIC_FILE), (WORKERS, WITHOUT_WORKERS))
    ]


def grpc(settings: GatewaySettings) -> list[Json]:
    """Turns gRPC calls into HTTP requests, and their answers back; off except where a route asks for it."""
    status = extension(
        "envoy.filters.http.lua.grpc", f"{HTTP}.lua.v3.Lua", default_source_code={"inline_string": script("grpc")}
    )
    transcoder = extension(
        "envoy.filters.http.grpc_json_reverse_transcoder",
        f"{HTTP}.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
        descriptor_path=str(GRPC_SERVICES),
        max_request_body_size=settings.body_bytes,
        # What a message leaves out must have its place in the path, if an empty one.
        request_json_print_options={"always_print_primitive_fields": True},
    )
    return [filter_ | {"disabled": True} for filter_ in (status, transcoder)]


def to_workers() -> Json:
    """The router; a script sees each answer of TorchServe before it is decided whether it is a failure."""
    translate = extension("envoy.filters.http.lua", LUA, default_source_code={"inline_string": script("translate")})
    codec = extension("envoy.filters.http.upstream_codec", f"{HTTP}.upstream_codec.v3.UpstreamCodec")
    return extension(
        ROUTER,
        f"{HTTP}.router.v3.Router",
        suppress_envoy_headers=True,
        upstream_log=attempt_logs(),
        upstream_http_filters=[translate, codec],
    )


def pages() -> Json:
    """The scripts of the pages that Envoy puts together; routes choose one by name."""
    codes = {name: {"inline_string": script(name)} for name in ("metrics", "health", "ready")}
    return extension("envoy.filters.http.lua", f"{HTTP}.lua.v3.Lua", source_codes=codes)


@cache
def script(name: str) -> str:
    """One part of filters.lua."""
    parts = re.split(r"^---- (\w+): .* ----$", (Path(__file__).parent / "filters.lua").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


def bucket(per_s: int, burst: int | None) -> Json:
    return {"max_tokens": burst or per_s, "tokens_per_fill": per_s, "fill_interval": "1s"}


def rate_limit(name: str, tokens: Json, *, by_key: bool, hits: Json | None = None) -> Json:
    """A bucket per client, of which each request takes one token, or as many as `hits` says."""
    by_name = {"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": "client"}}
    everything = {"default_value": {"numerator": 100}}
    taken = {} if hits is None else {"hits_addend": hits}
    return extension(
        f"{LIMIT}.{name}",
        f"{HTTP}.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="rate_limit",
        filter_enabled=everything,
        filter_enforced=everything,
        rate_limits=[{"actions": [by_name if by_key else {"remote_address": {}}], **taken}],
        descriptors=[{"entries": [{"key": "client" if by_key else "remote_address"}], "token_bucket": tokens}],
        max_dynamic_descriptors=CLIENTS_COUNTED,
        always_consume_default_token_bucket=False,
        rate_limited_as_resource_exhausted=True,
    )


def body_model() -> Json:
    """Lifts the body's `model` to where routes see it; off except where a route asks for it."""
    rule = {"selectors": [{"key": "model"}], "on_present": {"metadata_namespace": BODY, "key": BODY_MODEL}}
    filter_ = extension(
        "envoy.filters.http.json_to_metadata",
        f"{HTTP}.json_to_metadata.v3.JsonToMetadata",
        request_rules={"rules": [rule], "allow_content_types_regex": {"regex": ".*"}},
    )
    return filter_ | {"disabled": True}
