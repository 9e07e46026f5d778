"""The way to the batch service, where there is one."""

from __future__ import annotations

from marctl.gateway.clusters import address_of, plain_cluster
from marctl.gateway.names import Json, seconds
from marctl.gateway.settings import GatewaySettings

BATCH = "batch"
PATHS = "/v1/batch(_predict|/[^/]+)?"
REQUESTS = 64
"""Under way at once: the service takes and tells jobs, and computes nothing."""
TIMEOUT_S = 10.0


def routes(settings: GatewaySettings) -> list[Json]:
    if settings.batch is None:
        return []
    action = {"cluster": BATCH, "timeout": seconds(TIMEOUT_S)}
    return [{"match": {"safe_regex": {"regex": PATHS}}, "route": action}]


def clusters(settings: GatewaySettings) -> list[Json]:
    if settings.batch is None:
        return []
    return [plain_cluster(BATCH, address_of(f"http://{settings.batch}"), REQUESTS)]
