"""What is declared comes into force and stays so, whatever is killed, full or damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from marctl.stack.state import State
from tests.full_disk import fill, small_disk
from tests.live.conftest import Site, is_server
from tests.live.envoys import until
from tests.tiny_archives import ANSWER, CONSTANT, FAILS_TO_LOAD, REQUEST, tiny_archive

pytestmark = pytest.mark.live
MakeSite = Callable[..., Site]
CHANGES_EACH = int(os.environ.get("CHANGES_EACH", "10"))
"""Of two operators at once; a longer run is a study."""
DIES_AT_ONCE = "import os\n" + CONSTANT.replace("        return None", "        os._exit(7)")


@pytest.fixture
def pair(make_site: MakeSite) -> Iterator[Site]:
    """mcqa 1.0 and 2.0 are served, half of the requests each, and left behind."""
    site = make_site("1.0", "2.0")
    site.up()
    site.call("route", "split", "mcqa", "1.0=50", "2.0=50")
    yield site
    site.run("down")
    assert not site.processes()
    assert not site.reconcilers()


def versions_asked(site: Site, count: int = 30) -> set[str]:
    url = site.call("status")["gateway"]
    return {site.client(url).headers.get("x-model-version", "none") for _ in range(count)}


@contextmanager
def asked_all_the_while(url: str) -> Iterator[list[int]]:
    """The codes of one request after the other, until the block ends."""
    codes: list[int] = []
    ending = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not ending.wait(0.01):
                codes.append(session.post(f"{url}/predict", json=REQUEST, timeout=30).status_code)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield codes
    finally:
        ending.set()
        asker.join()


def kill_reconciler(site: Site) -> None:
    [process] = site.reconcilers()
    process.kill()
    process.wait()


def test_predictions_go_on_without_the_reconciler_and_the_next_one_takes_over(pair: Site) -> None:
    before = pair.call("status")
    with asked_all_the_while(before["gateway"]) as codes:
        kill_reconciler(pair)
        refused = pair.run("default", "mcqa", "1.0")
        assert refused.returncode == 1
        assert "is declared, and the process that would follow it has ended" in refused.stderr
        assert "nobody follows it" in pair.run("status").stdout
        taken = pair.up()
        assert pair.call("default", "mcqa", "2.0")["default"]
    after = pair.call("status")
    assert (taken["gateway"], after["pid"], after["gateway_pid"]) == (
        before["gateway"],
        before["pid"],
        before["gateway_pid"],
    )
    assert [row["pids"] for row in after["versions"]] == [row["pids"] for row in before["versions"]]
    assert set(codes) == {200}


@pytest.mark.parametrize("seconds", [0.4, 1.2, 2.0, 3.0, 4.5])
def test_a_start_that_is_killed_at_any_moment_is_finished_by_the_next(make_site: MakeSite, seconds: float) -> None:
    site = make_site("1.0", "2.0")
    process = site.popen(*site.up_arguments)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    listened = site.up()
    assert site.client(listened["gateway"]).json() == ANSWER
    lines = [" ".join(process.cmdline()) for process in site.processes()]
    names = [next(n for n in ("ModelServer", "_worker", "envoy", "redis") if n in line) for line in lines]
    assert sorted(names) == ["ModelServer", "_worker", "_worker", "envoy", "redis", "redis"]
    site.call("down")
    site.assert_nothing_left(listened)


def test_a_new_version_that_fails_brings_the_former_state_back_with_the_reason(pair: Site, tmp_path: Path) -> None:
    before = pair.call("state", "show")
    with asked_all_the_while(pair.call("status")["gateway"]) as codes:
        done = pair.run(
            "register", str(tiny_archive(tmp_path, version="9.0", handler=FAILS_TO_LOAD)), "--default", "--json"
        )
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "load_failed")
    now = pair.call("state", "show")
    assert (now["models"], now["revision"]) == (before["models"], before["revision"] + 2)
    *_, last = pair.call("history")["revisions"]
    assert (last["actor"], last["command"]) == ("reconciler", "take back")
    assert "labels.json has 2 labels" in last["reason"]
    assert set(codes) == {200}
    assert pair.call("history", "verify")["verified"]


def test_a_worker_that_ends_without_a_word_is_a_failure_too(pair: Site, tmp_path: Path) -> None:
    done = pair.run("register", str(tiny_archive(tmp_path, version="9.0", handler=DIES_AT_ONCE)))
    assert done.returncode == 1
    assert "its worker ended without an error message" in done.stderr
    assert set(pair.versions()) == {"mcqa 1.0", "mcqa 2.0"}


def test_a_version_that_is_missing_at_one_start_gets_its_share_back(pair: Site) -> None:
    """A split of 95 to 5 must not become all of the other for good."""
    pair.call("down")
    archive = pair.store / "mcqa-1.0.mar"
    archive.rename(pair.store / "away")
    pair.up()
    assert versions_asked(pair) == {"2.0"}
    [condition] = pair.call("status")["conditions"]
    assert (condition["what"], "is gone" in condition["reason"]) == ("mcqa 1.0", True)
    assert pair.call("route", "show")["mcqa"]["split"] == {"1.0": 50, "2.0": 50}
    (pair.store / "away").rename(archive)
    until(lambda: pair.call("status")["conditions"] == [], 70)
    assert versions_asked(pair) == {"1.0", "2.0"}


def test_what_somebody_changed_behind_its_back_is_put_right(pair: Site) -> None:
    status = pair.call("status")
    requests.delete(f"{status['management']}/models/mcqa/2.0", timeout=30)
    for path in (pair.state / "gateway").glob("*.json"):
        if path.name.startswith("gateway"):
            path.write_text("{}")
    until(lambda: "mcqa 2.0" in pair.versions() and pair.versions()["mcqa 2.0"]["workers_ready"] == 1, 30)
    until(lambda: "resources" in (pair.state / "gateway" / "gateway.json").read_text(), 30)
    until(lambda: versions_asked(pair) == {"1.0", "2.0"}, 30)


@pytest.mark.parametrize("content", ["{damaged", ""])
def test_damaged_files_orphan_nothing(pair: Site, content: str) -> None:
    listened = pair.call("status")
    kill_reconciler(pair)
    for name in ("running.json", "status.json"):
        (pair.state / name).write_text(content)
    assert "marctl up" in pair.run("status").stderr
    up = pair.up()
    assert len([p for p in pair.processes() if "ModelServer" in " ".join(p.cmdline())]) == 1
    assert pair.client(up["gateway"]).status_code == 200
    kill_reconciler(pair)
    (pair.state / "running.json").write_text(content)
    assert pair.call("down")["stopped"]
    pair.assert_nothing_left(listened)


def test_two_operators_at_once_lose_no_change_and_leave_none_half_done(pair: Site) -> None:
    began = pair.call("state", "show")["revision"]

    def operate(name: str) -> int:
        draw, done = random.Random(name), 0
        for _ in range(CHANGES_EACH):
            words = draw.choice(
                [
                    ("route", "split", "mcqa", f"1.0={draw.randint(1, 9)}", f"2.0={draw.randint(1, 9)}"),
                    ("default", "mcqa", draw.choice(["1.0", "2.0"])),
                    ("route", "fallback", "mcqa", draw.choice(["1.0", "2.0"])),
                ]
            )
            result = pair.run(*words, "--reason", name)
            assert result.returncode == 0, result.stderr
            done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(operate, ["ann", "bob"])) == 2 * CHANGES_EACH
    status, history = pair.call("status"), pair.call("history")["revisions"]
    assert status["observed"] == status["revision"] == history[-1]["revision"]
    assert {row["reason"] for row in history if row["revision"] > began} == {"ann", "bob"}
    assert pair.call("history", "verify")["revision"] == len(history)
    model = pair.call("state", "show")["models"]["mcqa"]
    assert pair.default() == [f"mcqa {model['default']}"]


def test_commands_on_nothing_that_runs_change_the_document_for_the_next_start(pair: Site, tmp_path: Path) -> None:
    pair.call("down")
    archive = str(tiny_archive(tmp_path, version="3.0"))
    assert "no stack runs" in pair.run("register", archive, "--default", "--store", str(pair.store)).stdout
    assert pair.call("route", "split", "mcqa", "3.0=100")
    assert "no stack runs" in pair.run("unregister", "mcqa", "1.0").stdout
    pair.up()
    assert (set(pair.versions()), versions_asked(pair)) == ({"mcqa 2.0", "mcqa 3.0"}, {"3.0"})


def test_a_rollback_brings_a_whole_revision_back(pair: Site, tmp_path: Path) -> None:
    before = pair.call("state", "show")
    pair.call("register", str(tiny_archive(tmp_path, version="3.0")), "--default")
    pair.call("route", "split", "mcqa", "3.0=100")
    pair.call("unregister", "mcqa", "1.0", "--force")
    assert pair.call("rollback", str(before["revision"]))["in_force"]
    assert pair.call("state", "show")["models"] == before["models"]
    assert (set(pair.versions()), versions_asked(pair)) == ({"mcqa 1.0", "mcqa 2.0"}, {"1.0", "2.0"})


def test_the_whole_document_is_applied_onto_the_revision_that_it_names(pair: Site, tmp_path: Path) -> None:
    path = tmp_path / "state.yaml"
    path.write_text(pair.run("state", "show").stdout.replace("workers: 1", "workers: 2", 1))
    assert "-          workers: 1" in pair.run("state", "diff", str(path)).stdout.replace(
        "        workers", "          workers"
    )
    assert pair.call("state", "apply", str(path), "--reason", "evening")["in_force"]
    assert [row["workers_ready"] for row in pair.versions().values()] == [2, 1]
    again = pair.run("state", "apply", str(path))
    assert (again.returncode, "the state was changed since revision" in again.stderr) == (1, True)


def test_odd_archives_never_reach_torchserve(pair: Site, tmp_path: Path) -> None:
    for i, (model, version) in enumerate([("a\nb", "1.0"), ("../evil", "1.0"), ("mcqa", "../1")]):
        (tmp_path / str(i)).mkdir()
        made = tiny_archive(tmp_path, "x", "1").rename(tmp_path / str(i) / "x.mar")
        rename(made, model, version)
        done = pair.run("register", str(made))
        assert (done.returncode, "name" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert pair.call("register", str(tiny_archive(tmp_path, version="3.0")))["workers_ready"] == 1
    assert set(pair.versions()) == {"mcqa 1.0", "mcqa 2.0", "mcqa 3.0"}


def rename(archive: Path, model: str, version: str) -> None:
    import zipfile

    with zipfile.ZipFile(archive) as file:
        content = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(content["MAR-INF/MANIFEST.json"])
    manifest["model"] |= {"modelName": model, "modelVersion": version}
    with zipfile.ZipFile(archive, "w") as file:
        for name, text in {**content, "MAR-INF/MANIFEST.json": json.dumps(manifest)}.items():
            file.writestr(name, text)


@pytest.fixture
def cramped(make_site: MakeSite, tmp_path: Path) -> Iterator[tuple[Site, Path]]:
    """A site whose state folder is on a disk of 16 MiB of its own."""
    with small_disk(tmp_path / "disk", "16m") as disk:
        site = make_site("1.0", "2.0")
        (site.folder / "state").symlink_to(disk)
        yield site, disk
        site.run("down")


def test_a_full_disk_is_told_and_nothing_is_lost(cramped: tuple[Site, Path], tmp_path: Path) -> None:
    site, disk = cramped
    listened = site.up()
    site.call("route", "split", "mcqa", "1.0=50", "2.0=50")
    before = site.call("state", "show")
    ballast = fill(disk)
    fill(disk)
    with asked_all_the_while(listened["gateway"]) as codes:
        for words in (
            ["route", "split", "mcqa", "1.0=1"],
            ["default", "mcqa", "1.0"],
            ["scale", "mcqa", "1.0", "2"],
            ["register", str(tiny_archive(tmp_path, version="3.0"))],
            ["unregister", "mcqa", "1.0", "--force"],
        ):
            done = site.run(*words)
            assert (done.returncode, "Traceback" in done.stderr) == (1, False), (words, done.stderr)
            assert "No space left" in done.stderr or "is the default" in done.stderr, (words, done.stderr)
        assert site.call("state", "show") == before
        assert site.call("status")["observed"] == before["revision"]
    assert set(codes) == {200}
    ballast.unlink()
    assert site.call("default", "mcqa", "1.0")["default"]
    assert site.call("history", "verify")["verified"]
    fill(disk)
    assert site.call("down")["stopped"]
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(disk) in " ".join(p.info["cmdline"] or []) and is_server(p.info["cmdline"])
    ]


def test_a_start_on_a_full_disk_is_refused_and_leaves_nothing(cramped: tuple[Site, Path]) -> None:
    site, disk = cramped
    fill(disk)
    done = site.run(*site.up_arguments, "--detach")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "No space left" in done.stderr
    assert not site.processes()
    (disk / "ballast").unlink()
    site.up()


def test_a_fault_of_the_next_one_stops_nothing_that_serves(pair: Site) -> None:
    """Such as a recipe that was broken meanwhile."""
    url = pair.call("status")["gateway"]
    kill_reconciler(pair)
    recipe = pair.folder / "recipes" / "mcqa" / "3.0" / "model.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("task: none\n")
    assert pair.run(*pair.up_arguments, "--detach").returncode == 1
    assert pair.client(url).json() == ANSWER
    recipe.unlink()
    assert pair.up()["gateway"] == url


def test_a_stopped_reconciler_is_ended_by_down(pair: Site) -> None:
    """SIGTERM is nothing to a process that is stopped; continued, it ends in order."""
    [process] = pair.reconcilers()
    process.send_signal(signal.SIGSTOP)
    stopping = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {process.pid}"])
    assert pair.call("down")["stopped"]
    stopping.wait()


def test_a_foreign_server_on_the_port_is_not_taken_for_ours(make_site: MakeSite) -> None:
    """It listens by the time of the start, with the port given."""
    other = make_site("1.0")
    foreign = other.up()
    site = make_site("1.0")
    port = foreign["inference"].rpartition(":")[2]
    done = site.run(*site.up_arguments, "--port", port, "--detach")
    assert (done.returncode, f"port {port} on 127.0.0.1 is taken" in done.stderr) == (1, True)
    gateway = foreign["gateway"].rpartition(":")[2]
    done = site.run(*site.up_arguments, "--gateway-port", gateway, "--detach")
    assert (done.returncode, f"port {gateway} on 127.0.0.1 is taken" in done.stderr) == (1, True)
    assert not site.processes()
    assert other.client(foreign["gateway"]).status_code == 200
    assert State(site.state).running() is None
    other.call("down")
