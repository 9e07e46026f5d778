"""The page for browsers, driven in Chromium, before a stack that asks for a key."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import yaml

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.recipe import RECIPE_FILE, Version, read_version
from marctl.gateway.web import files
from tests.live.browser import chromium
from tests.live.conftest import PROJECT, Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.live
KEY = "a-long-secret"
FRIEND, STRANGER = "https://friend.example", "https://stranger.example"
MARKUP = "<img src=x onerror='window.broken = 1'><script>window.broken = 2</script>"
OWN_TASK = """\
from typing import Literal

import msgspec

from marctl_handlers import Invalid, Task


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    cells: dict[str, float | str | bool | None] = {}
    times: int = 1
    kind: Literal["plain", "bold"] = "plain"


class Said(msgspec.Struct):
    label: str
    seen: dict[str, str]


class Echo(Task[Asked, Said]):
    def load(self, folder):
        pass

    def check(self, question):
        if question.times > 3:
            raise Invalid("times is more than 3")

    def predict(self, questions, deadline):
        return [
            Said(q.text * q.times, {"cells": repr(sorted(q.cells.items())), "kind": q.kind}) for q in questions
        ]
"""
VISIBLE_FOCUS = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], tiny_model: Callable[[str], Path]) -> Iterator[Site]:
    """quiz explains; credit is for tables; echo, a task of the user's own, repeats what it is given."""
    made = make_site()
    recipes = made.folder / "recipes"
    build(explaining(adopt(tiny_model("bert"), "quiz", "1.0", recipes, precision="float32")), made.store)
    for name in ("1.0", "features.yaml"):
        copy = recipes / "credit" / name
        copy.parent.mkdir(exist_ok=True)
        source = PROJECT / "model_store" / "credit" / name
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    build(read_version(recipes / "credit" / "1.0"), made.store)
    build(own_task(made), made.store)
    (made.folder / "gateway.yaml").write_text(yaml.safe_dump({"api_keys": {"ann": KEY}, "allowed_origins": [FRIEND]}))
    made.call(*made.up_arguments, "--gateway-config", str(made.folder / "gateway.yaml"), "--detach")
    yield made
    made.run("down")


def explaining(version: Version) -> Version:
    path = version.folder / RECIPE_FILE
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"explanations": {"workers": 1}}))
    return read_version(version.folder)


def own_task(site: Site) -> Version:
    folder = site.folder / "recipes" / "echo" / "1.0"
    folder.mkdir(parents=True)
    (site.folder / "echo.py").write_text(OWN_TASK)
    sample = {"request": {"text": "a", "cells": {"size": 1.5, "name": "2"}}, "expected": {"label": "a"}}
    recipe = {"task": "../../../echo.py", "description": "a test", "samples": [sample]}
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe))
    return read_version(folder)


@pytest.fixture(scope="module")
def url(site: Site) -> str:
    return str(site.call("status")["gateway"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page of a model, with the key; afterwards nothing may have been asked of another server, and no script
    may have failed."""
    contexts, asked, faults = [], [], []

    def opened(model: str = "", key: str = KEY, path: str = "/", **options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(f"{url}{path}#{model}" if model else url + path)
        if key:
            page.get_by_label("API key").fill(key)
            page.get_by_label("API key").press("Enter")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
    assert {found for found in asked if not found.startswith((url, "data:", "blob:"))} == set()


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def told(page: Page, what: str = ".answer") -> str:
    return page.locator(f"#told {what}").inner_text()


def test_the_sample_question_is_answered_with_each_choices_share(open_page: Callable[..., Page], url: str) -> None:
    page = open_page("quiz")
    page.get_by_label("Question", exact=True).fill("What do people use to cut bread?")
    page.get_by_label("Choices 1", exact=True).fill("a knife")
    page.get_by_label("Choices 2", exact=True).fill("a cloud")
    press(page, "Remove Choices 3")
    press(page, "Predict")
    text = told(page)
    body = {"question": "What do people use to cut bread?", "choices": ["a knife", "a cloud"]}
    answer = requests.post(f"{url}/predictions/quiz", json=body, headers={"x-api-key": KEY}, timeout=30).json()
    assert text.startswith(answer["label"])
    for share in answer["probabilities"]:
        assert f"{100 * share:.1f} %" in text


def test_a_row_of_a_table_has_a_field_for_each_feature_of_the_sample(open_page: Callable[..., Page]) -> None:
    page = open_page("credit")
    assert page.get_by_label("Seniority", exact=True).input_value() == "10"
    press(page, "Predict")
    assert told(page).startswith("good")
    page.get_by_label("Income", exact=True).fill("")
    press(page, "Predict")
    page.get_by_text("Income", exact=True).nth(1).wait_for()
    assert re.search(r"Imputed\s+Income", told(page))
    assert "marctl scale credit-explain 1.0 1" in page.locator("#about").inner_text()
    assert not page.get_by_role("button", name="Explain", exact=True).count()


def test_a_task_of_the_users_own_has_a_form_from_its_types(open_page: Callable[..., Page]) -> None:
    page = open_page("echo")
    page.get_by_label("Text", exact=True).fill("ha")
    page.get_by_label("Times").fill("2")
    page.get_by_label("Kind").select_option("bold")
    press(page, "Predict")
    text = told(page)
    assert text.startswith("haha")
    assert "[('name', '2'), ('size', 1.5)]" in text  # the sample's text stays one, though it looks like a number
    assert '"kind": "bold"' in text


def test_an_explanation_shows_words_with_signs_and_says_how_to_read_them(open_page: Callable[..., Page]) -> None:
    page = open_page("quiz")
    page.get_by_label("Question", exact=True).fill("What is a knife? 🔪 cut bread")
    page.get_by_label("Choices 1", exact=True).fill("a knife")
    page.get_by_label("Choices 2", exact=True).fill("a cloud")
    press(page, "Explain")
    page.locator("#told h3").wait_for()
    text = told(page)
    assert re.search(r"[+\u2212]\d", text)
    assert "speaks for" in text
    assert "bread" in page.locator("#told mark").all_inner_texts()  # places are counted in characters, not in halves


def test_an_error_is_shown_in_the_servers_words(open_page: Callable[..., Page]) -> None:
    page = open_page("echo")
    page.get_by_label("Times").fill("7")
    press(page, "Predict")
    assert told(page, "[role=alert]").split("\n", 1)[0] == "422 invalid_request"
    assert "times is more than 3" in told(page, "[role=alert]")
    press(page, "Edit as JSON")
    page.get_by_label("Request", exact=True).fill("{")
    press(page, "Predict")
    page.get_by_text("This is no JSON").wait_for()


def test_markup_in_questions_and_answers_stays_text(open_page: Callable[..., Page]) -> None:
    page = open_page("echo")
    page.get_by_label("Text", exact=True).fill(MARKUP)
    press(page, "Predict")
    assert told(page, ".headline") == MARKUP
    assert page.locator("#told img, #told script").count() == 0
    assert page.evaluate("window.broken") is None


def test_no_other_script_can_run_in_the_page(open_page: Callable[..., Page]) -> None:
    page = open_page("echo")
    page.get_by_label("Text", exact=True).wait_for()
    foreign = """() => {
        const script = document.createElement("script");
        try {
            script.textContent = "window.broken = 1";
            document.head.append(script);
        } catch (fault) { return fault.name; }
        return String(window.broken);
    }"""
    assert page.evaluate(foreign) in ("TypeError", "undefined")
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def test_a_wrong_key_is_told_and_a_right_one_is_kept_nowhere(open_page: Callable[..., Page]) -> None:
    page = open_page("quiz", key="wrong")
    page.get_by_text("does not know this key").wait_for()
    page.get_by_label("API key").fill(KEY)
    press(page, "Use this key")
    page.get_by_role("button", name="Predict").wait_for()
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in kept
    page.get_by_role("link", name="Health").click()
    page.get_by_text('"status":"ready"').wait_for()
    page.reload()
    assert page.get_by_label("API key").is_visible()


def test_the_keyboard_alone_is_enough(open_page: Callable[..., Page]) -> None:
    page = open_page("quiz", key="")
    page.get_by_label("API key").wait_for()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="quiz").wait_for()
    reach(page, "a", "echo")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="echo").wait_for()
    reach(page, "textarea", "")
    page.keyboard.press("Control+A")
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    assert told(page).startswith("by hand")


def reach(page: Page, tag: str, text: str) -> None:
    """By Tab; each element on the way shows that it has the focus."""
    for _ in range(30):
        page.keyboard.press("Tab")
        found, words, outlined = page.evaluate(
            f"[document.activeElement.tagName, document.activeElement.textContent, {VISIBLE_FOCUS}]"
        )
        assert outlined, (found, words)
        if found.lower() == tag and words.startswith(text):
            return
    raise AssertionError(f"no Tab leads to {tag} {text}")


def test_a_phone_shows_it_without_scrolling_sideways_and_dark_if_it_is_dark(open_page: Callable[..., Page]) -> None:
    page = open_page("credit", viewport={"width": 360, "height": 740}, color_scheme="dark")
    press(page, "Predict")
    told(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate(BACKGROUND)
    page.emulate_media(color_scheme="light")
    assert (brightness(dark) < 50, brightness(page.evaluate(BACKGROUND)) > 200) == (True, True)


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_the_reference_shows_each_operation_and_takes_the_key(open_page: Callable[..., Page]) -> None:
    page = open_page(path="/docs")
    page.get_by_text("/predictions/echo", exact=True).first.wait_for()
    page.get_by_text("/predictions/echo", exact=True).first.click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()


def test_the_files_need_no_key_and_all_else_does(url: str) -> None:
    for path, file in files().items():
        got = requests.get(url + path, timeout=20)
        assert (got.status_code, got.content) == (200, file.path.read_bytes())
        assert {name: got.headers[name] for name in file.headers} == file.headers
        assert requests.post(url + path, headers={"x-api-key": KEY}, timeout=20).status_code == 405
    for path in ("/openapi.json", "/health", "/metrics", "/v1/models"):
        assert requests.get(url + path, timeout=20).status_code == 401
    assert requests.post(f"{url}/predictions/echo", json={"text": "a"}, timeout=20).status_code == 401


def test_pages_of_other_origins_ask_only_where_the_configuration_names_them(url: str) -> None:
    """Without a key, as browsers ask beforehand; the answer to the request itself needs one."""
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,content-type"}
    allowed = requests.options(f"{url}/predictions/echo", headers={"origin": FRIEND, **asks}, timeout=20)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert "x-api-key" in allowed.headers["access-control-allow-headers"]
    refused = requests.options(f"{url}/predictions/echo", headers={"origin": STRANGER, **asks}, timeout=20)
    assert "access-control-allow-origin" not in refused.headers
    for origin, code in ((FRIEND, 200), (STRANGER, 403)):
        sent = {"origin": origin, "sec-fetch-site": "cross-site", "x-api-key": KEY}
        got = requests.post(f"{url}/predictions/echo", json={"text": "a"}, headers=sent, timeout=20)
        assert (got.status_code, got.headers.get("access-control-allow-origin")) == (
            code,
            FRIEND if code == 200 else None,
        )
