"""Where a request's time goes."""

from __future__ import annotations

import pytest

from loadtest.stages import TORCHSERVE, stages, totals

PAGE = """# HELP ts_inference_requests_total Torchserve prometheus counter metric
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="mcqa",model_version="1.0",hostname="a",} 10.0
ts_inference_requests_total{model_name="mcqa",model_version="2.0",hostname="a",} 5.0
ts_inference_requests_total{model_name="embed",model_version="2.0",hostname="a",} 99.0
# HELP ts_queue_latency_microseconds Torchserve prometheus counter metric
# TYPE ts_queue_latency_microseconds counter
ts_queue_latency_microseconds{model_name="mcqa",model_version="1.0",hostname="a",} 2500.5
handler_batches_total{model="mcqa",version="1.0"} 150.0
"""


def test_counts_are_summed_over_a_models_versions_only() -> None:
    found = totals(PAGE, TORCHSERVE, "mcqa")
    assert (found["requests"], found["batches"], found["queue_us"]) == (15, 150, 2500.5)


def test_parts_add_up_to_what_the_client_saw() -> None:
    counts = dict.fromkeys(TORCHSERVE.values(), 0.0)
    counts |= {"requests": 100, "torchserve_us": 100 * 8000, "queue_us": 100 * 3000, "batches": 10, "handler_s": 0.04}
    counts |= {"gateway_requests": 100, "gateway_ms": 1000, "upstream_requests": 100, "upstream_ms": 900}
    found = {stage.name: stage.ms for stage in stages(12.5, counts)}
    assert sum(found.values()) == pytest.approx(12.5)
    assert found["client and its sockets"] == 2.5
    assert (found["gateway (Envoy)"], found["TorchServe's HTTP"], found["TorchServe's queue"]) == (1, 1, 3)
    assert (found["between TorchServe and its worker"], found["worker: the batch's handler"]) == (1, 4)


def test_without_a_gateway_its_parts_are_left_out() -> None:
    found = stages(5.0, {"requests": 10, "torchserve_us": 40_000, "queue_us": 10_000, "batches": 0, "handler_s": 0})
    assert not any("gateway" in stage.name for stage in found)
    assert sum(stage.ms for stage in found) == pytest.approx(5.0)


def test_without_the_gateways_own_counts_its_part_is_the_clients() -> None:
    counts = {"requests": 10, "torchserve_us": 40_000, "upstream_requests": 10, "upstream_ms": 50}
    found = {stage.name: stage.ms for stage in stages(9.0, counts)}
    assert (found["client, its sockets and the gateway"], found["TorchServe's HTTP"]) == (4, 1)
