"""The page shows the client's own words, safely, and needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.explain.answer import Explanation
from marctl_handlers.tasks.multiple_choice.explain.page import own_word
from tests.handlers.tasks.multiple_choice.explain.asking import QUESTION, load

EVIL = "<script>alert('x')</script> & \"quotes\""


class Reader(HTMLParser):
    """Tags, and the text inside each <dd>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "dd":
            self._inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "dd"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


@pytest.fixture(scope="module")
def quiz(tiny_model: Callable[[str], Path]) -> Pipeline:
    return load(tiny_model("bert"))


def page_of(quiz: Pipeline, *bodies: dict[str, Any], **options: Any) -> Reader:
    sent = [body | {"explain": {"format": "html", "n_steps": 4} | options} for body in bodies]
    content: Any = sent[0] if len(sent) == 1 else {"instances": sent}
    [reply] = quiz.answer([Request(json.dumps(content).encode(), "x", explain=True)])
    assert (reply.code, reply.content_type) == (200, "text/html; charset=utf-8")
    return Reader(reply.body.decode())


def test_page_holds_every_text_as_it_was_sent(quiz: Pipeline) -> None:
    question = {"context": EVIL, "question": "Why 水?", "choices": ["a knife  &amp;", EVIL]}
    texts = page_of(quiz, question).texts
    for shown, sent in zip(texts, [EVIL, "Why 水?", *question["choices"]], strict=True):
        assert shown.startswith(sent)


def test_page_runs_and_fetches_nothing(quiz: Pipeline) -> None:
    tags = page_of(quiz, {"question": EVIL, "choices": [EVIL, EVIL]}, choices="all").tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    assert not [
        name for _, attributes in tags for name in attributes if name in ("src", "href") or name.startswith("on")
    ]


def test_words_for_and_against_differ_by_more_than_their_colour(quiz: Pipeline) -> None:
    tags = page_of(quiz, QUESTION).tags
    marks = [attributes for tag, attributes in tags if tag == "mark"]
    assert {mark["class"] for mark in marks} >= {"for", "against"}
    assert all(str(mark["title"])[0] in "+-" for mark in marks)


def test_several_questions_share_a_page_with_each_one_s_error(quiz: Pipeline) -> None:
    page = page_of(quiz, QUESTION, {"question": "x", "choices": ["one"]}, QUESTION)
    assert len(page.texts) == 10
    assert [attributes for tag, attributes in page.tags if tag == "p" and attributes.get("class") == "warn"]


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html", True),
        ("application/json, text/html", False),
        ("text/html;q=0.9,*/*", True),
        ("*/*", False),
        ("", False),
    ],
)
def test_accept_header_decides_where_the_request_does_not(quiz: Pipeline, accept: str, html: bool) -> None:
    body = json.dumps(QUESTION | {"explain": {"method": "gradient_x_input"}}).encode()
    [reply] = quiz.answer([Request(body, "x", explain=True, headers={"accept": accept})])
    assert reply.content_type.startswith("text/html") is html


def test_page_says_why_a_word_of_the_choice_counts_against_it_where_one_does(quiz: Pipeline) -> None:
    body = {"question": "What do people use?", "choices": ["a knife", "a cloud"], "explain": {"n_steps": 4}}
    [reply] = quiz.answer([Request(json.dumps(body).encode(), "x", explain=True)])
    found = msgspec.convert(json.loads(reply.body)["explanations"][0], Explanation)
    for sign in (1, -1):
        words = [msgspec.structs.replace(word, score=sign * abs(word.score)) for word in found.words]
        note = "".join(own_word(msgspec.structs.replace(found, words=words), max(abs(word.score) for word in words)))
        assert ("A word of the explained choice counts against it" in note) == (sign < 0)
