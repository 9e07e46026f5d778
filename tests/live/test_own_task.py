"""Tasks of the users' own, one Python file each, are served like ours."""

from __future__ import annotations

import io
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import yaml
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.live.conftest import Site
from tests.live.envoys import until
from tests.live.own_tasks import BRIGHTNESS, SENTIMENT
from tests.tiny_models import bert, wordpiece

pytestmark = pytest.mark.live
TEXTS = ["a knife", "a light rain today", "she poured milk", "orange juice", "it is naïve"]


def recipe(site: Site, model: str, version: str, **content: Any) -> None:
    folder = site.folder / "recipes" / model / version
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({"description": "a test", **content}))


def picture(shade: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier as a user saved it."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = wordpiece()
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(bert(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], texts: Path) -> Iterator[Site]:
    """Two versions of a text classifier, and an image model."""
    made = make_site()
    made.folder.mkdir(exist_ok=True)
    (made.folder / "sentiment.py").write_text(SENTIMENT)
    (made.folder / "brightness.py").write_text(BRIGHTNESS)
    expected = plain(texts, ["a knife"])[0]
    sample = {"request": {"text": "a knife"}, "expected": expected}
    for version in ("1.0", "2.0"):
        recipe(
            made,
            "sentiment",
            version,
            task="../../../sentiment.py",
            weights={"directory": str(texts)},
            log={"input": "whole"},
            samples=[sample],
        )
    weights = made.folder / "image-model"
    weights.mkdir()
    torch.save(torch.full((192, 1), 1 / 192), weights / "weights.pt")
    recipe(
        made,
        "brightness",
        "1.0",
        task="../../../brightness.py",
        weights={"directory": "../../../image-model"},
        samples=[{"request": {"file": "light.png", "content_type": "image/png"}, "expected": {"label": "light"}}],
    )
    (made.folder / "recipes/brightness/1.0/light.png").write_bytes(picture(255))
    made.up()
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def gateway(site: Site) -> str:
    return str(site.call("status")["gateway"])


@torch.inference_mode()
def plain(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """One text at a time, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    shares = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0] for text in texts]
    return [{"label": model.config.id2label[int(row.argmax())], "score": round(float(row.max()), 4)} for row in shares]


def ask(gateway: str, body: Any, path: str = "sentiment", **headers: str) -> requests.Response:
    return requests.post(f"{gateway}/predictions/{path}", json=body, headers=headers, timeout=30)


def test_answers_are_the_models_own_in_batches_with_splits_and_cache(gateway: str, texts: Path) -> None:
    with ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(lambda text: ask(gateway, {"text": text}), TEXTS))
    for reply, expected in zip(replies, plain(texts, TEXTS), strict=True):
        answer = reply.json()
        assert reply.status_code == 200
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-3)
        assert list(answer) == ["prediction_id", "model", "model_version", "label", "score", "latency_ms"]
    assert ask(gateway, {"text": TEXTS[0]}).headers["x-cache"] == "hit"


def test_a_bad_request_of_an_own_type_is_told_its_field_and_harms_no_neighbour(gateway: str) -> None:
    bodies: list[Any] = [{"text": "a knife"}, {"text": 3}, {"txt": "a"}, {"instances": [{"text": "a"}, {"text": None}]}]
    with ThreadPoolExecutor(4) as pool:
        anew = {"cache-control": "no-cache"}
        good, wrong, unknown, several = pool.map(lambda body: ask(gateway, body, **anew), bodies)
    assert (good.status_code, wrong.status_code, unknown.status_code, several.status_code) == (200, 422, 422, 200)
    assert "`$.text`" in wrong.json()["detail"]
    assert "txt" in unknown.json()["detail"]
    assert several.json()["predictions"][1]["error"] == "invalid_request"


def test_a_shadow_of_an_own_task_is_logged_and_split(site: Site, gateway: str) -> None:
    site.call("route", "split", "sentiment", "1.0=100")
    site.call("route", "shadow", "sentiment", "2.0=100")
    for i, text in enumerate(TEXTS):
        assert ask(gateway, {"text": text}, **{"x-request-id": f"own-{i}"}).headers["x-model-version"] == "1.0"
    rows: list[dict[str, Any]] = []

    def all_there() -> bool:
        from marctl.records.reader import read

        site.call("log", "drain")
        rows[:] = [row for row in read(site.state / "log").to_pylist() if row["prediction_id"].startswith("own-")]
        return len(rows) == 2 * len(TEXTS)

    until(all_there, 60)
    assert {(row["version"], row["shadow"]) for row in rows} == {("1.0", False), ("2.0", True)}
    assert {json.loads(row["input"])["text"] for row in rows} == set(TEXTS)


def test_raw_images_are_classified_alone_and_inside_json(gateway: str) -> None:
    url = f"{gateway}/predictions/brightness"
    for shade, kind, label in ((250, "PNG", "light"), (5, "JPEG", "dark")):
        headers = {"content-type": f"image/{kind.lower()}"}
        reply = requests.post(url, data=picture(shade, kind), headers=headers, timeout=30)
        assert (reply.status_code, reply.json()["label"]) == (200, label), reply.text
    inside = {"instances": [{"b64": b64encode(picture(250)).decode()}, {"b64": b64encode(b"no image").decode()}]}
    first, second = requests.post(url, json=inside, timeout=30).json()["predictions"]
    assert (first["label"], second["error"]) == ("light", "invalid_request")
    as_file = requests.post(url, files={"data": ("x.png", picture(250), "image/png")}, timeout=30)
    assert (as_file.status_code, as_file.json().get("label")) == (200, "light"), as_file.text


def test_a_body_that_is_no_image_is_refused_with_the_types_that_are_read(gateway: str) -> None:
    url = f"{gateway}/predictions/brightness"
    reply = requests.post(url, data=b"hello", headers={"content-type": "text/csv"}, timeout=30)
    assert (reply.status_code, reply.json()["error"]) == (415, "unsupported_type")
    assert "image/*" in reply.json()["detail"]
    assert requests.post(url, data=b"hello", headers={"content-type": "image/png"}, timeout=30).status_code == 422


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("SentimentTask(Task[Text, Sentiment])", "SentimentTask(Task)"), "names no types"),
        (("return [Sentiment(", "return 2 * [Sentiment("), "2 outcomes for 1 questions"),
        (("def load(self", "def laod(self"), "does not define load"),
        (("shares = self.model", "shares = self.modle"), "AttributeError: "),
        (("import torch\n", "import torhc\n"), "line 2: ModuleNotFoundError"),
        (("    label: str", "    model: str"), "every answer has a field of this name"),
    ],
)
def test_a_mistake_in_the_file_is_told_like_one_in_a_recipe(
    change: tuple[str, str], words: str, tmp_path: Path, texts: Path, make_site: Callable[..., Site]
) -> None:
    site = make_site()
    site.folder.mkdir(exist_ok=True)
    assert change[0] in SENTIMENT
    (site.folder / "mine.py").write_text(SENTIMENT.replace(*change))
    sample = {"request": {"text": "a knife"}, "expected": {"label": "LABEL_0"}}
    weights = {"directory": str(texts)}
    recipe(site, "mine", "1.0", task="../../../mine.py", weights=weights, samples=[sample])
    started = time.monotonic()
    done = site.run_build()
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
