"""An ensemble is served like any other version, and goes on where one of its members cannot be loaded."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from marctl.build import build as build_module
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.tiny_ensembles import write_ensemble, write_recipes

pytestmark = pytest.mark.live
QUESTION = {"question": "Where might he go?", "choices": ["the lake", "a spoon", "a cloud"]}


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Iterator[Site]:
    """Two versions and two ensembles of them, 4.0 with a member whose weights were damaged after the build."""
    made = make_site()
    recipes = made.folder / "recipes"
    content = yaml.safe_load((write_recipes(recipes, tiny_model) / "model.yaml").read_text())
    write_ensemble(recipes / "quiz" / "3.0", **content, explanations={"workers": 1})
    write_ensemble(recipes / "quiz" / "4.0", **content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "verify", lambda *_: None)  # TorchServe asks the samples, too
        build_module.build_all(recipes, made.store)
    damage(made.store / "quiz-4.0.mar", "members/quiz/2.0/model/model.safetensors")
    made.up()
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def gateway(site: Site) -> str:
    return str(site.call("status")["gateway"])


def damage(archive: Path, name: str) -> None:
    changed = archive.with_suffix(".changed")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(changed, "w") as out:
        for info in source.infolist():
            out.writestr(info, b"damaged" if info.filename == name else source.read(info))
    os.replace(changed, archive)


def ask(gateway: str, path: str, body: Any = QUESTION) -> requests.Response:
    return requests.post(f"{gateway}/{path}", json=body, timeout=30)


def test_an_ensemble_answers_what_its_served_members_say_together(gateway: str) -> None:
    first, second, both = (ask(gateway, f"predictions/quiz/{version}") for version in ("1.0", "2.0", "3.0"))
    pairs = zip(first.json()["probabilities"], second.json()["probabilities"], strict=True)
    assert both.json()["probabilities"] == pytest.approx([0.3 * a + 0.7 * b for a, b in pairs], abs=3e-6)
    assert (both.json()["members"], both.json()["failed"]) == (["1.0", "2.0"], [])
    again = ask(gateway, "predictions/quiz/3.0")
    assert again.headers["x-cache"] == "hit"
    assert again.json()["members"] == ["1.0", "2.0"]


def test_an_ensemble_explains_its_own_probability(gateway: str) -> None:
    options = {"method": "shapley", "target": "probability"}
    answer = ask(gateway, "explanations/quiz/3.0", QUESTION | {"explain": options}).json()
    [explanation] = answer["explanations"]
    assert explanation["value"] == pytest.approx(answer["confidence"], abs=1e-5)
    assert explanation["complete"]
    assert answer["members"] == ["1.0", "2.0"]


def test_without_a_member_the_rest_answer_say_so_are_counted_and_not_kept(gateway: str) -> None:
    alone, rest = ask(gateway, "predictions/quiz/1.0"), ask(gateway, "predictions/quiz/4.0")
    assert rest.json()["probabilities"] == pytest.approx(alone.json()["probabilities"], abs=3e-6)
    assert (rest.json()["members"], rest.json()["failed"]) == (["1.0"], ["2.0"])
    assert ask(gateway, "predictions/quiz/4.0").headers["x-cache"] == "miss"
    counted = 'handler_members_missing{model="quiz",version="4.0"} 1.0'
    until(lambda: counted in requests.get(f"{gateway}/metrics", timeout=30).text, 10)
