"""Workers' figures are written by real processes here, each with files of its own, as prometheus_client needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from handlers.torchserve.metrics import FILE_BYTES, FOLDER_VARIABLE, KINDS, reserve

WORKER = """
import sys, time
from handlers.core.messages import Reply, Request
from handlers.torchserve.metrics import WorkerMetrics, reserve

class Parts:
    model_seconds = 0.0
    counted = {"handler_cache_hits_total": 0, "handler_cache_asking": 1}
    def totals(self):
        return self.counted

def batch(codes, model_s=0.0, waits_ms=()):
    now = time.time() * 1000
    headers = [{"x-request-start-ms": f"{now - wait:.3f}"} for wait in waits_ms] + [{}] * (len(codes) - len(waits_ms))
    def answer(requests):
        parts.model_seconds += model_s
        return [Reply(b"", code) for code in codes]
    return metrics.watch(answer, [Request(b"", "id", headers=h) for h in headers])

reserve()
parts = Parts()
metrics = WorkerMetrics("quiz", "1.0", parts)
"""


def worker(folder: Path, code: str) -> str:
    """What a worker process printed; it has ended then."""
    program = WORKER + textwrap.dedent(code)
    environ = {**os.environ, FOLDER_VARIABLE: str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def page(folder: Path) -> dict[str, float]:
    """Series to value, summed over all workers."""
    from prometheus_client import generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    class Merged:
        def collect(self) -> object:
            return MultiProcessCollector.merge(sorted(map(str, folder.glob("*.db"))))

    lines = generate_latest(Merged()).decode().splitlines()  # type: ignore[arg-type]  # `collect` is all it asks for
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


OF_QUIZ = 'model="quiz",version="1.0"'


def test_two_workers_batches_add_up(tmp_path: Path) -> None:
    worker(tmp_path, "batch([200, 200, 422], model_s=0.03)")
    worker(tmp_path, "batch([200] * 32, model_s=0.3); batch([503])")
    found = page(tmp_path)
    assert found['batcher_requests_total{model="quiz",status="200",version="1.0"}'] == 34
    assert found['batcher_requests_total{model="quiz",status="422",version="1.0"}'] == 1
    sizes = {
        le: found[f'batcher_batch_size_bucket{{le="{le}",{OF_QUIZ}}}'] for le in ("1.0", "4.0", "16.0", "32.0", "+Inf")
    }
    assert sizes == {"1.0": 1, "4.0": 2, "16.0": 2, "32.0": 3, "+Inf": 3}
    assert found[f"batcher_batch_size_sum{{{OF_QUIZ}}}"] == 36
    assert found[f'batcher_inference_time_seconds_bucket{{le="0.05",{OF_QUIZ}}}'] == 1
    assert found[f"batcher_inference_time_seconds_count{{{OF_QUIZ}}}"] == 2, "the third batch never asked the model"
    assert found[f"handler_batches_total{{{OF_QUIZ}}}"] == 3
    assert found[f"handler_requests_total{{{OF_QUIZ}}}"] == 36
    assert found[f"handler_errors_total{{{OF_QUIZ}}}"] == 2
    assert found[f"batcher_inflight_batches{{{OF_QUIZ}}}"] == 0


def test_waits_are_counted_from_the_gateways_start_where_it_is_known(tmp_path: Path) -> None:
    worker(tmp_path, "batch([200, 200, 200], waits_ms=[30, 300])")
    found = page(tmp_path)
    for name in ("batcher_batch_wait_time_seconds", "batcher_request_latency_seconds"):
        assert found[f'{name}_bucket{{le="0.5",{OF_QUIZ}}}'] - found[f'{name}_bucket{{le="0.2",{OF_QUIZ}}}'] == 1
        assert found[f'{name}_bucket{{le="0.05",{OF_QUIZ}}}'] - found[f'{name}_bucket{{le="0.02",{OF_QUIZ}}}'] == 1
    assert found[f"batcher_batch_wait_time_seconds_count{{{OF_QUIZ}}}"] == 2
    assert found[f"batcher_request_latency_seconds_count{{{OF_QUIZ}}}"] == 3


def test_values_on_a_buckets_edge_are_in_it(tmp_path: Path) -> None:
    code = """
    from prometheus_client import Histogram
    from handlers.torchserve.metrics import SIZES, observe
    many, single = (Histogram(name, "", buckets=SIZES, registry=None) for name in ("many", "single"))
    values = [0, 1, 1.5, 2, 256, 257, 1e9]
    observe(many, values)
    observe(many, [])
    for value in values:
        single.observe(value)
    """
    worker(tmp_path, code)
    found = page(tmp_path)
    many = {name.removeprefix("many"): value for name, value in found.items() if name.startswith("many")}
    assert many == {name.removeprefix("single"): value for name, value in found.items() if name.startswith("single")}
    assert many["_count"] == 7


def test_what_the_pipelines_parts_count_is_written_as_it_grows(tmp_path: Path) -> None:
    code = """
    import handlers.torchserve.metrics as module
    for hits, asking in ((0, 1), (5, 1), (9, 0)):
        parts.counted = {"handler_cache_hits_total": hits, "handler_cache_asking": asking, "own_total": hits}
        metrics.flush()
    """
    worker(tmp_path, code)
    worker(tmp_path, 'parts.counted = {"handler_cache_hits_total": 4}; metrics.flush()')
    found = page(tmp_path)
    assert found[f"handler_cache_hits_total{{{OF_QUIZ}}}"] == 13
    assert found[f"own_total{{{OF_QUIZ}}}"] == 9
    assert found[f"handler_cache_asking{{{OF_QUIZ}}}"] == 0


def test_late_counts_are_written_without_another_batch(tmp_path: Path) -> None:
    code = """
    import handlers.torchserve.metrics as module
    module.FLUSH_S = 0.05
    batch([200])
    parts.counted = {"handler_log_written_total": 1}
    time.sleep(0.5)
    """
    worker(tmp_path, code)
    assert page(tmp_path)[f"handler_log_written_total{{{OF_QUIZ}}}"] == 1


def test_a_batch_under_way_is_shown(tmp_path: Path) -> None:
    code = """
    def answer(requests):
        from prometheus_client.multiprocess import MultiProcessCollector
        import glob, os
        merged = MultiProcessCollector.merge(glob.glob(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/*.db"))
        print([s.value for m in merged if m.name == "batcher_inflight_batches" for s in m.samples])
        raise ZeroDivisionError
    try:
        metrics.watch(answer, [])
    except ZeroDivisionError:
        pass
    """
    assert worker(tmp_path, code) == "[1.0]\n"
    assert page(tmp_path)[f"batcher_inflight_batches{{{OF_QUIZ}}}"] == 0


def test_files_are_reserved_whole_so_that_a_full_disk_kills_no_worker(tmp_path: Path) -> None:
    worker(tmp_path, "batch([200] * 32, model_s=1.0); metrics.flush()")
    files = list(tmp_path.iterdir())
    assert {file.name.rpartition("_")[0] for file in files} == set(KINDS)
    assert {file.stat().st_size for file in files} == {FILE_BYTES}
    assert all(file.stat().st_blocks * 512 >= FILE_BYTES for file in files)


def test_without_room_a_worker_serves_and_counts_nothing(tmp_path: Path) -> None:
    said = worker(tmp_path / "missing", "batch([200]); metrics.flush(); print('served')")
    assert said == "served\n"
    environ = {FOLDER_VARIABLE: str(tmp_path / "missing")}
    reserve(environ)
    assert environ == {}


def test_without_a_folder_a_worker_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ: dict[str, str] = {}
    reserve(environ)
    program = WORKER + "batch([200]); metrics.flush(); print('served')"
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "served\n"
    )
