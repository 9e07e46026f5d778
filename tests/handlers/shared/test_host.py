"""Many versions in one process: each answers as itself, and what one does harms no other."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from pathlib import Path

import pytest

from marctl_handlers.core.messages import LOADING_HEADER, SAMPLE_HEADER, Request
from marctl_handlers.shared.host import Host, own
from marctl_handlers.torchserve.host_metrics import HostMetrics
from tests.handlers.shared.members import CODE, a_host, ask, asking, told, write_list, write_member


def test_each_version_answers_as_itself_whatever_the_order(tmp_path: Path) -> None:
    members = [write_member(tmp_path, model, version) for model in ("a", "b") for version in ("1.0", "2.0")]
    host = a_host(tmp_path, members)
    names = ["b/2.0", "a/1.0", "b/1.0", "b/2.0", "a/2.0"]
    for _ in range(2):  # cold, then hot
        for name, (code, answer) in zip(names, ask(host, *names), strict=True):
            assert (code, f"{answer['model']}/{answer['model_version']}") == (200, name)
            assert answer["of"] == answer["model"]
            assert answer["prediction_id"] == f"to {name}"
    replies = host.answer([asking(name) for name in names])
    assert [reply.headers["x-model-version"] for reply in replies] == [name.partition("/")[2] for name in names]
    assert host.totals()["handler_shared_loads_total"] == 4


@pytest.mark.parametrize("path", ["", "a", "a/9", "../a-1.0/1.0", "/tmp/a-1.0", "a/1.0/../../b", "A/1.0", "a\x00/1.0"])
def test_only_what_is_listed_is_loaded(tmp_path: Path, path: str) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, "a")])
    [(code, answer)] = [told(reply) for reply in host.answer([asking(path)])]
    listed = path.startswith("a/1.0")
    assert (code, answer.get("error")) == ((200, None) if listed else (503, "unavailable"))
    assert host.totals()["handler_shared_loads_total"] == int(listed)


def test_the_one_not_asked_for_longest_leaves_and_comes_back(tmp_path: Path) -> None:
    members = [write_member(tmp_path, name, megabytes=3) for name in "abcd"]
    host = a_host(tmp_path, members, memory_mb=10)
    ask(host, "a/1.0"), ask(host, "b/1.0"), ask(host, "c/1.0"), ask(host, "a/1.0")
    ask(host, "d/1.0")
    assert host.held()[0] == ["c/1.0", "a/1.0", "d/1.0"]
    assert host.held()[1] <= 10 << 20
    assert ask(host, "b/1.0")[0][0] == 200
    assert host.held()[0] == ["a/1.0", "d/1.0", "b/1.0"]
    assert host.totals()["handler_shared_evictions_total"] == 2


def test_nothing_is_left_of_a_version_that_leaves(tmp_path: Path) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, name, megabytes=3) for name in "ab"], memory_mb=5)
    ask(host, "a/1.0")
    task = weakref.ref(host._residents.held()[0].pipeline.task)
    ask(host, "b/1.0")
    gc.collect()
    assert task() is None


def test_a_version_takes_what_was_allocated_for_it_and_a_library_is_nobody_s(tmp_path: Path) -> None:
    held = "self.more = np.ones(1 << 18)"  # 2 MiB
    loud = "import wave; self.more = np.ones(1 << 20)"
    host = a_host(tmp_path, [write_member(tmp_path, "a", loading=held), write_member(tmp_path, "b", loading=loud)])
    sys.modules.pop("wave", None)
    ask(host, "a/1.0"), ask(host, "b/1.0")
    taken = {each.member.model: each.bytes for each in host._residents.held()}
    assert 2 << 20 <= taken["a"] < 3 << 20
    assert taken["b"] < 1 << 20


def test_one_larger_than_the_memory_is_refused_with_the_cure(tmp_path: Path) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, "a", megabytes=3), write_member(tmp_path, "b")], memory_mb=2)
    [(code, answer)] = [told(reply) for reply in host.answer([asking("a/1.0", **{SAMPLE_HEADER: "1"})])]
    assert (code, answer["error"]) == (503, "unavailable")
    assert "workers: 1" in answer["detail"]
    assert ask(host, "b/1.0")[0][0] == 200


@pytest.mark.parametrize(
    ("loading", "told_"),
    [
        ("raise ValueError('secret')", "secret"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise MemoryError", "MemoryError"),
        ("self.name = 'other'", "answers its sample 0 wrongly"),
        ("this is no Python", "SyntaxError"),
    ],
)
def test_a_load_that_fails_is_its_own_failure(tmp_path: Path, loading: str, told_: str) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, "bad", loading=loading), write_member(tmp_path, "good")])
    bad, good = (told(reply) for reply in host.answer([asking("bad/1.0"), asking("good/1.0")]))
    assert (bad[0], good[0]) == (503, 200)
    assert told_ not in bad[1]["detail"]
    [reply] = host.answer([asking("bad/1.0", **{SAMPLE_HEADER: "1"})])
    assert told_ in told(reply)[1]["detail"]
    assert reply.headers["retry-after"] == "1"
    assert LOADING_HEADER not in reply.headers  # to ask again would be in vain
    assert host.totals()["handler_shared_load_failures_total"] == 1  # not tried again at once


def test_other_handler_code_is_refused_with_the_cure(tmp_path: Path) -> None:
    other = {**CODE, "marctl_handlers/core/pipeline.py": "1" * 64}
    host = a_host(tmp_path, [write_member(tmp_path, "a", code=other)])
    [reply] = host.answer([asking("a/1.0", **{SAMPLE_HEADER: "1"})])
    assert "built with other handler code" in told(reply)[1]["detail"]


def test_loads_hold_up_nobody_who_is_loaded(tmp_path: Path) -> None:
    slow = write_member(tmp_path, "slow", loading="time.sleep(1)")
    host = a_host(tmp_path, [slow, write_member(tmp_path, "hot")], cold_wait_ms=5)
    assert until_200(host, "hot/1.0")
    began = time.monotonic()
    refused, hot = host.answer([asking("slow/1.0"), asking("hot/1.0")])
    assert time.monotonic() - began < 0.5
    assert (refused.code, hot.code) == (503, 200)
    assert (refused.headers[LOADING_HEADER], refused.headers["x-model-version"]) == ("1", "1.0")
    assert until_200(host, "slow/1.0")
    assert host.totals()["handler_shared_cold_refused_total"] >= 1


def test_a_load_that_hangs_is_given_up_and_takes_nobody_s_place(tmp_path: Path) -> None:
    hung = [write_member(tmp_path, f"hung{i}", loading="time.sleep(3)") for i in range(2)]
    host = a_host(tmp_path, [*hung, write_member(tmp_path, "good")], cold_wait_ms=5, load_seconds=0.3)
    ask(host, "hung0/1.0", "hung1/1.0")
    assert until_200(host, "good/1.0")
    [reply] = host.answer([asking("hung0/1.0", **{SAMPLE_HEADER: "1"})])
    assert "not loaded within 0.3 s" in told(reply)[1]["detail"]
    assert not host.broken


def test_a_request_waits_no_longer_than_its_own_time(tmp_path: Path) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, "slow", loading="time.sleep(2)")])
    began = time.monotonic()
    timed = {"x_request_start_ms": str(time.time() * 1000), "x_request_timeout_ms": "100"}
    [reply] = host.answer([asking("slow/1.0", **timed)])
    assert reply.code == 503
    assert time.monotonic() - began < 1


def test_a_fault_of_one_version_is_its_own(tmp_path: Path) -> None:
    bad = write_member(
        tmp_path, "bad", predicting="if questions[0].text != 'abc': raise (RuntimeError if len(questions) else 0)"
    )
    host = a_host(tmp_path, [bad, write_member(tmp_path, "good")])
    assert [code for code, _ in ask(host, "bad/1.0", "good/1.0", "bad/1.0")] == [500, 200, 500]


def test_a_burst_of_one_version_is_refused_what_would_hold_up_the_others(tmp_path: Path) -> None:
    slow = write_member(tmp_path, "slow", predicting="time.sleep(0.02 * len(questions))")
    host = a_host(tmp_path, [slow, write_member(tmp_path, "quick")], turn_ms=20, batch_ms=100)
    ask(host, "slow/1.0", "quick/1.0")
    began = time.monotonic()
    answers = ask(host, *["slow/1.0"] * 60, "quick/1.0")
    assert time.monotonic() - began < 0.6  # alone it would take 1.2 s
    codes = [code for code, _ in answers[:-1]]
    assert answers[-1][0] == 200
    assert codes.count(200) >= 2
    assert codes.count(503) > 30
    assert "workers: 1" in next(answer["detail"] for code, answer in answers if code == 503)


def test_the_list_may_change_under_way(tmp_path: Path) -> None:
    first, other = write_member(tmp_path, "a"), write_member(tmp_path, "b")
    host = a_host(tmp_path, [first, other])
    ask(host, "a/1.0", "b/1.0")
    again = write_member(tmp_path / "again", "a", sample={"request": {"text": "x"}, "expected": {"size": 1}})
    renewed = type(again)(again.model, again.version, "f" * 64, again.folder)
    write_list(tmp_path / "worker", [renewed])
    assert [code for code, _ in ask(host, "a/1.0", "b/1.0")] == [200, 503]
    assert host.totals()["handler_shared_resident_versions"] == 1
    (tmp_path / "worker" / "members.json").write_text("{")
    assert ask(host, "a/1.0")[0][0] == 200


def test_labels_go_to_the_version_they_are_for(tmp_path: Path) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, "a")])
    [reply] = host.answer([asking("a/1.0/feedback")])
    assert (reply.code, told(reply)[1]["error"]) == (501, "not_supported")
    assert "a 1.0 keeps no prediction log" in told(reply)[1]["detail"]


def test_requests_are_counted_by_version_and_only_of_members(tmp_path: Path) -> None:
    host = a_host(tmp_path, [write_member(tmp_path, "a")])
    metrics = HostMetrics("_shared", "1", host)
    metrics.watch(host.answer, [asking("a/1.0"), asking("a/1.0"), asking("stranger/1.0")])
    values = {tuple(s.labels.values()): s.value for s in metrics._requests.collect()[0].samples if "total" in s.name}
    assert values == {("a", "1.0", "200"): 2, ("_shared", "1", "503"): 1}


def test_the_time_of_every_versions_model_is_the_workers(tmp_path: Path) -> None:
    slow = "time.sleep(0.05)"
    host = a_host(tmp_path, [write_member(tmp_path, name, predicting=slow) for name in "ab"])
    metrics = HostMetrics("_shared", "1", host)
    metrics.watch(host.answer, [asking("a/1.0"), asking("b/1.0")])
    counts, seconds = metrics._inference._buckets, metrics._inference._sum.get()
    assert sum(bucket.get() for bucket in counts) == 1
    assert 0.1 <= seconds < 10


def test_a_version_gets_what_the_server_knows_of_a_request() -> None:
    headers = {"x-a": "b"}
    request = Request(b"{}", "me", True, headers | {"url_path": "a/1.0/feedback"}, "text/plain", 12.0, 3.0)
    assert own(request) == Request(b"{}", "me", True, headers | {"url_path": "feedback"}, "text/plain", 12.0, 3.0)


def until_200(host: Host, name: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if ask(host, name)[0][0] == 200:
            return True
        time.sleep(0.02)
    return False
