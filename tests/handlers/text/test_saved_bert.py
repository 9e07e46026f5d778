"""Weights read from their file, against the model that transformers makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.hub import load_model, load_tokenizer
from marctl_handlers.text.packed_runtime import PackedRuntime
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.processor import PLAIN
from marctl_handlers.text.saved_bert import open_bert
from marctl_handlers.text.saved_tokenizer import record
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import PairEncoder

TEXTS = ["Where do people cut bread?", "a knife", "orange juice on his cereal", "Why not 3 or 42?"]
CHOICE = "AutoModelForMultipleChoice"
SETTINGS = TextSettings(task="multiple_choice", precision="float32", max_tokens=64)


@pytest.fixture
def copied(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "model"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", [None, Pooling("mean", True)])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_answers_are_bit_for_bit_those_of_the_model_that_transformers_loads(
    kind: str, pooling: Pooling | None, dtype: torch.dtype, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder, hub_class = tiny_model(kind), CHOICE
    encoder = PairEncoder(load_tokenizer(folder), 64)
    if pooling:
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
        folder, hub_class = tmp_path, "AutoModel"
    rows = encoder.encode([(first, second) for first in TEXTS for second in TEXTS])
    saved = open_bert(folder, hub_class, dtype)
    assert saved is not None
    found = [
        PackedRuntime.of(model, encoder, SETTINGS, PLAIN, dtype, pooling).run(rows, float("inf"))
        for model in (saved, load_model(folder, hub_class, dtype))
    ]
    assert found[0] == found[1]


def test_a_model_that_is_not_packed_is_left_to_transformers(tiny_model: Callable[[str], Path]) -> None:
    for kind in ("distilbert", "electra", "mpnet"):
        assert open_bert(tiny_model(kind), CHOICE, torch.float32) is None


@pytest.mark.parametrize("change", [{"layer_norm_eps": None}, {"vocab_size": 7}, {"hidden_act": "relu"}])
def test_an_unusual_configuration_is_left_to_transformers(change: dict[str, Any], copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text()) | change
    (copied / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    assert open_bert(copied, CHOICE, torch.float32) is None


def test_weights_that_are_missing_or_damaged_are_left_to_transformers_which_says_so(copied: Path) -> None:
    file = copied / "model.safetensors"
    weights = load_file(file)
    weights.pop("classifier.weight")
    save_file(weights, file, {"format": "pt"})
    assert open_bert(copied, CHOICE, torch.float32) is None
    with pytest.raises(LoadError, match=r"lack classifier\.weight"):
        load_model(copied, CHOICE, torch.float32)
    file.write_bytes(file.read_bytes()[:5000])
    assert open_bert(copied, CHOICE, torch.float32) is None
    file.unlink()
    assert open_bert(copied, CHOICE, torch.float32) is None


def test_a_model_with_another_head_is_refused(copied: Path) -> None:
    with pytest.raises(LoadError, match="another head"):
        open_bert(copied, "AutoModelForSequenceClassification", torch.float32)


def test_a_packed_version_is_served_without_importing_transformers(copied: Path) -> None:
    record(copied, load_tokenizer(copied))
    program = f"""
import sys
from pathlib import Path
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.tasks.multiple_choice.schema import Question
settings = MultipleChoice.settings_type(task="multiple_choice", max_tokens=64)
task = MultipleChoice(settings, "cpu")
task.load(Path({str(copied)!r}))
task.warm_up()
[outcome] = task.predict([Question("What is it?", ["a knife", "a cloud"])], float("inf"))
assert len(outcome.probabilities) == 2
print([name for name in ("transformers", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
