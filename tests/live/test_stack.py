"""The operator's commands against a real TorchServe. Tests share one stack where they leave it as they found it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.core.process import is_alive
from tests.live.conftest import Site, is_server
from tests.live.envoys import until
from tests.tiny_archives import ANSWER, BUSY, CONSTANT, FAILS_TO_LOAD, LACKS_A_LIBRARY, REQUEST, tiny_archive

pytestmark = pytest.mark.live
MakeSite = Callable[..., Site]


def test_all_versions_are_served_and_the_highest_is_the_default(site: Site) -> None:
    versions = site.versions()
    assert {name: row["default"] for name, row in versions.items()} == {"mcqa 1.9": False, "mcqa 1.10": True}
    for row in versions.values():
        assert (row["workers_ready"], row["workers_asked"], row["queue"], row["batch_size"]) == (1, 1, 0, 8)
        assert all(psutil.pid_exists(pid) for pid in row["pids"])
        assert row["memory_mb"] > 10


def test_status_is_a_table_for_people(site: Site) -> None:
    lines = site.run("status").stdout.splitlines()
    assert lines[6].split()[:5] == ["model", "version", "default", "traffic", "workers"]
    assert lines[8].split()[:6] == ["mcqa", "1.10", "yes", "100", "%", "1/1"]


def test_status_as_json_is_what_the_tests_take_for_it(site: Site) -> None:
    printed, taken = json.loads(site.run("status", "--json").stdout), site.call("status")
    assert printed.keys() == taken.keys()
    for name in ("running", "revision", "pid", "gateway", "inference", "redis", "conditions"):
        assert printed[name] == taken[name]
    assert [row.keys() for row in printed["versions"]] == [row.keys() for row in taken["versions"]]


def test_the_workers_share_a_redis_of_the_stacks_own(site: Site) -> None:
    status = site.call("status")
    assert status["redis_answers"]
    assert f"Redis pid {status['redis_pid']} at {status['redis']}" in site.run("status").stdout
    for row in site.versions().values():
        assert [psutil.Process(pid).environ()["REDIS_URL"] for pid in row["pids"]] == [status["redis"]]


def test_only_loopback_listens(site: Site) -> None:
    server = psutil.Process(site.call("status")["pid"])
    listeners = [c.laddr for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listeners) == 5
    assert {address.ip.removeprefix("::ffff:") for address in listeners} == {"127.0.0.1"}


def test_a_second_start_is_refused_and_harms_nothing(site: Site) -> None:
    done = site.run(*site.up_arguments)
    assert done.returncode == 1
    assert "is running already" in done.stderr
    assert "marctl down --state" in done.stderr
    assert site.ask("mcqa").json() == ANSWER


def test_registering_leaves_no_gap_and_the_default_as_it_is(site: Site, tmp_path: Path) -> None:
    """Loading takes seconds; a client that asks all the while must not notice."""
    url = f"{site.call('status')['inference']}/predictions/mcqa"
    slowest, stop = [0.0], threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            began = time.monotonic()
            assert requests.post(url, json=REQUEST, timeout=30).json() == ANSWER
            slowest.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    done = site.call("register", str(tiny_archive(tmp_path, version="2.0")), "--workers", "2")
    stop.set()
    asking.join()
    assert (done["workers_ready"], done["default"]) == (2, False)
    assert len(slowest) > 20
    assert max(slowest) < 1.0
    assert site.default() == ["mcqa 1.10"]
    site.call("unregister", "mcqa", "2.0")


def test_a_registered_version_is_not_registered_twice(site: Site, tmp_path: Path) -> None:
    done = site.run("register", str(tiny_archive(tmp_path, version="1.9")))
    assert done.returncode == 1
    assert "mcqa 1.9 is registered already" in done.stderr
    assert "marctl unregister mcqa 1.9" in done.stderr


@pytest.mark.parametrize(
    ("handler", "answer", "reason"),
    [
        (FAILS_TO_LOAD, None, "did not load: labels.json has 2 labels, the model has 3; rebuild the archive"),
        (LACKS_A_LIBRARY, None, "did not load: ModuleNotFoundError: No module named 'no_such_library'"),
        (CONSTANT, {"prediction": 0}, "answers its sample 0 wrongly: prediction is 1, expected 0"),
    ],
    ids=["load error", "import error", "wrong answer"],
)
def test_a_version_that_fails_is_taken_back_and_says_why(
    site: Site, tmp_path: Path, handler: str, answer: dict[str, object] | None, reason: str
) -> None:
    archive = tiny_archive(tmp_path, version="9.0", handler=handler, answer=answer)
    done = site.run("register", str(archive), "--default")
    assert done.returncode == 1
    error = done.stderr[done.stderr.index("error: ") :].rstrip().splitlines()
    assert error[0].endswith(reason)
    assert len(error) <= 2
    assert "mcqa 9.0" not in site.versions()
    assert not (site.store / archive.name).exists()
    assert site.default() == ["mcqa 1.10"]


def test_what_is_no_archive_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.mar").write_bytes(b"no zip")
    done = site.run("register", str(tmp_path / "x.mar"))
    assert done.returncode == 1
    assert "not a whole model archive" in done.stderr


def test_a_plain_torchserve_archive_of_another_model_becomes_its_default(site: Site, tmp_path: Path) -> None:
    done = site.call("register", str(tiny_archive(tmp_path, "plain", samples=False)))
    assert done["default"]
    assert site.ask("plain").json() == ANSWER
    site.call("unregister", "plain", "1.0")
    assert not [name for name in site.versions() if name.startswith("plain")]


def test_workers_are_scaled_up_and_down(site: Site) -> None:
    assert site.call("scale", "mcqa", "1.9", "2")["workers_ready"] == 2
    assert len(site.versions()["mcqa 1.9"]["pids"]) == 2
    assert site.call("scale", "mcqa", "1.9", "0")["workers_ready"] == 0
    assert site.ask("mcqa/1.9").status_code == 503
    assert site.run("default", "mcqa", "1.9").returncode == 1
    assert site.call("scale", "mcqa", "1.9", "1")["workers_ready"] == 1
    assert site.ask("mcqa/1.9").json() == ANSWER


def test_the_default_version_keeps_a_worker(site: Site) -> None:
    done = site.run("scale", "mcqa", "1.10", "0")
    assert done.returncode == 1
    assert "must keep a worker" in done.stderr


def test_the_default_moves_and_only_then_may_its_version_go(site: Site) -> None:
    refused = site.run("unregister", "mcqa", "1.10")
    assert refused.returncode == 1
    assert "marctl default mcqa VERSION" in refused.stderr
    assert site.call("default", "mcqa", "1.9")["default"]
    assert site.default() == ["mcqa 1.9"]
    assert site.call("unregister", "mcqa", "1.10")["unregistered"]
    assert "mcqa 1.10" not in site.versions()
    assert site.call("register", str(site.store / "mcqa-1.10.mar"), "--default")["default"]
    assert site.default() == ["mcqa 1.10"]


def test_unregistering_answers_what_was_asked_before(site: Site, tmp_path: Path) -> None:
    """Sixteen requests are two batches of a second each."""
    site.call("register", str(tiny_archive(tmp_path, "busy", handler=BUSY)))
    url = f"{site.call('status')['inference']}/predictions/busy"
    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(requests.post, url, json=REQUEST, timeout=30) for _ in range(16)]
        time.sleep(0.3)
        site.call("unregister", "busy", "1.0")
    assert [answer.result().status_code for answer in asked] == [200] * 16


def test_an_unknown_version_is_named(site: Site) -> None:
    done = site.run("default", "mcqa", "7.7")
    assert done.returncode == 1
    assert "7.7" in done.stderr


def test_a_check_asks_each_model_as_a_client_would(site: Site) -> None:
    [answer] = site.call("check")["answers"]
    assert (answer["model"], answer["version"], answer["busy"]) == ("mcqa", "1.10", False)


def test_a_check_fails_while_no_worker_can_answer(site: Site) -> None:
    [pid] = site.versions()["mcqa 1.10"]["pids"]
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: site.run("check", "--timeout", "2").returncode == 1)
        failed = site.run("check", "--timeout", "2")
        assert failed.returncode == 1
        assert "mcqa answered its sample with 503" in failed.stderr
        assert "no_worker" in failed.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: site.run("check").returncode == 0)


def test_down_leaves_nothing_and_the_next_start_respects_what_was_chosen(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site("1.0", "1.1", "1.2")
    listened = site.up()
    site.call("default", "mcqa", "1.0")
    site.call("scale", "mcqa", "1.0", "2")
    site.call("scale", "mcqa", "1.1", "0")
    site.call("unregister", "mcqa", "1.2")
    site.call("register", str(tiny_archive(tmp_path, "embed")))
    assert site.call("down")["stopped"]
    site.assert_nothing_left(listened)
    assert site.run("status").returncode == 1
    site.up()
    rows = {name: row["workers_ready"] for name, row in site.versions().items()}
    assert rows == {"embed 1.0": 1, "mcqa 1.0": 2, "mcqa 1.1": 0}
    assert site.default() == ["embed 1.0", "mcqa 1.0"]
    site.call("down")


def test_two_stacks_live_side_by_side_even_where_paths_are_long(site: Site, make_site: MakeSite) -> None:
    """A socket's path may have about 100 bytes."""
    other = make_site("1.0", under="long" * 30)
    listened = other.up()
    assert listened["inference"] != site.call("status")["inference"]
    assert other.ask("mcqa").json() == ANSWER
    assert site.ask("mcqa").json() == ANSWER
    temp = Path(json.loads((other.state / "running.json").read_text())["temp"])
    assert temp.is_dir()
    other.call("down")
    other.assert_nothing_left(listened)
    assert not temp.exists()
    assert site.ask("mcqa").json() == ANSWER


def foreground(site: Site) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """`marctl up` that has announced itself, with the servers and the worker it started."""
    process = site.popen(*site.up_arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stop it with Ctrl-C"):
            break
    started = [p for p in psutil.Process(process.pid).children(recursive=True) if is_server(p.cmdline())]
    assert len(started) == 4 + len(list(site.store.glob("*.mar"))), "two Redis servers, TorchServe, its workers, Envoy"
    return process, started


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["Ctrl-C", "SIGTERM"])
def test_a_foreground_stack_stops_whole(make_site: MakeSite, sent: signal.Signals, code: int) -> None:
    site = make_site("1.0")
    process, started = foreground(site)
    listened = site.call("status")
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not any(map(is_alive, started))
    site.assert_nothing_left(listened)


def test_a_container_prints_what_all_parts_log_as_lines_of_json(make_site: MakeSite) -> None:
    site = make_site("1.0")
    process = site.popen(*site.up_arguments, "--logs")
    assert process.stdout
    lines = []
    while not lines or lines[-1]["message"] != "serving":
        lines.append(json.loads(process.stdout.readline()))
    process.terminate()
    out, err = process.communicate(timeout=60)
    lines += [json.loads(line) for line in out.splitlines()]
    assert (process.returncode, err) == (0, "")
    assert lines[-1]["message"] == "stopped"
    assert {"reconciler", "worker"} <= {line["part"] for line in lines}


def test_redis_that_dies_is_started_again_where_the_workers_find_it(make_site: MakeSite) -> None:
    site = make_site("1.0")
    process, _ = foreground(site)
    before = site.call("status")
    psutil.Process(before["redis_pid"]).kill()
    assert process.stderr is not None
    told = next(line for line in process.stderr if line.startswith("Redis (pid"))
    now = site.call("status")
    assert told == (
        f"Redis (pid {before['redis_pid']}) had died and was started again, pid {now['redis_pid']}; "
        "cached answers are gone\n"
    )
    assert now["redis"] == before["redis"]
    assert now["redis_answers"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    site.assert_nothing_left(before)


def test_without_redis_it_serves_and_keeps_nothing(make_site: MakeSite, tiny_model: Callable[[str], Path]) -> None:
    site = make_site()
    build(adopt(tiny_model("bert"), "quiz", "1.0", site.folder / "recipes", precision="float32"), site.store)
    served = site.call(*site.up_arguments, "--no-redis", "--detach")
    question = {"question": "What cuts bread?", "choices": ["a knife", "a cloud"]}
    answers = [requests.post(f"{served['gateway']}/predictions/quiz", json=question, timeout=30) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["probabilities"] == answers[1].json()["probabilities"]
    assert "no Redis: answers are neither cached nor logged" in site.run("status").stdout
    assert not [process for process in site.processes() if "valkey-server" in process.name()]
    for command in (("cache", "purge", "quiz"), ("log", "drain", "--to", str(site.folder / "log"))):
        refused = site.run(*command)
        assert (refused.returncode, "Redis" in refused.stderr) == (1, True)
    site.call("down")
    site.assert_nothing_left(served)


def test_down_ends_a_foreground_stack_without_an_error(make_site: MakeSite) -> None:
    site = make_site("1.0")
    process, _ = foreground(site)
    listened = site.call("status")
    site.call("down")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors.endswith("stopping\nstopped\n")
    site.assert_nothing_left(listened)


def test_a_server_that_dies_is_started_again_with_its_versions(make_site: MakeSite) -> None:
    site = make_site("1.0", "2.0")
    before = site.up()
    site.call("route", "split", "mcqa", "1.0=50", "2.0=50")
    psutil.Process(before["pid"]).kill()
    until(lambda: site.run("status").returncode == 0 and site.call("status")["pid"] != before["pid"], 60)
    until(lambda: all(row["workers_ready"] for row in site.versions().values()), 60)
    until(lambda: site.call("status")["conditions"] == [], 60)
    assert {site.client(before["gateway"]).headers["x-model-version"] for _ in range(20)} == {"1.0", "2.0"}
    assert site.call("down")["stopped"]
    site.assert_nothing_left(before)


def test_a_stack_whose_processes_are_all_killed_is_cleaned_by_the_next_start(make_site: MakeSite) -> None:
    site = make_site("1.0")
    dead = site.up()
    for pid in (site.call("status")["reconciler_pid"], dead["pid"]):
        psutil.Process(pid).kill()
    done = site.run("status")
    assert done.returncode == 1
    assert "has died; start it again with `marctl up`" in done.stderr
    listened = site.up()
    answer = subprocess.run(shlex.split(listened["curl"]), capture_output=True, text=True, check=True).stdout
    assert json.loads(answer) == ANSWER
    site.call("down")
    site.assert_nothing_left(listened)


def test_a_start_with_a_broken_version_stops_everything_again(make_site: MakeSite) -> None:
    site = make_site("1.0")
    tiny_archive(site.store, version="2.0", handler=FAILS_TO_LOAD)
    done = site.run(*site.up_arguments, "--detach")
    assert done.returncode == 1
    assert "error: mcqa 2.0 did not load: labels.json has 2 labels" in done.stderr
    assert not site.processes()
    assert not (site.state / "tmp").exists()


def test_a_taken_port_is_named_before_anything_starts(make_site: MakeSite) -> None:
    site = make_site("1.0")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = site.run(*site.up_arguments, "--metrics-port", str(port))
    assert done.returncode == 1
    assert (
        f"port {port} on 127.0.0.1 is taken by another program; choose another one with --metrics-port" in done.stderr
    )


def test_a_server_that_does_not_start_shows_its_last_words(make_site: MakeSite, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(
        '#!/bin/sh\nif [ "$1" = -version ]; then echo \'version "17.0.1"\'; else echo out of luck; exit 3; fi\n'
    )
    java.chmod(0o755)
    site = make_site("1.0")
    site.environ["JAVA_HOME"] = str(tmp_path)
    done = site.run(*site.up_arguments, "--detach")
    assert done.returncode == 1
    assert "TorchServe ended while starting, exit code 3" in done.stderr
    assert "out of luck" in done.stderr
    assert "console.log" in done.stderr
