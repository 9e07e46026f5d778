"""A line in Envoy's log for a request that the gateway could not bring to an answer: no worker, no time, too many.

What a worker itself answers is told by the worker. In an outage a line a second is enough, so a bucket limits them; the
counts (scripts/gateway/counts.py) miss nothing. No line holds a path, a header or a body of a client's, its request id
aside.
"""

from __future__ import annotations

from pathlib import Path

from marctl.gateway.names import COUNTED_HEADER, MODEL_HEADER, Json, extension, typed

LIMIT_FILE = "failures.json"
BUCKET = "failures"
FLAGS = ["UH", "UO", "UF", "UT", "UC", "UR", "UPE", "LR", "OM"]
"""Envoy's response flags of failures that no client caused."""
BURST = 10
LINE = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "level": "warning",
    "part": "envoy",
    "message": "a request failed",
    "kind": "%RESPONSE_FLAGS%",
    "code": "%RESPONSE_CODE%",
    "duration_ms": "%DURATION%",
    "request_id": "%REQ(X-REQUEST-ID):128%",
    "model": f"%REQ({MODEL_HEADER})%",
    "version": f"%REQ({COUNTED_HEADER})%",
}


def failure_log(files: Path) -> Json:
    """Logger of a listener. `files`: the folder that holds LIMIT_FILE."""
    kind = "envoy.extensions.access_loggers"
    source = {"resource_api_version": "V3", "path_config_source": {"path": str(files / LIMIT_FILE)}}
    limited = extension(
        "envoy.access_loggers.extension_filters.process_ratelimit",
        f"{kind}.filters.process_ratelimit.v3.ProcessRateLimitFilter",
        dynamic_config={"resource_name": BUCKET, "config_source": source},
    )
    # The limit last: only what would be told takes from the bucket.
    filters = [{"response_flag_filter": {"flags": FLAGS}}, {"extension_filter": limited}]
    logger = extension(
        "envoy.access_loggers.stderr", f"{kind}.stream.v3.StderrAccessLog", log_format={"json_format": LINE}
    )
    return logger | {"filter": {"and_filter": {"filters": filters}}}


def limit() -> Json:
    """LIMIT_FILE: a line a second, and some at once."""
    bucket = typed("envoy.type.v3.TokenBucket", max_tokens=BURST, tokens_per_fill=1, fill_interval="1s")
    named = typed("envoy.service.discovery.v3.Resource", name=BUCKET, resource=bucket)
    return {"version_info": "1", "resources": [named]}
