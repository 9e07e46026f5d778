"""A whole worker process, from loading to its end, in TorchServe's own worker code: only the sockets are left out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path

import pytest

from tests.handlers.torchserve.served import Answer, replies_in

TASK = """
from __future__ import annotations
import msgspec
from marctl_handlers import Task

class Text(msgspec.Struct):
    text: str

class Length(msgspec.Struct):
    length: int

class Measure(Task[Text, Length]):
    def load(self, folder):
        pass

    def predict(self, questions, deadline):
        for question in questions:
            if question.text == "lose the device":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if question.text == "memory":
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return [Length(len(question.text)) for question in questions]
"""
PROGRAM = """
import base64, gc, json, logging, sys, time
from types import SimpleNamespace
from ts.service import Service
from marctl_handlers.entry import handle
from tests.handlers.torchserve.served import Field, batch_of

logging.basicConfig(format="%(message)s", level=logging.INFO)  # as TorchServe's worker does, on stdout
root, texts, wait_s = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
manifest = {"model": {"modelName": "small", "modelVersion": "1.0", "configFile": "model-config.yaml"}}
metrics = SimpleNamespace(request_ids=None, add_time=lambda *_: None, cache={})
service = Service("small", root, manifest, handle, None, 8, metrics_cache=metrics)
service.set_cl_socket(None)
service._entry_point(None, service.context)
for text in texts:
    body = bytearray(json.dumps({"text": text}).encode())
    reply = service.predict(batch_of([({"explain": "False"}, [Field("body", body, "application/json")])]))
    print(base64.b64encode(reply).decode(), flush=True)
time.sleep(wait_s)
print("alive", flush=True)
print("frozen", gc.get_freeze_count(), file=sys.stderr)
"""


def run(root: Path, texts: list[str], wait_s: float = 0.0) -> subprocess.CompletedProcess[str]:
    """A worker that answers a batch of one for each text, and then waits for its end."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), json.dumps(texts), str(wait_s)],
        env=os.environ | {"TMPDIR": str(root), "TS_DECODE_INPUT_REQUEST": "false", "REDIS_URL": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def replies(lines: list[str]) -> list[Answer]:
    return [replies_in(bytearray(b64decode(line)), 1)[0] for line in lines]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An extracted archive of a task that is the user's own."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "model").mkdir()
    (tmp_path / "model-config.yaml").write_text("handler: {task: own}\n")
    samples = [{"request": {"text": "four"}, "expected": {"length": 4}}]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    return tmp_path


def test_a_worker_loads_answers_and_gives_signs_of_life(root: Path) -> None:
    done = run(root, ["four", "memory", "seven"])
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    answers = replies(lines)
    assert [answer.code for answer in answers] == [200, 503, 200]
    assert json.loads(answers[2].body)["length"] == 5
    assert last == "alive", "a fault that leaves the device as it was ends nobody"
    assert len(list((root / "heartbeat").iterdir())) == 1


def test_the_log_says_once_what_computes_a_version(root: Path) -> None:
    [line] = [line for line in run(root, ["four"]).stderr.splitlines() if "computed by" in line]
    event = json.loads(line)
    assert (event["level"], event["part"], event["model"], event["version"]) == ("info", "worker", "small", "1.0")
    assert event["message"] == "loaded; computed by cpu"


def test_a_worker_that_lost_its_device_ends_after_its_reply(root: Path) -> None:
    started = time.monotonic()
    done = run(root, ["four", "lose the device"], wait_s=60.0)
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - started < 50
    good, lost = replies(done.stdout.splitlines())
    assert (good.code, lost.code) == (200, 503)
    assert json.loads(lost.body)["error"] == "unavailable"
    assert lost.headers["retry-after"] == "1", "another worker will answer"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "samples.json",
            json.dumps([{"request": {"text": "four"}, "expected": {"length": 5}}]),
            "its sample 0 wrongly",
        ),
        ("model-config.yaml", "handler: {task: own, threads: 0}\n", "`$.threads`"),
        ("model-config.yaml", "handler: {task: own, device: tpu}\n", "`$.device`"),
        ("model-config.yaml", "handler: {task: own, device: cuda}\n", "TorchServe gave this worker no GPU"),
        (
            "task.py",
            TASK.replace("pass", "import no_such_library"),
            "Measure.load raised ModuleNotFoundError (task.py, line ",
        ),
    ],
)
def test_a_version_that_cannot_serve_says_why_in_one_line_and_ends(
    file: str, content: str, words: str, root: Path
) -> None:
    (root / file).write_text(content)
    done = run(root, [])
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("LoadError: ")]
    assert line.startswith("LoadError: small 1.0: ")
    assert words in line


def test_a_worker_s_garbage_collector_leaves_the_libraries_alone(root: Path) -> None:
    frozen = re.search(r"^frozen (\d+)$", run(root, ["four"]).stderr, re.MULTILINE)
    assert frozen
    assert int(frozen[1]) > 10_000
