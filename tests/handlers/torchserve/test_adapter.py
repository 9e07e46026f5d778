"""The adapter between TorchServe's own worker code and a pipeline: whatever the server hands over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from marctl_handlers import serving
from marctl_handlers.core.errors import Invalid
from marctl_handlers.core.messages import Binary, Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.protocols.open_inference import forms
from marctl_handlers.torchserve import adapter
from tests.handlers.core.small import FaultError, ListLog, Small, SmallSettings, small
from tests.handlers.torchserve.served import Field, Served

Sent = tuple[Mapping[str, str], Sequence[Field]]
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
SERVER = {"content-type": JSON, "explain": "False"}
"""What TorchServe itself adds, in lowercase."""


def plain(text: str = "fine", **headers: str) -> Sent:
    """A right request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SERVER | named, [Field("body", bytearray(json.dumps({"text": text}).encode()), JSON)]


def form(fields: Mapping[str, str], body: bool = True) -> Sent:
    """A form of these fields; with a right request in its field `data`, if it has a body."""
    given = [Field(name, bytearray(value.encode()), FORM) for name, value in fields.items()]
    return SERVER | {"content-type": FORM}, given + (
        [Field("data", bytearray(b'{"text": "fine"}'), JSON)] if body else []
    )


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    pipeline, _, _ = small(most=1000)
    pipeline.forms.update(forms(pipeline))
    return Served(pipeline, monkeypatch)


def log_of(served: Served) -> ListLog:
    assert adapter._served is not None
    log = adapter._served.log
    assert isinstance(log, ListLog)
    return log


# --- headers are what came as headers


@pytest.mark.parametrize(
    "fields",
    [
        {"x-inference-protocol": "1", "inference-header-content-length": "1"},
        {"x-inference-protocol": "open", "inference-header-content-length": "1"},
        {"cache-control": "no-store", "pragma": "no-cache"},
        {"x-user-id": "ann"},
        {"x-sample": "1"},
        {"x-fallback-stale": "1", "x-fallback-from": "2.0"},
        {"x-request-start-ms": "1", "x-request-timeout-ms": "1"},
        {"x-request-id": "mine"},
        {"explain": "True"},
        {"url_path": "feedback"},
        {"accept": "text/html"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_form_fields_are_no_headers(fields: dict[str, str], served: Served) -> None:
    """The request with fields is answered by its own field `data`, and recorded as one without those headers."""
    before, asked, after = served.send(plain(), form(fields), plain())
    assert [(answer.code, json.loads(answer.body)["length"]) for answer in (before, asked, after)] == [(200, 4)] * 3
    record = log_of(served).records[1]
    assert not fields.keys() & record.headers.keys() - {"explain"}
    assert record.headers["explain"] == "False"
    assert record.request_id == "server-1"


def test_a_form_without_a_body_is_told_so_and_its_neighbours_get_their_answers(served: Served) -> None:
    fields = {"x-inference-protocol": "1", "inference-header-content-length": "1"}
    before, asked, empty, after = served.send(plain(), form(fields, body=False), (SERVER, []), plain())
    assert [answer.code for answer in (before, asked, empty, after)] == [200, 400, 400, 200]
    assert "got a form or none" in json.loads(asked.body)["detail"]


def test_a_body_s_field_takes_no_part_in_what_headers_decide(served: Served) -> None:
    """`body` as raw bytes beside a field of the name of a header, as a multipart request may send them."""
    fields = [Field("cache-control", b"no-store", "text/plain"), Field("body", b'{"text": "fine"}', JSON)]
    [answer] = served.send((SERVER, fields))
    assert answer.code == 200
    assert "cache-control" not in log_of(served).records[0].headers


@pytest.mark.parametrize("name", ["X-Sample", "x-sample", "X-SAMPLE"])
def test_header_names_count_in_any_case(name: str, served: Served) -> None:
    served.send(({name: "1"} | SERVER, plain()[1]), plain())
    assert len(log_of(served).records) == 1


def test_a_client_s_explain_header_does_not_stand_beside_the_server_s(served: Served) -> None:
    """In either order: TorchServe's own is in lowercase."""
    body = plain()[1]
    sent = [({"Explain": "True"} | SERVER, body), (SERVER | {"Explain": "True"}, body)]
    assert [answer.code for answer in served.send(*sent, ({"explain": "True"}, body))] == [200, 200, 501]


@pytest.mark.parametrize("sent", ["a b", "ä", "x\n", "x" * 129, ""])
def test_an_odd_request_id_is_replaced_by_the_server_s(sent: str, served: Served) -> None:
    first, second = served.send(plain(x_request_id=sent), plain(x_request_id="order-7"))
    assert json.loads(first.body)["prediction_id"] == "server-0"
    assert json.loads(second.body)["prediction_id"] == "order-7"


# --- replies


def test_a_reply_is_what_the_server_can_send(served: Served) -> None:
    good, bad = served.send(plain(), plain("own error"))
    assert (good.code, good.content_type, good.headers["x-model-version"]) == (200, JSON, "1.0")
    assert (bad.code, bad.phrase, bad.content_type) == (422, "Unprocessable Entity", JSON)
    assert {type(body) for body in served.returned} == {bytes}


def test_a_label_s_fault_fails_its_own_request(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    label = SERVER | {"url_path": "feedback"}, [Field("body", b"{}", JSON)]
    one, failed, two = served.send(plain(), label, plain())
    assert (one.code, failed.code, two.code) == (200, 500, 200)
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["server-1"]
    assert b"secret" not in failed.body


def test_a_label_goes_to_the_log_and_a_wrong_one_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def label(body: bytes | None) -> Any:
        if body != b"right":
            raise Invalid("not a label")
        return {"prediction_id": "order-7"}

    monkeypatch.setattr(log_of(served), "label", label)
    sent = [(SERVER | {"url_path": "feedback"}, [Field("body", body, JSON)]) for body in (b"right", b"wrong")]
    taken, refused, asked = served.send(*sent, plain())
    assert (taken.code, json.loads(taken.body)) == (202, {"prediction_id": "order-7"})
    assert (refused.code, json.loads(refused.body)["error"], asked.code) == (422, "invalid_request", 200)


def test_a_version_without_a_log_takes_no_labels(served: Served) -> None:
    assert adapter._served is not None
    adapter._served.log = None
    [refused] = served.send((SERVER | {"url_path": "feedback"}, [Field("body", b"{}", JSON)]))
    assert (refused.code, refused.headers["x-model-version"]) == (501, "1.0")


# --- raw bodies


class Pixels(Small):
    """Answers the number of characters of an image's type, and of its bytes."""

    question_type: ClassVar[type[msgspec.Struct]] = Binary
    content_types: ClassVar[tuple[str, ...]] = ("image/png", "image/x-*")

    def form(self) -> Any:
        return None

    def check(self, question: Any) -> None:
        pass

    def cost(self, questions: Sequence[Any]) -> int:
        return 0

    def predict(self, questions: Sequence[Any], deadline: float) -> list[Any]:
        return [self.outcome(f"{question.content_type}|" + "x" * len(question.data)) for question in questions]


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> Served:
    task = Pixels(SmallSettings(task="pixels", max_instances=3))
    task.load()
    return Served(Pipeline(task, Model("pixels", "1.0")), monkeypatch)


PNG = b"\x89PNG\r\n\x1a\n\x00\xff"


def raw(body: bytes | str, kind: str, name: str = "body") -> Sent:
    """Raw, under the request's own type; or a part of a form, under the part's."""
    request_kind = kind if name == "body" else "multipart/form-data; boundary=x"
    return SERVER | {"content-type": request_kind}, [Field(name, body, kind)]


@pytest.mark.parametrize(
    ("sent", "length"),
    [
        (raw(PNG, "image/png"), len(PNG) + len("image/png|")),
        (raw(PNG, "IMAGE/PNG; q=1"), len(PNG) + len("image/png|")),
        (raw(PNG, "image/x-icon"), len(PNG) + len("image/x-icon|")),
        (raw(PNG, ""), len(PNG) + 1),
        (raw(PNG, "application/octet-stream"), len(PNG) + 1),
        (raw(PNG, FORM), len(PNG) + 1),
        (raw(PNG, "image/png", "data"), len(PNG) + len("image/png|")),
        (raw("ü", "image/png"), 2 + len("image/png|")),
    ],
)
def test_a_raw_body_is_the_question(sent: Sent, length: int, pixels: Served) -> None:
    [answer] = pixels.send(sent)
    assert (answer.code, json.loads(answer.body).get("length")) == (200, length), answer.body


def test_raw_bodies_come_several_in_json(pixels: Served) -> None:
    body = b'{"instances": [{"b64": "AAEC"}, {"b64": "", "content_type": "image/png"}]}'
    [answer] = pixels.send(raw(body, JSON + "; charset=utf-8"))
    assert [entry["length"] for entry in json.loads(answer.body)["predictions"]] == [4, 10]


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (raw(PNG, "text/plain"), 415, "Content-Type is 'text/plain'; this model reads image/png or image/x-*, or JSON"),
        (raw(PNG, "image/jpeg"), 415, "'image/jpeg'"),
        (raw(PNG, "text/plain", "data"), 415, "'text/plain'"),
        (raw(b"", "image/png"), 422, "the body is empty"),
        ((SERVER, []), 422, "the body is empty"),
        (raw(PNG, JSON), 400, "not JSON"),
        (raw(b'{"instances": []}', JSON), 422, "at least one instance"),
        (raw(b'{"instances": [{"b64": ""}, {"b64": ""}, {"b64": ""}, {"b64": ""}]}', JSON), 413, "at most 3"),
        (raw(b'{"instances": [{"b64": "?"}]}', JSON), 422, "at `$.instances[0].b64`"),
        (raw(b'{"instances": [{"data": "AA"}]}', JSON), 422, "unknown field `data`"),
        (raw(b'{"b64": "AA"}', JSON), 422, "at `$`"),
    ],
)
def test_a_body_of_another_kind_is_refused_alone(sent: Sent, code: int, words: str, pixels: Served) -> None:
    before, refused, after = pixels.send(raw(PNG, "image/png"), sent, raw(PNG, "image/png"))
    assert (before.code, refused.code, after.code) == (200, code, 200)
    assert words in json.loads(refused.body)["detail"]


# --- all that TorchServe can hand over

KNOWN_HEADERS = [
    "x-inference-protocol", "X-Inference-Protocol", "inference-header-content-length", "cache-control", "x-user-id",
    "x-sample", "x-fallback-stale", "x-fallback-from", "x-shadow-version", "x-request-id", "x-request-start-ms",
    "x-request-timeout-ms", "explain", "Explain", "url_path", "accept", "content-type", "Content-Type", "body", "data",
]  # fmt: skip
KNOWN_VALUES = [
    "open",
    "open-grpc",
    "open-metadata",
    "torchserve-grpc",
    "feedback",
    "True",
    "1",
    "-1",
    "0",
    JSON,
    FORM,
    "",
]
# What UTF-8 can carry, as what comes over the wire was UTF-8.
words = st.one_of(st.sampled_from(KNOWN_VALUES), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
names = st.one_of(st.sampled_from(KNOWN_HEADERS), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
keys = st.sampled_from(["text", "instances", "features", "model", "inputs", "input", "data", "x"])
jsons = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
bodies = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(bytearray),
    st.text(max_size=20),
    jsons.map(lambda value: json.dumps(value).encode()),
    jsons.map(json.dumps),
    jsons,  # decoded by the server, where its operator lets it
    st.sampled_from(
        [b'{"text": "fine"}', b'{"text": "\xff"}', b'{"text": "a", "text": 3}', b'{"model": "m", "\xff": 1}']
    ),
)
fields = st.lists(st.builds(Field, names, bodies, words), max_size=4)
any_request = st.tuples(st.dictionaries(names, words, max_size=5), fields)


@pytest.fixture(scope="module")
def fuzzed() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        pipeline, _, _ = small(most=100)
        pipeline.forms.update(forms(pipeline))
        patch.setattr(serving.log, "disabled", True)
        yield Served(pipeline, patch)


@effort(max_examples=400, deadline=None)
@given(st.lists(any_request, min_size=1, max_size=4))
@example([(SERVER, [Field("body", "\ud800", "text/plain")])])
@example([({}, [Field("body", b'{"text": "fine"}'), Field("body", 3)])])  # type: ignore[arg-type]  # decoded JSON
def test_whatever_comes_each_gets_a_reply_and_neighbours_their_answers(fuzzed: Any, requests: list[Sent]) -> None:
    good = plain()
    mixed = [good, *(part for request in requests for part in (request, good))]
    answers = fuzzed.send(*mixed)
    assert len(fuzzed.returned) == len(mixed)
    assert {type(body) for body in fuzzed.returned} == {bytes}
    for i, answer in enumerate(answers):
        if i % 2 == 0:
            assert (answer.code, json.loads(answer.body)["length"]) == (200, 4)
        assert 200 <= answer.code < 600
        assert answer.phrase.isascii()
        for name, value in answer.headers.items():
            assert (name + value).isprintable()
            (name + value).encode("latin-1")
        # Nothing here is a fault of the model's.
        assert answer.code != 500 or mixed[i][0].get("url_path") == "feedback", answer.body


def test_the_fuzz_can_fail(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that leaves the pipeline is an error of the whole batch, which `replies_in` tells."""

    def answer(requests: Any) -> Any:
        raise FaultError

    assert adapter._served is not None
    monkeypatch.setattr(adapter._served, "answer", answer)
    with pytest.raises(AssertionError, match="Prediction failed"):
        served.send(plain())
