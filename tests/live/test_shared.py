"""Thirty versions in one shared worker behind the gateway: each answers as itself, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from loadtest.shared.archives import Files
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.live.shared_versions import ROW, base_archive, write_number

pytestmark = pytest.mark.live
NUMBERS = range(1, 31)
LARGE = 2
"""MiB of some versions' weights: more of them than the shared worker may hold at once."""
LARGE_ONES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m10")
MEMORY_MB = 16
RESTART_S = 60.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return base_archive(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], files: Files) -> Iterator[Site]:
    """m1 to m30, of which m30 has a second version that falls back to the first."""
    made = make_site()
    for number in NUMBERS:
        name = f"m{number}"
        write_number(files, made.store, name, "1.0", number, LARGE if name in LARGE_ONES else 0.01)
    settings = made.folder / "settings.yaml"
    settings.write_text(yaml.safe_dump({"models": {}, "shared": {"memory_mb": MEMORY_MB}}))
    made.call("state", "apply", str(settings))
    made.up()
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def gateway(site: Site) -> str:
    return str(site.call("status")["gateway"])


def ask(gateway: str, path: str, action: str = "", **headers: str) -> requests.Response:
    named = {"cache-control": "no-cache"} | {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"values": ROW} | ({"action": action} if action else {})
    return requests.post(f"{gateway}/predictions/{path}", json=body, headers=named, timeout=30)


def worker(site: Site) -> dict[str, Any]:
    [row] = site.call("status")["shared"]
    return dict(row)


def test_every_version_answers_as_itself_in_one_process(site: Site, gateway: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: ask(gateway, f"m{number}"), list(NUMBERS) * 3))
    for number, reply in zip(list(NUMBERS) * 3, replies, strict=True):
        answer = reply.json()
        assert reply.status_code == 200, reply.text
        assert (answer["model"], answer["model_version"], answer["score"]) == (f"m{number}", "1.0", 3.0 * number)
        assert reply.headers["x-model-version"] == "1.0"
    rows = site.call("status")["versions"]
    assert len({pid for row in rows for pid in row["pids"]}) == 1
    assert len(rows) == len(NUMBERS)


def test_cold_versions_leave_for_others_and_come_back_without_an_error(site: Site, gateway: str) -> None:
    for _ in range(2):
        for name in LARGE_ONES:  # 20 MiB in 16
            assert ask(gateway, name).status_code == 200
    until(lambda: worker(site)["resident"] < len(NUMBERS))
    assert worker(site)["resident_mb"] <= MEMORY_MB
    page = requests.get(f"{gateway}/metrics", timeout=10).text
    lines = [line for line in page.splitlines() if line.startswith("handler_shared")]
    figures = {line.split("{")[0]: float(line.split()[-1]) for line in lines}
    assert figures["handler_shared_evictions_total"] > 0
    assert figures["handler_shared_cold_requests_total"] > 0
    assert figures["handler_shared_load_failures_total"] == 0
    assert 'batcher_requests_total{model="m1",status="200",version="1.0"}' in page


@pytest.mark.parametrize(
    "headers",
    [
        {"url_path": "m2/1.0"},
        {"Url_Path": "m2/1.0"},
        {"x-gateway-cluster": "m2|1.0"},
        {"x-gateway-model": "m2", "x-gateway-route": "pinned"},
        {"x-original-url": "/predictions/m2"},
        {"x-loading": "1"},
        {"x-envoy-original-path": "/predictions/m2/1.0"},
    ],
)
def test_no_header_chooses_another_version(gateway: str, headers: dict[str, str]) -> None:
    reply = requests.post(f"{gateway}/predictions/m3", json={"values": ROW}, headers=headers, timeout=30)
    assert (reply.status_code, reply.json()["score"]) == (200, 9.0)


@pytest.mark.parametrize(
    "path", ["{worker}", "{worker}/1", "{worker}/1/m2/1.0", "m3/1.0/m2/1.0", "m3/1.0/..%2f..%2fm2"]
)
def test_no_path_reaches_the_shared_worker_past_the_gateway_s_names(site: Site, gateway: str, path: str) -> None:
    reply = ask(gateway, path.format(worker=worker(site)["worker"]))
    assert reply.status_code in (400, 404)


def test_a_form_field_chooses_no_version(gateway: str) -> None:
    parts = {"url_path": (None, "m2/1.0"), "body": (None, '{"values": [1.0, 2.0]}', "application/json")}
    reply = requests.post(f"{gateway}/predictions/m3", files=parts, timeout=30)
    assert reply.status_code == 503 or reply.json()["score"] == 9.0


def test_a_fault_of_one_version_is_its_own(gateway: str) -> None:
    assert ask(gateway, "m11", "fail").status_code == 500
    assert ask(gateway, "m12").status_code == 200


def test_a_broken_archive_is_taken_back_with_its_reason(site: Site, gateway: str, files: Files, tmp_path: Path) -> None:
    done = site.run("register", str(write_number(files, tmp_path, "bad", "1.0", 5, expected=99.0)))
    assert done.returncode == 1
    assert "answers its sample 0 wrongly" in done.stderr
    assert ask(gateway, "bad").status_code == 404
    assert ask(gateway, "m13").json()["score"] == 39.0


def test_a_version_is_registered_made_the_default_and_unregistered(
    site: Site, gateway: str, files: Files, tmp_path: Path
) -> None:
    site.call("register", str(write_number(files, tmp_path, "m14", "2.0", 100)), "--default")
    assert ask(gateway, "m14").json()["score"] == 300.0
    assert ask(gateway, "m14/1.0").json()["score"] == 42.0
    site.call("default", "m14", "1.0")
    site.call("unregister", "m14", "2.0")
    assert ask(gateway, "m14").json()["score"] == 42.0
    assert ask(gateway, "m14/2.0").status_code == 404


def test_to_scale_a_shared_version_is_refused_with_the_cure(site: Site) -> None:
    done = site.run("scale", "m15", "1.0", "2")
    assert done.returncode == 1
    assert "shared: {workers: N}" in done.stderr


def test_a_killed_worker_comes_back_and_so_do_its_versions(site: Site, gateway: str) -> None:
    [pid] = worker(site)["pids"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: worker(site)["pids"] not in ([], [pid]) and worker(site)["workers_ready"], RESTART_S)
    until(lambda: ask(gateway, "m16").status_code == 200, RESTART_S)
    assert ask(gateway, "m17").json()["score"] == 51.0


def test_a_version_that_ends_the_worker_again_and_again_is_left_alone(site: Site, gateway: str) -> None:
    for _ in range(3):
        until(lambda: ask(gateway, "m18").status_code == 200, RESTART_S)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, gateway, "m18", "exit")
            assert asked.result().status_code in (500, 503)
        time.sleep(0.5)
    until(lambda: ask(gateway, "m19").status_code == 200, RESTART_S)
    until(lambda: "ended its shared worker" in ask(gateway, "m18").text, RESTART_S)
    assert "workers: 1" in ask(gateway, "m18").json()["detail"]
    assert ask(gateway, "m20").json()["score"] == 60.0
