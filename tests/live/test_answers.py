"""The multiple-choice handler inside a real TorchServe: right answers, whole batches, nothing a client can break."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from loadtest.gateway.hostile import LOG_LINES, json_bodies
from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl_handlers.tasks.multiple_choice.reference import plain_probabilities
from tests.live.conftest import PROJECT, Site
from tests.live.envoys import until
from tests.questions import FLOAT32_BOUND, some_questions

pytestmark = pytest.mark.live

GOOD = {"question": "Why?", "choices": ["a knife", "a cloud"]}
PLAIN_CONFIG = """
minWorkers: 1
maxWorkers: 1
batchSize: 32
maxBatchDelay: 2
responseTimeout: 60
startupTimeout: 180
handler: {task: multiple_choice}
"""


@pytest.fixture(scope="module")
def quiz(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Iterator[Site]:
    """quiz 1.0, a tiny BERT in float32, is served."""
    site = make_site()
    build(adopt(tiny_model("bert"), "quiz", "1.0", site.folder / "recipes", precision="float32"), site.store)
    site.up()
    yield site
    site.run("down")


@pytest.fixture(scope="module")
def url(quiz: Site) -> str:
    return f"{quiz.call('status')['inference']}/predictions/quiz"


def post(url: str, body: Any, **headers: str) -> requests.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(url, data=content, headers={"Content-Type": "application/json", **headers}, timeout=30)


def test_answers_equal_plain_transformers_under_concurrency(url: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("bert")
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    questions = some_questions(60, seed=7)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda question: post(url, question).json(), questions))
    for question, answer in zip(questions, answers, strict=True):
        expected = plain_probabilities(model, tokenizer, question, 126)
        assert answer["probabilities"] == pytest.approx(expected, abs=FLOAT32_BOUND)


def test_answer_names_its_version_its_type_and_the_clients_request(url: str) -> None:
    response = post(url + "/1.0", GOOD, **{"x-request-id": "order-7"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-model-version"] == "1.0"
    answer = response.json()
    assert (answer["prediction_id"], answer["model"], answer["model_version"]) == ("order-7", "quiz", "1.0")
    assert answer["latency_ms"] > 0


def test_request_without_an_id_is_given_the_servers(url: str) -> None:
    response = post(url, GOOD)
    assert response.json()["prediction_id"] == response.headers["x-request-id"]


def test_requests_are_batched_as_the_metrics_page_tells(quiz: Site, url: str) -> None:
    before = counts(quiz)
    with ThreadPoolExecutor(32) as pool:
        assert {r.status_code for r in pool.map(lambda _: post(url, GOOD), range(400))} == {200}

    def since(name: str) -> float:
        return counts(quiz)[name] - before.get(name, 0)

    until(lambda: post(url, GOOD).ok and since("handler_requests_total") > 400)
    assert since("handler_requests_total") / since("handler_batches_total") > 2


def counts(site: Site) -> dict[str, float]:
    page = requests.get(site.call("status")["metrics"] + "/metrics", timeout=10).text
    found = re.findall(r'^(handler_\w+)\{[^}]*model="quiz",version="1.0"[^}]*\} (\S+)$', page, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_good_and_bad_requests_in_the_same_batches_each_get_their_own(url: str) -> None:
    bodies = [
        (200, json.dumps(GOOD).encode()),
        (400, b"{"),
        (200, json.dumps({"instances": [GOOD, {}]}).encode()),
        (422, b'{"question": "x", "choices": ["a"]}'),
        (400, b'{"question": "\\ud800", "choices": ["a", "b"]}'),
        (422, b"[" * 50_000),
    ]
    expected, sent = zip(*(bodies * 60), strict=True)
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda body: post(url, body).status_code, sent))
    assert got == list(expected)


def test_abuse_harms_neither_the_worker_nor_the_next_client(quiz: Site, url: str) -> None:
    [version] = quiz.versions().values()
    worker = version["pids"]
    dice = random.Random(0)
    address = urlsplit(url)
    bodies = [
        *(hostile.body for hostile in json_bodies()),
        bytes(dice.randrange(256) for _ in range(2000)),
        b'{"question": "x", "choices": ["a", "b"]}' + b" " * 1_100_000,
    ]
    headers = [{}, {"x-request-id": LOG_LINES.replace("\n", " ")}, {"explain": "True"}, {"Content-Type": "text/plain"}]

    def abuse(i: int) -> None:
        if i % 5 == 0:
            with socket.create_connection((address.hostname, address.port), timeout=10) as raw:
                length = dice.choice([0, 10, 10_000])
                raw.sendall(
                    f"POST {address.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + b"{"
                )
            return
        # A server that closes while a large body is still being sent resets the connection.
        try:
            response = post(url, bodies[i % len(bodies)], **headers[i % len(headers)])
            assert response.status_code in {200, 400, 413, 422}
        except requests.ConnectionError:
            assert len(bodies[i % len(bodies)]) > 1_048_576

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(abuse, range(1000)))
    for form in ({"data": "x=1"}, {"files": {"body": b"{}"}}, {"files": {"a\nb": b"x"}}):
        assert requests.post(url, timeout=30, **form).status_code in {400, 422}
    assert post(url, GOOD).status_code == 200
    [version] = quiz.versions().values()
    assert version["pids"] == worker, "the worker must still be the same process"
    logs = "".join(path.read_text(errors="replace") for path in (quiz.state / "logs").iterdir())
    assert "evil" not in logs
    assert "evil" not in requests.get(quiz.call("status")["metrics"] + "/metrics", timeout=10).text


def test_a_restarted_worker_that_answers_otherwise_takes_no_request(quiz: Site, url: str) -> None:
    """Its weights change on disk while it runs; the gateway says when it is ready again."""
    status = quiz.call("status")
    [path] = quiz.state.glob("tmp/**/model/model.safetensors")
    whole = path.with_suffix(".whole")
    shutil.copy(path, whole)
    weights = load_file(path).items()
    damaged = {name: -weight if "classifier" in name else weight for name, weight in weights}
    save_file(damaged, path.with_suffix(".damaged"), metadata={"format": "pt"})
    os.replace(path.with_suffix(".damaged"), path)
    psutil.Process(quiz.versions()["quiz 1.0"]["pids"][0]).kill()
    until(lambda: "answers its sample 0 wrongly" in (quiz.state / "logs" / "workers.log").read_text(), 60)
    assert requests.get(f"{status['gateway']}/ready", timeout=30).status_code == 503
    os.replace(whole, path)
    until(lambda: requests.get(f"{status['gateway']}/ready", timeout=30).status_code == 200, 60)
    assert post(url, GOOD).status_code == 200


def test_explanations_are_refused_request_by_request(url: str) -> None:
    response = post(url.replace("/predictions/", "/explanations/"), GOOD)
    assert (response.status_code, response.json()["error"]) == (501, "not_supported")


def test_ask_answers_from_the_shell(quiz: Site) -> None:
    answer = quiz.call("ask", "Why?", "a knife", "a cloud", "--model", "quiz")
    assert answer["label"] in {"a knife", "a cloud"}
    done = quiz.run("ask", "Why?", "a knife", "a cloud")
    assert "quiz 1.0" in done.stdout
    refused = quiz.run("ask", "Why?", "a knife", "", "--model", "quiz")
    assert refused.returncode == 1
    assert "$.choices[1]" in refused.stderr


def test_archive_of_plain_torch_model_archiver_serves(
    quiz: Site, url: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    stage = tmp_path / "stage"
    shutil.copytree(PROJECT / "handlers", stage / "marctl_handlers")
    shutil.copytree(tiny_model("roberta"), stage / "model")
    (tmp_path / "my-config.yaml").write_text(PLAIN_CONFIG)
    command = ["--model-name", "plain", "--version", "1.0", "--handler", str(PROJECT / "handlers" / "entry.py")]
    command += ["--config-file", "my-config.yaml", "--extra-files", "stage", "--export-path", "."]
    archiver = Path(sys.executable).with_name("torch-model-archiver")
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([archiver, *command], cwd=tmp_path, env=environ, check=True, capture_output=True)
    quiz.call("register", str(tmp_path / "plain.mar"))
    response = post(url.replace("/quiz", "/plain"), GOOD)
    assert (response.status_code, response.json()["model"]) == (200, "plain")
    quiz.call("unregister", "plain", "1.0")


def test_version_that_cannot_load_leaves_the_old_one_serving(quiz: Site, url: str, tmp_path: Path) -> None:
    broken = tmp_path / "quiz-2.0.mar"
    with zipfile.ZipFile(quiz.store / "quiz-1.0.mar") as source, zipfile.ZipFile(broken, "w") as out:
        for info in source.infolist():
            content = source.read(info)
            if info.filename == "MAR-INF/MANIFEST.json":
                content = content.replace(b'"modelVersion": "1.0"', b'"modelVersion": "2.0"')
            if info.filename != "model/config.json":
                out.writestr(info, content)
    done = quiz.run("register", str(broken), "--default")
    assert done.returncode == 1
    [reason] = [line for line in done.stderr.splitlines() if "config.json" in line]
    assert "model/config.json is missing; rebuild the archive" in reason
    assert "Traceback" not in done.stderr
    assert post(url, GOOD).json()["model_version"] == "1.0"
    assert set(quiz.versions()) == {"quiz 1.0"}
