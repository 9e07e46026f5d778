"""The gateway of a whole stack: marctl, Envoy, TorchServe and its workers."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from marctl.core.process import is_alive
from marctl.gateway import counts
from marctl.gateway.names import Role
from tests.live.conftest import Site
from tests.live.envoys import self_signed, until
from tests.live.test_stack import foreground
from tests.tiny_archives import ANSWER, BUSY, REQUEST, tiny_archive

pytestmark = pytest.mark.live
MakeSite = Callable[..., Site]


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Iterator[Site]:
    """mcqa 1.0 and 2.0 and a slow model are served."""
    made = make_site("1.0", "2.0")
    for version in ("1.0", "2.0"):
        tiny_archive(made.store, "busy", version, handler=BUSY, samples=False)
    made.up()
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def url(site: Site) -> str:
    return str(site.call("status")["gateway"])


@pytest.fixture(autouse=True)
def _default_traffic(site: Site) -> Iterator[None]:
    yield
    for model, content in site.call("state", "show")["models"].items():
        if "traffic" in content:
            site.call("route", "split", model, "--default")


def ask(url: str, path: str = "/predict", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(url + path, json=REQUEST, headers=named, timeout=30)


def answers(url: str) -> bool:
    try:
        return ask(url).status_code == 200
    except requests.ConnectionError:
        return False


def ask_until_refused(url: str) -> list[int]:
    """On one connection as long as the server keeps it; only a connection that was never made ends it in peace."""
    codes = []
    with requests.Session() as session:
        while True:
            try:
                codes.append(session.post(f"{url}/predict", json=REQUEST, timeout=30).status_code)
            except requests.ConnectionError as err:
                if "NewConnectionError" not in str(err):
                    raise
                return codes


def test_the_gateway_answers_by_the_default_version_and_says_so(site: Site, url: str) -> None:
    for path in ("/predict", "/v1/predict", "/predictions/mcqa", "/v1/models/mcqa:predict"):
        got = ask(url, path)
        assert (got.json(), got.headers["x-model-version"]) == (ANSWER, "2.0")
    site.call("default", "mcqa", "1.0")
    assert ask(url).headers["x-model-version"] == "1.0"
    site.call("default", "mcqa", "2.0")


def test_only_loopback_listens(site: Site) -> None:
    gateway = psutil.Process(site.call("status")["gateway_pid"])
    listeners = {c.laddr.ip for c in gateway.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listeners == {"127.0.0.1"}


def test_one_page_has_torchserves_the_workers_and_envoys_figures(url: str) -> None:
    ask(url)
    page = requests.get(f"{url}/metrics", timeout=30).text
    assert 'ts_inference_requests_total{model_name="mcqa",model_version="2.0"' in page
    assert counts.read(page)["mcqa", "2.0", Role.SPLIT].codes[200] > 0


def test_health_tells_workers_and_queues(url: str) -> None:
    assert requests.get(f"{url}/healthz", timeout=30).json() == {"status": "alive"}
    health = requests.get(f"{url}/health", timeout=30).json()
    assert health["status"] == "ready"
    row = {"model": "mcqa", "version": "2.0", "routed": True, "workers_ready": 1, "queue": 0}
    assert row in health["versions"]


def test_readiness_ends_with_the_last_worker_and_comes_back(site: Site, url: str) -> None:
    """Parked behind marctl's back: it would refuse, and it puts them right by itself."""
    management = site.call("status")["management"]
    assert requests.get(f"{url}/ready", timeout=30).status_code == 200
    for version in ("1.0", "2.0"):
        requests.put(f"{management}/models/mcqa/{version}?min_worker=0&max_worker=0", timeout=30)
    answers: list[requests.Response] = []
    until(lambda: (answers.append(requests.get(f"{url}/ready", timeout=30)) or answers[-1].status_code) == 503)
    assert (answers[-1].json()["error"], answers[-1].headers["retry-after"]) == ("not_ready", "1")
    until(lambda: requests.get(f"{url}/ready", timeout=30).status_code == 200)
    until(lambda: all(row["workers_ready"] for row in site.versions().values()))


@pytest.mark.parametrize(("blow", "bar_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 3.0)], ids=["killed", "hung"])
def test_a_dead_or_hung_worker_holds_up_nobody_for_long_and_is_asked_again(
    site: Site, url: str, blow: signal.Signals, bar_s: float
) -> None:
    """With 20 requests a second: after the bar each is answered by the fallback's version at once."""
    site.call("route", "split", "mcqa", "2.0=100")
    site.call("route", "fallback", "mcqa", "1.0")
    worker = psutil.Process(site.versions()["mcqa 2.0"]["pids"][0])
    found: list[tuple[float, requests.Response]] = []

    def asked(since: float) -> None:
        sent = time.monotonic() - since
        found.append((sent, ask(url)))

    with ThreadPoolExecutor(100) as clients:
        assert ask(url).headers["x-model-version"] == "2.0"
        worker.send_signal(blow)
        struck = time.monotonic()
        late: list[requests.Response] = []
        while time.monotonic() - struck < bar_s + 1 or (len(late) <= 8 and time.monotonic() - struck < 30):
            clients.submit(asked, struck)
            time.sleep(0.05)
            late = [got for sent, got in list(found) if sent > bar_s]
        if blow is signal.SIGSTOP:
            worker.send_signal(signal.SIGCONT)
        until(lambda: ask(url).headers["x-model-version"] == "2.0", timeout_s=30)
    assert len(late) > 8
    # TorchServe starts a killed worker again, perhaps within the bar.
    versions = {"1.0"} if blow is signal.SIGSTOP else {"1.0", "2.0"}
    assert {got.headers["x-model-version"] for got in late} <= versions
    assert max(got.elapsed.total_seconds() for got in late) < 1.0
    assert {got.status_code for _, got in found} == {200}
    assert "1.0" in {got.headers["x-model-version"] for _, got in found}


def test_a_split_is_in_force_when_the_command_returns(site: Site, url: str) -> None:
    shown = site.call("route", "split", "mcqa", "1.0=100", "2.0=0", "--experiment", "e1")
    assert shown == {"mcqa": {"split": {"1.0": 100.0, "2.0": 0.0}, "experiment": "e1"}}
    assert {ask(url).headers["x-model-version"] for _ in range(20)} == {"1.0"}
    site.call("route", "split", "mcqa", "1.0=50", "2.0=50")
    assert {ask(url).headers["x-model-version"] for _ in range(40)} == {"1.0", "2.0"}
    assert len({ask(url, x_user_id="ann").headers["x-model-version"] for _ in range(10)}) == 1


def test_what_show_prints_set_takes_and_history_remembers(site: Site, url: str, tmp_path: Path) -> None:
    site.call("route", "split", "mcqa", "1.0=90", "2.0=10")
    site.call("route", "fallback", "mcqa", "1.0")
    site.call("route", "shadow", "mcqa", "2.0=25")
    path = tmp_path / "traffic.yaml"
    path.write_text(site.run("route", "show", "mcqa").stdout)
    assert yaml.safe_load(path.read_text())["mcqa"]["shadow"] == {"2.0": 25.0}
    before = site.call("route", "show", "mcqa")
    site.call("route", "split", "mcqa", "--default")
    assert site.call("route", "set", str(path)) == before
    last = site.call("route", "history", "mcqa")["changes"][-1]
    assert last["command"] == f"route set {path}"
    assert (last["before"], last["after"]) == (None, before["mcqa"])
    assert "fallback 1.0" in site.run("route", "history", "mcqa").stdout


def test_a_faulty_document_is_refused_whole(site: Site, url: str, tmp_path: Path) -> None:
    path = tmp_path / "traffic.yaml"
    path.write_text('mcqa: {split: {"9.9": 1, "1.0": 1}, fallback: ["8.8"]}\n')
    done = site.run("route", "set", str(path))
    assert done.returncode == 1
    assert "2 faults" in done.stderr
    assert "mcqa.split: version 9.9 is not served; there are: 1.0, 2.0" in done.stderr
    assert ask(url).headers["x-model-version"] == "2.0"


def test_a_version_with_traffic_is_neither_parked_nor_unregistered_by_accident(site: Site, url: str) -> None:
    site.call("route", "split", "mcqa", "1.0=80", "2.0=20")
    for command in (["unregister", "mcqa", "1.0"], ["scale", "mcqa", "1.0", "0"]):
        done = site.run(*command)
        assert done.returncode == 1
        assert "mcqa 1.0 has weight 80" in done.stderr
    site.call("unregister", "mcqa", "1.0", "--force")
    assert {ask(url).headers["x-model-version"] for _ in range(10)} == {"2.0"}
    assert site.call("route", "show", "mcqa") == {"mcqa": {"split": {"2.0": 20.0}}}
    assert ask(url, x_model_version="1.0").status_code == 404
    site.call("register", str(site.store / "mcqa-1.0.mar"))
    assert ask(url, x_model_version="1.0").json() == ANSWER


def test_a_killed_worker_costs_no_client_an_error_while_a_rung_is_left(site: Site, url: str) -> None:
    """Each batch computes for a second, so the kill hits requests that are under way."""
    site.call("route", "split", "busy", "2.0=100")
    site.call("route", "fallback", "busy", "1.0")
    pid = site.versions()["busy 2.0"]["pids"][0]
    with ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(ask, url, "/predictions/busy") for _ in range(12)]
        time.sleep(0.5)
        psutil.Process(pid).kill()
        answers = [answer.result() for answer in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert "1.0" in {answer.headers.get("x-fallback") for answer in answers}
    assert all(answer.headers["x-model-version"] == answer.headers.get("x-fallback", "2.0") for answer in answers)


def test_changing_versions_and_traffic_drops_no_request(site: Site, url: str, tmp_path: Path) -> None:
    stop = threading.Event()
    codes: list[int] = []

    def keep_asking() -> None:
        with requests.Session() as session:
            while not stop.wait(0.005):
                codes.append(session.post(f"{url}/predict", json=REQUEST, timeout=30).status_code)

    askers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for asker in askers:
        asker.start()
    archive = tiny_archive(tmp_path, version="3.0")
    site.call("register", str(archive))
    site.call("route", "split", "mcqa", "2.0=50", "3.0=50")
    site.call("route", "split", "mcqa", "2.0=100")
    site.call("unregister", "mcqa", "3.0")
    stop.set()
    for asker in askers:
        asker.join()
    assert len(codes) > 100
    assert set(codes) == {200}


def test_down_answers_what_was_asked(make_site: MakeSite) -> None:
    site = make_site("1.0")
    tiny_archive(site.store, "busy", handler=BUSY, samples=False)
    listened = site.up()
    with ThreadPoolExecutor(12) as clients:
        steady = [clients.submit(ask_until_refused, listened["gateway"]) for _ in range(2)]
        asked = [clients.submit(ask, listened["gateway"], "/predictions/busy") for _ in range(10)]
        time.sleep(0.3)
        assert site.call("down")["stopped"]
        assert {answer.result().status_code for answer in asked} == {200}
        assert {code for codes in steady for code in codes.result()} == {200}
    site.assert_nothing_left(listened)


def test_without_a_gateway_torchserve_stands_alone(make_site: MakeSite) -> None:
    site = make_site("1.0")
    up: Any = site.call(*site.up_arguments, "--no-gateway", "--detach")
    assert up["gateway"] is None
    assert up["inference"] in up["curl"]
    assert not any("_bin/envoy" in p.cmdline()[0] for p in site.processes())
    done = site.run("route", "show", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "no_gateway")
    site.call("unregister", "mcqa", "1.0")
    site.call("down")


def test_keys_and_tls_come_with_a_configuration(make_site: MakeSite, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"api_keys": {"ann": "k1"}, "tls": {"certificate": certificate, "key": key}}))
    site = make_site("1.0")
    gateway = site.call(*site.up_arguments, "--gateway-config", str(path), "--detach")["gateway"]
    assert gateway.startswith("https://")
    refused = requests.post(f"{gateway}/predict", json=REQUEST, timeout=30, verify=certificate)
    assert (refused.status_code, refused.json()["error"]) == (401, "no_api_key")
    got = requests.post(f"{gateway}/predict", json=REQUEST, timeout=30, verify=certificate, headers={"x-api-key": "k1"})
    assert got.json() == ANSWER
    assert site.run("ask", json.dumps(REQUEST), "--json").returncode == 0
    assert site.run("down").returncode == 0


def test_an_envoy_that_dies_is_started_again_at_once(make_site: MakeSite) -> None:
    site = make_site("1.0", "2.0")
    process, _ = foreground(site)
    listened = site.call("status")
    site.call("route", "split", "mcqa", "1.0=100")
    killed = psutil.Process(listened["gateway_pid"])
    killed.kill()
    began = time.monotonic()
    until(lambda: not is_alive(killed))
    until(lambda: answers(listened["gateway"]))
    assert time.monotonic() - began < 5
    assert ask(listened["gateway"]).headers["x-model-version"] == "1.0"
    site.call("route", "split", "mcqa", "2.0=100")
    assert ask(listened["gateway"]).headers["x-model-version"] == "2.0"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    site.assert_nothing_left(listened)


def test_a_gateway_that_cannot_start_stops_everything_again(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site("1.0")
    path = tmp_path / "gateway.yaml"
    path.write_text("address: 203.0.113.7\n")
    done = site.run(*site.up_arguments, "--detach", "--gateway-config", str(path))
    assert done.returncode == 1
    assert "Envoy" in done.stderr
    assert not site.processes()


def test_the_next_start_cleans_a_dead_stacks_gateway_and_keeps_the_traffic(make_site: MakeSite) -> None:
    site = make_site("1.0")
    dead = site.up()
    site.call("route", "split", "mcqa", "1.0=1", "--experiment", "kept")
    for pid in (site.call("status")["reconciler_pid"], dead["pid"]):
        psutil.Process(pid).kill()
    assert ask(dead["gateway"]).json()["error"] == "unavailable"
    listened = site.up()
    assert listened["gateway"] == dead["gateway"]
    assert listened["pid"] != dead["pid"]
    assert site.call("route", "show")["mcqa"]["experiment"] == "kept"
    site.call("down")
    site.assert_nothing_left(listened)
