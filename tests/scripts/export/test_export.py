from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.cli import main
from marctl.export import export as export_module
from marctl.export import source
from marctl_handlers.tasks.multiple_choice.reference import plain_answers
from tests.handlers.tasks.embedding.test_task import sentence_transformer
from tests.tiny_archives import tiny_archive

QUESTIONS: list[dict[str, Any]] = [
    {"question": "What do people use to cut bread?", "choices": ["a knife", "a pillow", "a cloud"]},
    {
        "question": "Where might he go?",
        "choices": ["a lake", "milk"],
        "context": "There is a light rain today. " * 9,
    },
]
TOO_LONG = {"question": "Why not?", "choices": ["a knife " * 90, "milk"]}
MAX_TOKENS = 40


def marctl(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Iterator[Path]:
    """A store of built archives; nothing here depends on what the build verifies."""
    folder = tmp_path_factory.mktemp("export")
    sentence_transformer(tiny_model("bert"), folder / "sentences")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "verify", lambda *_: None)
        for name, model in (("quiz", tiny_model("bert")), ("trivia", tiny_model("roberta"))):
            version = adopt(model, name, "1.0", folder / "recipes", QUESTIONS, max_tokens=MAX_TOKENS)
            build(version, folder / "store")
        build(adopt(folder / "sentences", "embed", "1.0", folder / "recipes", task="embedding"), folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "dev.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*QUESTIONS * 3, TOO_LONG]))
    return path


@pytest.fixture(scope="module")
def exported(store: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A multiple-choice model in ONNX, and what the command said."""
    folder = tmp_path_factory.mktemp("onnx") / "quiz"
    done = marctl("export", "quiz/1.0", "--onnx", "--data", questions, "--out", folder, "--store", store, "--json")
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


def readme_code(folder: Path) -> str:
    return (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]


def run_alone(folder: Path, code: str) -> str:
    """What code prints in a process that knows no package of ours."""
    absent = ["marctl", "marctl_handlers", "torch", "transformers", "openvino_telemetry"]
    block = f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"
    command = [sys.executable, "-I", "-c", block + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_readme_answers_like_plain_transformers(
    exported: tuple[Path, dict[str, Any]], tiny_model: Callable[[str], Path]
) -> None:
    """With tokenizers, numpy and onnxruntime alone; also a pair that is cut."""
    folder, _ = exported
    code = readme_code(folder).replace("print(choices", "print(json.dumps((shares / shares.sum()).tolist())) #")
    long = QUESTIONS[1]
    asked = {"question": f"{long['context']} {long['question']}", "choices": long["choices"]}
    other = code.replace('"What do people use to cut bread?"', json.dumps(asked["question"]))
    other = other.replace('["a pillow", "a knife", "a cloud"]', json.dumps(asked["choices"]))
    plain = {"question": "What do people use to cut bread?", "choices": ["a pillow", "a knife", "a cloud"]}
    wanted = plain_answers(tiny_model("bert"), [plain, long], MAX_TOKENS)
    for program, one in zip((code, other), wanted, strict=True):
        np.testing.assert_allclose(json.loads(run_alone(folder, program)), one["probabilities"], atol=1e-4)


def test_an_export_is_compared_and_measured(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, told = exported
    assert told["samples_checked"] == 2
    [compared] = told["compared_with_float32"].values()
    assert compared["questions"] == 6
    assert compared["left_out"] == 1
    assert compared["changed_share"] == 0
    assert compared["largest_difference"] < 1e-3
    assert [name.split()[0] for name in told["cpu_ms_per_question"]] == ["torch", "onnxruntime"]
    assert told["model_bytes"] == (folder / "model.onnx").stat().st_size


def test_model_json_says_what_a_program_needs(exported: tuple[Path, dict[str, Any]], store: Path) -> None:
    about = json.loads((exported[0] / "model.json").read_text())
    assert [one["name"] for one in about["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert (about["output"]["name"], about["opset"], about["max_tokens"]) == ("scores", 18, MAX_TOKENS)
    assert about["temperature"] == {"by_choices": {}, "other": 1.0}
    assert list(about["files"]) == ["model.onnx"]
    done = marctl("inspect", store / "quiz-1.0.mar", "--json")
    assert about["source"]["sha256"] == json.loads(done.stdout)["sha256"]


def test_int8_weights_in_openvino_take_a_quarter(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "edge"
    words = ["export", store / "trivia-1.0.mar", "--openvino", "--precision", "int8", "--out", out]
    done = marctl(*words)
    assert done.exit_code == 0, done.output
    assert "answers its 2 samples" in done.stdout
    weights = json.loads(marctl("inspect", store / "trivia-1.0.mar", "--json").stdout)["files"][
        "model/model.safetensors"
    ]
    assert (out / "model.bin").stat().st_size < 0.45 * weights  # a tiny model has many weights that stay in float
    assert "token_type_ids" not in [one["name"] for one in json.loads((out / "model.json").read_text())["inputs"]]
    assert run_alone(out, readme_code(out)).startswith("a ")
    assert sys.modules.get("openvino_telemetry") is None, "its import sends events to Google Analytics"


def test_vectors_are_those_of_sentence_transformers_and_equal_archives_equal_bytes(store: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        done = marctl("export", "embed/1.0", "--onnx", "--out", folder, "--store", store)
        assert done.exit_code == 0, done.output
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name
    from sentence_transformers import SentenceTransformer

    texts = ["People use a knife to cut bread.", "There is a light rain today."]
    code = readme_code(folders[0]) + "print(json.dumps(vectors.tolist()))"
    found = json.loads(run_alone(folders[0], code).splitlines()[-1])
    wanted = SentenceTransformer(str(store.parent / "sentences"), device="cpu").encode(texts)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_wrong_model_is_not_kept(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor anything else of it."""

    def write(portable: Any, kind: str, precision: str, folder: Path) -> Any:
        (folder / "model.onnx").write_bytes(b"x")
        return type("Wrong", (), {"name": "wrong", "run": lambda self, feeds: np.zeros(len(feeds["input_ids"]))})()

    monkeypatch.setattr(export_module, "write_model", write)
    done = marctl("export", "quiz/1.0", "--onnx", "--out", tmp_path / "quiz", "--store", store)
    assert (done.exit_code, "answers otherwise" in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_export_is_ever_replaced(
    exported: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported[0], tmp_path / "quiz")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    words = ["export", "quiz/1.0", "--onnx", "--store", store, "--out"]
    assert "--force replaces it" in marctl(*words, tmp_path / "quiz").stderr
    assert "is no exported model" in marctl(*words, tmp_path / "home", "--force").stderr
    assert (tmp_path / "home" / "letter").read_text() == "dear"


def test_what_cannot_be_exported_is_refused_with_the_reason(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tiny_archive(tmp_path, "theirs")
    done = marctl("export", foreign, "--onnx")
    assert (done.exit_code, "was not built by `marctl build`" in done.stderr) == (1, True)
    monkeypatch.setattr(source, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    done = marctl("export", "quiz/1.0", "--openvino", "--store", store)
    assert (done.exit_code, "needs openvino" in done.stderr) == (1, True)
    assert marctl("export", "quiz/1.0", "--onnx", "--openvino").exit_code == 2


@pytest.mark.parametrize("task", ["tabular", "ensemble", "own"])
def test_tasks_without_a_text_model_are_refused(tmp_path: Path, task: str) -> None:
    path = tiny_archive(tmp_path, "risk")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("metadata.json", json.dumps({"task": task}))
    done = marctl("export", path, "--onnx")
    assert done.exit_code == 1
    assert f"its task is {task}; tasks that can be are embedding, multiple_choice" in done.stderr


@pytest.mark.slow
def test_the_included_model_answers_alone(tmp_path: Path) -> None:
    """As it is shipped, in 8 bits and a quarter of its 91 MB."""
    done = marctl("build", "mcqa", "2.0", "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    words = ["--onnx", "--precision", "int8", "--store", tmp_path / "store", "--out", tmp_path / "mcqa"]
    assert marctl("export", "mcqa/2.0", *words).exit_code == 0
    assert (tmp_path / "mcqa" / "model.onnx").stat().st_size < 24e6
    assert run_alone(tmp_path / "mcqa", readme_code(tmp_path / "mcqa")).startswith("a knife")
