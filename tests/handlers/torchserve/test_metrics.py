"""Workers' figures are written by real processes here, each with files of its own, as prometheus_client needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from marctl_handlers.tasks.embedding.schema import EmbeddingSettings
from marctl_handlers.tasks.embedding.task import Embedding
from marctl_handlers.torchserve.exemplars import Exemplar
from marctl_handlers.torchserve.metrics import FILE_BYTES, FOLDER_VARIABLE, KINDS, reserve
from marctl_handlers.torchserve.predictions import classifier, place

WORKER = """
import json, time
from itertools import zip_longest
import msgspec
from marctl_handlers.core.errors import Busy, Invalid
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.torchserve.metrics import WorkerMetrics, reserve

class Question(msgspec.Struct, frozen=True):
    text: str

class Guess(msgspec.Struct, frozen=True):
    label: str
    confidence: float = 0.75
    truncated: bool = False
    imputed: tuple[str, ...] = ()

class Guessing(Task[Question, Guess]):
    classes = ("cat", "dog")
    model_s = 0.0

    def load(self, folder): ...

    def check(self, question):
        time.sleep(self.check_s)
        if question.text == "bad":
            raise Invalid("bad")

    check_s = 0.0

    def predict(self, questions, deadline):
        time.sleep(self.model_s)
        return [self.guess(question.text) for question in questions]

    def guess(self, text):
        if text == "busy":
            return Busy("later")
        return Guess(text, truncated=text == "cut", imputed=("age", "town") if text == "gaps" else ())

class Parts:
    counted = {"handler_cache_hits_total": 0, "handler_cache_asking": 1}
    def totals(self):
        return self.counted

def batch(texts, model_s=0.0, waits_ms=(), batch_ms=(), headers={}):
    task.model_s = model_s
    each = zip_longest(texts, waits_ms, batch_ms)
    requests = [
        Request(json.dumps({"text": text}).encode(), f"id-{i}", headers=headers, queue_ms=queue, batch_ms=batch)
        for i, (text, queue, batch) in enumerate(each)
    ]
    return metrics.watch(pipeline.answer, requests)

reserve()
parts = Parts()
task = Guessing(Settings(task="guess"))
pipeline = Pipeline(task, Model("quiz", "1.0"))
metrics = WorkerMetrics("quiz", "1.0", pipeline)
pipeline.log = parts
parts.add = lambda record: None
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
    worker(tmp_path, "batch(['cat', 'dog', 'bad'], model_s=0.03)")
    worker(tmp_path, "batch(['cat'] * 32, model_s=0.3); batch(['bad'])")
    found = page(tmp_path)
    assert found['batcher_requests_total{model="quiz",status="200",version="1.0"}'] == 34
    assert found['batcher_requests_total{model="quiz",status="422",version="1.0"}'] == 2
    sizes = {
        le: found[f'batcher_batch_size_bucket{{le="{le}",{OF_QUIZ}}}'] for le in ("1.0", "4.0", "16.0", "32.0", "+Inf")
    }
    assert sizes == {"1.0": 1, "4.0": 2, "16.0": 2, "32.0": 3, "+Inf": 3}
    assert found[f"batcher_batch_size_sum{{{OF_QUIZ}}}"] == 36
    assert found[f'batcher_inference_time_seconds_bucket{{le="0.05",{OF_QUIZ}}}'] == 1
    assert found[f"batcher_inference_time_seconds_count{{{OF_QUIZ}}}"] == 2, "the third batch never asked the model"
    assert found[f"handler_batches_total{{{OF_QUIZ}}}"] == 3
    assert found[f"handler_requests_total{{{OF_QUIZ}}}"] == 36
    assert found[f"handler_seconds_total{{{OF_QUIZ}}}"] == pytest.approx(0.33, abs=0.2)
    assert found[f"batcher_inflight_batches{{{OF_QUIZ}}}"] == 0


def test_waits_are_counted_from_the_gateways_start_where_it_is_known(tmp_path: Path) -> None:
    worker(tmp_path, "batch(['cat'] * 3, waits_ms=[30, 300])")
    found = page(tmp_path)
    for name in ("batcher_batch_wait_time_seconds", "batcher_request_latency_seconds"):
        assert found[f'{name}_bucket{{le="0.5",{OF_QUIZ}}}'] - found[f'{name}_bucket{{le="0.2",{OF_QUIZ}}}'] == 1
        assert found[f'{name}_bucket{{le="0.05",{OF_QUIZ}}}'] - found[f'{name}_bucket{{le="0.02",{OF_QUIZ}}}'] == 1
    assert found[f"batcher_batch_wait_time_seconds_count{{{OF_QUIZ}}}"] == 2
    assert found[f"batcher_request_latency_seconds_count{{{OF_QUIZ}}}"] == 3


def stage(found: dict[str, float], name: str, role: str = "direct", kind: str = "sum") -> float:
    return found[f'handler_stage_seconds_{kind}{{model="quiz",role="{role}",stage="{name}",version="1.0"}}']


def test_a_requests_stages_add_up_to_its_time(tmp_path: Path) -> None:
    code = """
    task.check_s = 0.02
    batch(['cat', 'dog'], model_s=0.05, waits_ms=[100, 40], batch_ms=[30, 10], headers={"x-assignment": "split"})
    """
    worker(tmp_path, code)
    found = page(tmp_path)
    spent = {
        name: stage(found, name, "split")
        for name in ("queue", "batch_wait", "features", "cache", "inference", "encoding")
    }
    assert spent["batch_wait"] == pytest.approx(0.04, abs=0.001)
    assert spent["queue"] == pytest.approx(0.1, abs=0.02)
    assert 0.08 <= spent["features"] < 0.12, "both requests waited for both checks"
    assert 0.1 <= spent["inference"] < 0.14
    assert sum(spent.values()) == pytest.approx(stage(found, "total", "split"), abs=0.002)
    assert {stage(found, name, "split", "count") for name in (*spent, "total")} == {2}


def test_every_role_is_told_apart_and_no_client_makes_one(tmp_path: Path) -> None:
    code = """
    for role in ("split", "shadow", "made up", "x" * 99):
        batch(['cat'], headers={"x-assignment": role})
    batch(['cat'])
    batch(['cat'], headers={"x-sample": "1", "x-assignment": "split"})
    """
    worker(tmp_path, code)
    found = page(tmp_path)
    counts = {role: stage(found, "total", role, "count") for role in ("split", "shadow", "other", "direct", "sample")}
    assert counts == {"split": 1, "shadow": 1, "other": 2, "direct": 1, "sample": 1}
    assert sum(value for name, value in found.items() if name.startswith("handler_predictions_total")) == 5


def of_role(name: str, role: str = "direct", **more: str) -> str:
    labels = {"model": "quiz", "role": role, "version": "1.0", **more}
    pairs = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"{name}{{{pairs}}}"


def test_answers_are_counted_by_class_and_errors_by_kind(tmp_path: Path) -> None:
    worker(tmp_path, "batch(['cat', 'dog', 'cat', 'a word of the client', 'bad', 'busy', 'cut', 'gaps'])")
    worker(tmp_path, 'metrics.watch(pipeline.answer, [Request(b"{", "id")])')
    worker(tmp_path, "batch(['cat'], headers={'x-fallback-from': '2.0', 'x-assignment': 'fallback'})")
    found = page(tmp_path)
    classes = {name: found[of_role("handler_predictions_total", prediction=name)] for name in ("cat", "dog", "other")}
    assert classes == {"cat": 2, "dog": 1, "other": 3}
    errors = {
        name: found[of_role("handler_errors_total", kind=name)] for name in ("invalid_request", "busy", "not_json")
    }
    assert errors == {"invalid_request": 1, "busy": 1, "not_json": 1}
    assert found[of_role("handler_truncated_total")] == 1
    assert found[of_role("handler_imputed_total")] == 2
    assert found[of_role("handler_fallbacks_total", "fallback")] == 1
    assert found[of_role("handler_prediction_confidence_ratio_bucket", le="0.8")] == 6
    assert found[of_role("handler_prediction_confidence_ratio_bucket", le="0.7")] == 0


def test_places_and_marks_are_classes_too_and_vectors_are_not() -> None:
    assert [place(value) for value in (0, 31, 32, -1, None)] == ["0", "31", "other", "other", "other"]
    assert classifier(Embedding(EmbeddingSettings(task="embedding"))) is None


def test_the_last_request_of_a_bucket_is_kept_with_its_trace(tmp_path: Path) -> None:
    code = """
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    batch(['cat', 'dog'], headers={"traceparent": trace})
    batch(['cat'], model_s=0.25, headers={"traceparent": "malformed"})
    metrics.watch(pipeline.answer, [Request(b"{", "x" * 128, headers={"x-assignment": "split"})])
    metrics.flush()
    """
    worker(tmp_path, code)
    [file] = tmp_path.glob("exemplars_quiz_1.0_*.json")
    kept = msgspec.json.decode(file.read_bytes(), type=list[Exemplar])
    slow = next(each for each in kept if each.le == "0.5")
    assert slow.labels == {"request_id": "id-0"}
    assert slow.seconds == pytest.approx(0.26, abs=0.05)
    traced = {"request_id": "id-1", "trace_id": "0af7651916cd43dd8448eb211c80319c"}
    assert traced in [each.labels for each in kept]
    assert {each.role for each in kept} == {"direct"}, "an id that is too long is no exemplar"


def test_a_processs_time_stays_counted_and_its_memory_goes(tmp_path: Path) -> None:
    code = """
    from marctl_handlers.torchserve.process_figures import ProcessFigures
    figures = ProcessFigures("quiz", "1.0")
    figures.write(); sum(i * i for i in range(3_000_000)); figures.write()
    print(time.process_time())
    """
    used = float(worker(tmp_path, code)) + float(worker(tmp_path, code))
    found = page(tmp_path)
    assert found[f"handler_process_cpu_seconds_total{{{OF_QUIZ}}}"] == pytest.approx(used, abs=0.1)
    assert found[f"handler_process_starts_total{{{OF_QUIZ}}}"] == 2
    assert found[f"handler_process_resident_memory_bytes{{{OF_QUIZ}}}"] > 20e6


def test_values_on_a_buckets_edge_are_in_it(tmp_path: Path) -> None:
    code = """
    from prometheus_client import Histogram
    from marctl_handlers.torchserve.metrics import SIZES, observe
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
    import marctl_handlers.torchserve.metrics as module
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
    import marctl_handlers.torchserve.metrics as module
    module.FLUSH_S = 0.05
    batch(['cat'])
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
    worker(tmp_path, "batch(['cat'] * 32, model_s=1.0); metrics.flush()")
    files = list(tmp_path.glob("*.db"))
    assert {file.name.rpartition("_")[0] for file in files} == set(KINDS)
    assert {file.stat().st_size for file in files} == {FILE_BYTES}
    assert all(file.stat().st_blocks * 512 >= FILE_BYTES for file in files)


def test_without_room_a_worker_serves_and_counts_nothing(tmp_path: Path) -> None:
    said = worker(tmp_path / "missing", "batch(['cat']); metrics.flush(); print('served')")
    assert said == "served\n"
    environ = {FOLDER_VARIABLE: str(tmp_path / "missing")}
    reserve(environ)
    assert environ == {}


def test_without_a_folder_a_worker_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ: dict[str, str] = {}
    reserve(environ)
    program = WORKER + "batch(['cat']); metrics.flush(); print('served')"
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "served\n"
    )
