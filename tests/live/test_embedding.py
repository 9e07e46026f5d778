"""Embeddings over the gateway, in every form, and the figures of their batches on the metrics page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc
import tritonclient.http

from marctl.build.adopt import adopt
from marctl_handlers.tasks.embedding.reference import plain_answers
from marctl_handlers.text.pooling import Pooling
from tests.live.conftest import Site

pytestmark = pytest.mark.live

NAME, WIDTH, MAX_TOKENS = "tiny/bert", 32, 40
TEXTS = ["a knife", "There is a light rain today.", "naïve café", "Why not 3 or 42?"]
LONG = "There is a light rain today. " * 12


@pytest.fixture(scope="module")
def served(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Site:
    """embed 1.0, a tiny model with two workers, behind a gateway."""
    site = make_site()
    settings = {
        "precision": "float32",
        "max_tokens": MAX_TOKENS,
        "pooling": "mean",
        "normalize": True,
        "model_name": NAME,
    }
    version = adopt(tiny_model("bert"), "embed", "1.0", site.folder / "recipes", task="embedding", **settings)
    recipe = version.folder / "model.yaml"
    recipe.write_text(recipe.read_text() + "workers: 2\n")
    site.up()
    return site


@pytest.fixture(scope="module")
def url(served: Site) -> str:
    return str(served.call("status")["gateway"])


@pytest.fixture(scope="module")
def vectors(tiny_model: Callable[[str], Path]) -> list[list[float]]:
    """What plain transformers makes of TEXTS."""
    requests = [{"input_text": text} for text in TEXTS]
    answers = plain_answers(tiny_model("bert"), requests, Pooling("mean", normalize=True), MAX_TOKENS)
    return [answer["embedding"] for answer in answers]


def embed(url: str, body: Any, **headers: str) -> requests.Response:
    return requests.post(f"{url}/embed", json=body, headers=headers, timeout=30)


def test_a_text_gives_its_vector(url: str, vectors: list[list[float]]) -> None:
    reply = embed(url, {"input_text": TEXTS[0]})
    assert reply.status_code == 200
    answer = reply.json()
    np.testing.assert_allclose(answer.pop("embedding"), vectors[0], atol=1e-5)
    assert answer.pop("latency_ms") >= 0
    assert answer.pop("prediction_id") == reply.headers["x-request-id"]
    assert answer.pop("tokens") > 2
    assert answer == {"model": NAME, "model_version": "1.0", "truncated": False}
    assert reply.headers["x-model-version"] == "1.0"


def test_many_clients_batched_together_each_get_their_own(url: str, vectors: list[list[float]]) -> None:
    places = [i % len(TEXTS) for i in range(200)]
    with ThreadPoolExecutor(32) as pool:
        bodies = [{"input_text": TEXTS[place]} for place in places]
        replies = list(pool.map(lambda body: embed(url, body, **{"cache-control": "no-store"}), bodies))
    assert {reply.status_code for reply in replies} == {200}
    given = [reply.json()["embedding"] for reply in replies]
    np.testing.assert_allclose(given, [vectors[place] for place in places], atol=1e-5)


def test_a_list_of_texts_gives_a_list_of_vectors(url: str, vectors: list[list[float]]) -> None:
    answer = embed(url, {"input_text": TEXTS}).json()
    np.testing.assert_allclose(answer["embeddings"], vectors, atol=1e-5)
    assert answer["truncated"] == [False] * len(TEXTS)


def test_instances_keep_their_order_and_errors_their_place(url: str, vectors: list[list[float]]) -> None:
    bodies = [{"input_text": TEXTS[0]}, {"input_text": " "}, {"input_text": TEXTS[1]}]
    reply = requests.post(f"{url}/v1/models/embed:predict", json={"instances": bodies}, timeout=30)
    first, blank, last = reply.json()["predictions"]
    np.testing.assert_allclose([first["embedding"], last["embedding"]], vectors[:2], atol=1e-5)
    assert blank["error"] == "invalid_request"


def test_a_long_text_says_that_it_was_cut(url: str) -> None:
    answer = embed(url, {"input_text": LONG}).json()
    assert (answer["truncated"], answer["tokens"]) == (True, MAX_TOKENS)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"input_text": ""}', 422),
        (b'{"input_text": " "}', 422),
        (json.dumps({"input_text": "x" * 1025}).encode(), 422),
        (b'{"input_text": ["a", 3]}', 422),
        (b'{"input_text": []}', 422),
        (b"{}", 422),
        (b"no JSON", 400),
        (json.dumps({"input_text": ["a"] * 129}).encode(), 413),
    ],
)
def test_errors_have_the_one_form_of_all_errors(body: bytes, code: int, url: str) -> None:
    reply = requests.post(f"{url}/embed", data=body, headers={"content-type": "application/json"}, timeout=30)
    assert reply.status_code == code
    assert set(reply.json()) == {"error", "detail"}


def test_a_text_that_was_asked_before_comes_from_the_cache(url: str) -> None:
    body = {"input_text": "asked twice"}
    first = embed(url, body)
    deadline = time.monotonic() + 10
    while (again := embed(url, body)).headers["x-cache"] != "hit" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
    assert again.json()["embedding"] == first.json()["embedding"]
    assert embed(url, {"input_text": ["asked twice"]}).headers["x-cache"] == "hit", "alone or in a list"


@pytest.mark.parametrize("protocol", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("binary", [False, True], ids=["plain", "raw"])
def test_open_inference_clients_get_a_tensor_of_fixed_width(
    protocol: ModuleType, binary: bool, url: str, vectors: list[list[float]]
) -> None:
    client = protocol.InferenceServerClient(url.removeprefix("http://"))
    try:
        tensor = protocol.InferInput("input_text", [len(TEXTS)], "BYTES")
        wanted = protocol.InferRequestedOutput("embedding")
        rows = np.array(TEXTS, dtype=object)
        if protocol is tritonclient.http:
            tensor.set_data_from_numpy(rows, binary_data=binary)
            wanted = protocol.InferRequestedOutput("embedding", binary_data=binary)
        else:
            tensor.set_data_from_numpy(rows)
        found = client.infer("embed", [tensor], outputs=[wanted]).as_numpy("embedding")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, vectors, atol=1e-5)
        metadata = client.get_model_metadata("embed")
        outputs = metadata["outputs"] if isinstance(metadata, dict) else metadata.outputs
        shape = outputs[0]["shape"] if isinstance(metadata, dict) else outputs[0].shape
        assert [int(size) for size in shape] == [-1, WIDTH]
    finally:
        client.close()


def figures(served: Site) -> dict[str, float]:
    page = requests.get(f"{served.call('status')['metrics']}/metrics", timeout=10).text
    found = re.findall(r"^((?:batcher|handler)_\S+) (\S+)$", page, re.MULTILINE)
    return {name: float(value) for name, value in found}


OF_EMBED = 'model="embed",version="1.0"'


def test_the_figures_of_both_workers_are_on_the_page(served: Site, url: str) -> None:
    before = figures(served)
    with ThreadPoolExecutor(32) as pool:
        replies = pool.map(
            lambda i: embed(url, {"input_text": f"{i} rain"}, **{"cache-control": "no-store"}), range(300)
        )
        assert {reply.status_code for reply in replies} == {200}
    assert embed(url, {}).status_code == 422
    after = figures(served)

    def grown(name: str, labels: str = OF_EMBED) -> float:
        return after[f"{name}{{{labels}}}"] - before.get(f"{name}{{{labels}}}", 0)

    assert grown("batcher_requests_total", 'model="embed",status="200",version="1.0"') == 300
    assert grown("batcher_requests_total", 'model="embed",status="422",version="1.0"') == 1
    for name in ("batcher_request_latency_seconds", "batcher_batch_wait_time_seconds"):
        assert grown(f"{name}_count") == 301
        assert grown(f"{name}_bucket", f'le="10.0",{OF_EMBED}') == 301
    assert grown("batcher_batch_size_sum") == 301
    assert 1 < grown("batcher_batch_size_count") < 301
    assert 0 < grown("batcher_inference_time_seconds_count") <= grown("batcher_batch_size_count")
    assert after[f"batcher_inflight_batches{{{OF_EMBED}}}"] == 0
    assert after[f"batcher_queue_size{{{OF_EMBED}}}"] == 0
    assert len(list((served.state / "tmp" / "figures").glob("histogram_*.db"))) == 2
    page = requests.get(f"{url}/metrics", timeout=10).text
    assert f"batcher_batch_size_count{{{OF_EMBED}}}" in page
    assert "ts_inference_requests_total{" in page
    assert "envoy_cluster_upstream_rq_xx{" in page


def test_a_killed_workers_counts_stay(served: Site, url: str) -> None:
    before = figures(served)[f"batcher_batch_size_sum{{{OF_EMBED}}}"]
    pid = served.versions()["embed 1.0"]["pids"][0]
    psutil.Process(pid).kill()
    deadline = time.monotonic() + 30
    # TorchServe gives the dead worker one more batch.
    while embed(url, {"input_text": "after all"}).status_code != 200:
        assert time.monotonic() < deadline
    after = figures(served)
    assert after[f"batcher_batch_size_sum{{{OF_EMBED}}}"] >= before + 1
    assert after[f"batcher_inflight_batches{{{OF_EMBED}}}"] == 0
