"""A real Prometheus scrapes a stack that is asked everything: every panel has data, and alerts fire when they must."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import prometheus_client.openmetrics.parser as openmetrics
import psutil
import pytest
import requests
import yaml

from marctl.build.adopt import adopt
from marctl.build.recipe import RECIPE_FILE
from marctl.stack.log_lines import FILES
from tests.live.conftest import Site
from tests.live.envoys import self_signed, until
from tests.live.test_readme import matches
from tests.prometheus_server import DOCKER, SCRAPE_S, Prometheus, program

# Three archives are built and a stack is started in the first test's time.
pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
GAPS = """
import time
import msgspec
from marctl_handlers import Task

BREAKS = False

class Question(msgspec.Struct):
    values: list[float | None]
    seconds: float = 0.0
    broken: bool = False

class Sum(msgspec.Struct):
    positive: bool
    imputed: int

class Sums(Task[Question, Sum]):
    def load(self, folder):
        pass

    def predict(self, questions, deadline):
        time.sleep(sum(question.seconds for question in questions))
        if BREAKS and any(question.broken for question in questions):
            raise RuntimeError("broken")
        return [Sum(sum(v or 0 for v in q.values) > 0, q.values.count(None)) for q in questions]
"""
GPU = """#!/bin/sh
case "$1" in
    *utilization.gpu*) echo "0, 40, 1000, 80000, 300.5, 60" ;;
    *) exit 9 ;;
esac
"""
"""Stands for NVIDIA's tool, so that a machine without a GPU has figures of one. TorchServe, which asks it, too, sees
none."""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VARIABLES = {"$model": ".*", "$version": ".*", "$__rate_interval": f"{5 * SCRAPE_S}s", "$core_hour_price": "0.05"}
LOAD_S = 6.0
CAPACITY = DOCKER.parent / "scripts" / "capacity" / "README.md"
AUTOSCALE = {"every_seconds": 1, "max": 2, "queue_ms": 500, "hold_seconds": 600, "versions": {"sums/2.0": {}}}


@dataclass
class Load:
    """Asks a gateway everything, some requests at a time, until it is stopped."""

    gateway: str
    certificate: str
    stopping: threading.Event = field(default_factory=threading.Event)

    def post(self, path: str, content: Any, **headers: str) -> requests.Response:
        return requests.post(self.gateway + path, json=content, headers=headers, verify=self.certificate, timeout=30)

    def ask(self, text: str, **headers: str) -> requests.Response:
        return self.post("/predictions/quiz", {"question": text, "choices": ["a knife", "a cloud"]}, **headers)

    def run(self) -> None:
        number = 0
        while not self.stopping.wait(0.02):
            number += 1
            self.ask(f"What is {number}?", traceparent=TRACE)
            self.ask("What was asked before?")
            self.post("/predictions/sums", {"values": [1.0, None, float(number)]})
            if number % 5 == 0:
                self.post("/predictions/quiz", {"question": "no choices"})
                self.ask("many words " * 200)
                quick = {"explain": {"method": "gradient_x_input"}}
                self.post("/explanations/quiz", {"question": f"why {number}?", "choices": ["a", "b"], **quick})


@pytest.fixture(scope="module")
def site(
    make_site: Callable[..., Site], tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """quiz is explained; sums 1.0, which fills in what is missing, is the fallback and the shadow of sums 2.0."""
    made = make_site()
    recipes, tools = made.folder / "recipes", tmp_path_factory.mktemp("tools")
    quiz = adopt(tiny_model("bert"), "quiz", "1.0", recipes, precision="float32").folder / RECIPE_FILE
    quiz.write_text(yaml.safe_dump(yaml.safe_load(quiz.read_text()) | {"explanations": {"workers": 1}}))
    write_sums(tools, recipes)
    (tools / "nvidia-smi").write_text(GPU)
    (tools / "nvidia-smi").chmod(0o755)
    made.environ["PATH"] = f"{tools}:{made.environ['PATH']}"
    certificate, key = self_signed(tools)
    (tools / "gateway.yaml").write_text(yaml.safe_dump({"tls": {"certificate": certificate, "key": key}}))
    assert made.run_build().returncode == 0
    (tools / "autoscale.yaml").write_text(yaml.safe_dump(AUTOSCALE))
    options = ["--gateway-config", str(tools / "gateway.yaml"), "--autoscale", str(tools / "autoscale.yaml")]
    (tools / "batch.yaml").write_text(yaml.safe_dump({"read": [str(tools)], "write": [str(tools)]}))
    options += ["--batch-config", str(tools / "batch.yaml")]
    made.call(*made.up_arguments, *options, "--detach")
    for traffic in (["split", "sums", "2.0=100"], ["fallback", "sums", "1.0"], ["shadow", "sums", "1.0=100"]):
        made.call("route", *traffic)
    return made


def write_sums(tools: Path, recipes: Path) -> None:
    (tools / "nothing").mkdir()
    content = {
        "description": "a test",
        "weights": {"directory": str(tools / "nothing")},
        "batching": {"batch_size": 1, "max_delay_ms": 1, "queue_size": 10},
        "samples": [{"request": {"values": [1.0]}, "expected": {"positive": True}}],
    }
    for version, code in (("1.0", GAPS), ("2.0", GAPS.replace("BREAKS = False", "BREAKS = True"))):
        task = tools / f"sums_{version[0]}.py"
        task.write_text(code)
        (recipes / "sums" / version).mkdir(parents=True)
        (recipes / "sums" / version / RECIPE_FILE).write_text(yaml.safe_dump(content | {"task": str(task)}))


@pytest.fixture(scope="module")
def load(site: Site) -> Iterator[Load]:
    certificate = yaml.safe_load((site.state / "gateway" / "settings.json").read_text())["tls"]["certificate"]
    made = Load(site.call("status")["gateway"], certificate)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(made.run) for _ in range(2)]
        yield made
        made.stopping.set()
        for each in running:
            each.result()


@pytest.fixture(scope="module")
def prometheus(site: Site, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen a load, a fallback included, for some seconds."""
    started = Prometheus(
        tmp_path_factory.mktemp("prometheus") / "data", urlsplit(site.call("status")["metrics"]).netloc
    )
    try:
        until(lambda: bool(started.query("sum(gateway_attempts_total) > 20")), 60)
        for _ in range(3):
            assert load.post("/predictions/sums", {"values": [1.0], "broken": True}).headers["x-fallback"] == "1.0"
        time.sleep(LOAD_S)
        yield started
    finally:
        started.stop()


def queries() -> list[tuple[str, str]]:
    """Every query of every panel of every dashboard, with its place."""
    return [
        (f"{path.stem}: {panel['title']}: {target['expr']}", target["expr"])
        for path in sorted((DOCKER / "grafana").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


def has_data(prometheus: Prometheus, expression: str) -> bool:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return any(series["value"][1] != "NaN" for series in prometheus.query(expression))


def test_every_query_of_every_panel_returns_data(prometheus: Prometheus) -> None:
    """Envoy renews its histograms every five seconds, and a rate takes two of them: some queries need a while."""
    empty = queries()

    def filled() -> bool:
        empty[:] = [(place, expression) for place, expression in empty if not has_data(prometheus, expression)]
        return not empty

    until(filled, 60, lambda: [place for place, _ in empty])


def test_exemplars_lead_from_a_bucket_to_a_request_and_its_trace(prometheus: Prometheus) -> None:
    found = prometheus.exemplars('handler_stage_seconds_bucket{model="quiz",stage="total"}')
    labels = [exemplar["labels"] for series in found for exemplar in series["exemplars"]]
    assert any(TRACE[3:35] == each.get("trace_id") and each["request_id"] for each in labels)


def test_the_page_is_valid_in_both_formats(site: Site, load: Load) -> None:
    page = f"{site.call('status')['metrics']}/metrics"
    answer = requests.get(page, headers={"Accept": "application/openmetrics-text; version=1.0.0"}, timeout=10)
    families = list(openmetrics.text_string_to_metric_families(answer.text))
    assert {"handler_stage_seconds", "gateway_attempts", "marctl_host_load1"} <= {family.name for family in families}
    through = requests.get(f"{load.gateway}/metrics", headers=dict(answer.request.headers), verify=load.certificate)
    assert through.headers["content-type"] == answer.headers["content-type"]
    assert through.text.endswith("# EOF\n")
    plain = requests.get(page, timeout=10).text
    own = "\n".join(line for line in plain.splitlines() if not line.startswith(("ts_", "Requests", "Queue", "Worker")))
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=own, capture_output=True, text=True)
    complaints = [
        line
        for line in checked.stderr.splitlines()
        if line.split()[0].startswith(("handler", "gateway", "marctl", "batcher"))
    ]
    assert complaints == []


def test_labels_do_not_grow_with_what_clients_send(site: Site, load: Load) -> None:
    page = f"{site.call('status')['metrics']}/metrics"

    def series() -> set[str]:
        lines = requests.get(page, headers={"Accept": "application/openmetrics-text"}, timeout=10).text.splitlines()
        return {line.partition("} ")[0] for line in lines if line.startswith(("handler", "gateway", "batcher"))}

    load.ask("first", **{"x-assignment": "mine"})
    before = series()
    for i in range(20):
        load.ask(f"again {i}", **{"x-request-id": f"id-{i}", "x-assignment": f"role-{i}", "x-model-version": f"{i}.0"})
        load.post(f"/predictions/model-{i}", {})
    assert all("role-" not in each and "model-" not in each for each in series() - before)


def test_a_clients_trace_stands_in_the_log_and_a_malformed_one_does_not(site: Site, load: Load) -> None:
    assert load.ask("traced", **{"x-request-id": "traced", "traceparent": TRACE}).status_code == 200
    assert load.ask("untraced", **{"x-request-id": "untraced", "traceparent": TRACE + "-<script>"}).status_code == 200

    found: dict[str, Any] = {}

    def there() -> bool:
        lines = site.run("log", "tail", "-n", "2000", "--json").stdout.splitlines()
        found.update({each["prediction_id"]: each for each in map(json.loads, lines)})
        return {"traced", "untraced"} <= set(found)

    until(there, 30)
    assert found["traced"]["traceparent"] == TRACE
    assert found["untraced"].get("traceparent") is None


def test_a_failure_is_one_line_of_the_log_with_its_id_and_without_its_text(site: Site, load: Load) -> None:
    secret = {"values": [1.0, 7.25], "seconds": -1.0}  # time.sleep takes none such
    assert (
        load.post("/predictions/sums/1.0", secret, **{"x-request-id": "failing", "traceparent": TRACE}).status_code
        == 500
    )

    def told() -> list[dict[str, Any]]:
        lines = map(json.loads, site.run("logs", "--since", "10m", "--json").stdout.splitlines())
        return [line for line in lines if line.get("request_id") == "failing"]

    until(lambda: bool(told()), 20)
    [line] = told()
    assert (line["part"], line["model"], line["version"], line["kind"]) == ("worker", "sums", "1.0", "predicting")
    assert (line["error"], line["traceparent"]) == ("ValueError", TRACE)
    assert line["duration_ms"] >= 0
    assert not any(b"7.25" in path.read_bytes() for path in (site.state / "logs").iterdir())


def test_every_part_is_in_the_log_and_a_steady_load_adds_nothing(site: Site, load: Load) -> None:
    lines = list(map(json.loads, site.run("logs", "--since", "1h", "--json").stdout.splitlines()))
    assert {"torchserve", "worker", "reconciler"} <= {line["part"] for line in lines} <= set(FILES)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    began = datetime.now(UTC)
    time.sleep(5)
    shown = site.run("logs", "--since", began.isoformat(), "--json").stdout.splitlines()
    assert shown == [], "some hundred requests were answered meanwhile"


def test_alerts_are_silent_until_a_queue_fills_redis_stops_and_a_worker_dies(
    site: Site, load: Load, prometheus: Prometheus
) -> None:
    assert not prometheus.firing() & {"QueueGrows", "RedisAway", "WorkersRestart"}
    slow = [{"values": [float(i)], "seconds": 1.5} for i in range(10)]
    with ThreadPoolExecutor(len(slow)) as pool:
        waiting = [pool.submit(load.post, "/predictions/sums/1.0", each) for each in slow]
        until(lambda: "QueueGrows" in prometheus.firing(), 20)
        for each in waiting:
            each.result()
    redis = psutil.Process(site.call("status")["redis_pid"])
    redis.send_signal(signal.SIGSTOP)
    try:
        until(lambda: "RedisAway" in prometheus.firing(), 30)
    finally:
        redis.send_signal(signal.SIGCONT)
    starts = 'sum(handler_process_starts_total{model="sums",version="1.0"})'
    before = int(prometheus.query(starts)[0]["value"][1])
    [pid] = site.versions()["sums 1.0"]["pids"]
    psutil.Process(pid).kill()
    until(lambda: "WorkersRestart" in prometheus.firing(), 60)
    assert int(prometheus.query(starts)[0]["value"][1]) == before + 1
    until(lambda: not prometheus.firing() & {"QueueGrows", "RedisAway"}, 30)


def test_a_full_queue_takes_one_more_worker_and_the_history_says_why(
    site: Site, load: Load, prometheus: Prometheus
) -> None:
    """Four at a time, each of which keeps a worker for 0.4 s, and none of which was asked before."""
    ended = threading.Event()

    def ask(number: float) -> None:
        while not ended.is_set():
            number += 0.001
            load.post("/predictions/sums/2.0", {"values": [number], "seconds": 0.4})

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, float(number)) for number in range(4)]
        try:
            until(lambda: site.versions()["sums 2.0"]["workers_ready"] == 2, 60)
        finally:
            ended.set()
        for each in asking:
            each.result()
    [change] = [each for each in site.call("history")["revisions"] if each["actor"] == "autoscaler"]
    assert change["command"] == "autoscale sums 2.0 2"
    assert "queue p99" in change["reason"]
    until(lambda: bool(prometheus.query('marctl_autoscaler_workers_ready{version="2.0"} == 2')), 20)
    [told] = [
        line
        for line in map(json.loads, site.run("logs", "--part", "autoscaler", "--json").stdout.splitlines())
        if "from 1 to 2" in line["message"]
    ]
    assert change["reason"] in told["message"]
    time.sleep(3 * SCRAPE_S)
    assert "WorkersRestart" not in alerts_of(prometheus, "sums", "2.0"), "a worker that was asked for is no restart"


def alerts_of(prometheus: Prometheus, model: str, version: str) -> set[str]:
    """Alerts that fire for a version."""
    found = prometheus.query(f'ALERTS{{alertstate="firing",model="{model}",version="{version}"}}')
    return {each["metric"]["alertname"] for each in found}


def test_an_autoscaler_that_dies_is_started_again_and_goes_on_counting(site: Site, prometheus: Prometheus) -> None:
    before = site.call("status")["autoscaler"]
    psutil.Process(before["pid"]).kill()

    def back() -> bool:
        now = site.call("status")["autoscaler"]
        return now is not None and now["pid"] != before["pid"] and now["time"] > before["time"]

    until(back, 60)
    assert len(site.call("status")["autoscaler"]["versions"]) == len(before["versions"]) == 1


def test_usage_is_told_by_version_from_the_page_the_log_and_prometheus(
    site: Site, load: Load, prometheus: Prometheus
) -> None:
    page, log, scraped = (
        {(row["model"], row["version"]): row for row in site.call("cost", "usage", *source)["usage"]}
        for source in ([], ["--log", "--since", "1h"], ["--prometheus", prometheus.url, "--since", "1h"])
    )
    for found in (page, log, scraped):
        assert {("quiz", "1.0"), ("sums", "1.0"), ("sums", "2.0")} <= set(found)
    quiz = ("quiz", "1.0")
    assert page[quiz]["cpu_s"] > 0
    assert page[quiz]["cost"] == pytest.approx(page[quiz]["cpu_s"] / 3600 * 0.048)
    # A request of the page may hold several questions of the log, and was counted a moment later.
    assert log[quiz]["requests"] == pytest.approx(page[quiz]["requests"], rel=0.5)
    assert scraped[quiz]["requests"] > 0


def test_the_guide_to_capacity_prints_what_it_shows(site: Site, load: Load) -> None:
    blocks = re.findall(r"^```console\n(.*?)^```$", CAPACITY.read_text(), re.MULTILINE | re.DOTALL)
    shown = [one for block in blocks for one in re.split(r"^\$ marctl ", block, flags=re.MULTILINE)[1:]]
    assert len(shown) >= 3
    for each in shown:
        command, _, expected = each.partition("\n")
        done = site.run(*shlex.split(command))
        assert done.returncode == 0, done.stderr
        assert matches(expected, done.stdout), done.stdout
