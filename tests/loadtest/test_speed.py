from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers.core.settings import Settings
from handlers.text.choose import load_model
from handlers.text.tokenization import PairEncoder, Row
from handlers.text.torch_runtime import TorchScorer
from loadtest import exported
from loadtest.environments import Environment, environments, one_round, start
from loadtest.speed import answer, changes_of, compare, cut, load, main

QUESTIONS = [
    json.dumps({"question": f"Which of {n} statements is against common sense?", "choices": ["a knife", "rain " * n]})
    for n in range(1, 20)
]


@pytest.fixture
def root(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """What an archive's root holds, as far as `load` reads it."""
    (tmp_path / "model").symlink_to(tiny_model("bert"))
    (tmp_path / "model-config.yaml").write_text("handler: {task: multiple_choice, max_tokens: 64, precision: float32}")
    return tmp_path


def test_any_variant_takes_its_rows_per_pass_from_its_name() -> None:
    assert changes_of("packed-bfloat16-8-rows") == {"precision": "bfloat16", "rows_per_pass": 8}
    assert "rows_per_pass" not in changes_of("packed-int8")


def test_an_unknown_variant_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no variant 'packed-int4-8-rows'; expected one of padded-float32, served"):
        changes_of("packed-int4-8-rows")


def test_a_missing_package_ends_with_the_command_that_installs_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(exported.MissingPackage, match="pip install onnx onnxscript openvino"):
        load(root, "openvino-bfloat16")


@pytest.mark.parametrize(("variant", "module"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
def test_exported_runtimes_answer_as_the_models_own_code(root: Path, variant: str, module: str) -> None:
    for name in (module, "onnx", "onnxscript"):
        pytest.importorskip(name)
    batches = cut([question.encode() for question in QUESTIONS])
    found = compare(answer(load(root, f"{variant}-8-rows"), batches), answer(load(root, "padded-float32"), batches))
    assert found["largest_difference"] < 1e-4


def test_an_exported_model_gets_mask_and_types_where_a_pass_needs_none(tiny_model: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    folder = tiny_model("roberta")
    encoder = PairEncoder(AutoTokenizer.from_pretrained(folder), 64)
    scorer = TorchScorer(load_model(folder, torch.float32), encoder, Settings(task="multiple_choice"), "cpu")
    given: dict[str, Any] = {}

    def run(arrays: dict[str, Any]) -> Any:
        given.update(arrays)
        return arrays["input_ids"][:, :, 0].astype("float32")

    scorer.model = exported.Exported(run)
    rows = [Row([7, 5, 6], 2, truncated=False), Row([9, 5, 6], 2, truncated=False)]
    assert scorer.scores(rows, float("inf")) == [7.0, 9.0]
    assert given["attention_mask"].tolist() == [[[1, 1, 1]]] * 2
    assert given["token_type_ids"].tolist() == [[[0, 0, 0]]] * 2


def test_an_allocator_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file; expected jemalloc's shared library"):
        environments(tmp_path / "libjemalloc.so.2")


def test_workers_get_their_environment_and_this_process_keeps_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    plain = start(Environment(), root, 32, 1)
    huge = start(Environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}), root, 32, 1)
    assert "GLIBC_TUNABLES" not in os.environ
    assert all(figure > 0 for links in (plain, huge) for figure in one_round(links))
    assert all(links[0].recv() >= 0 for links in (plain, huge))


def test_the_command_refuses_an_unknown_variant_as_misuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["speed", "tiny.mar", "--variants", "served,no-such"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "no variant 'no-such'" in capsys.readouterr().err
