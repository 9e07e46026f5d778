"""A folder that would be served as nonsense is refused, with what to do about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMultipleChoice, AutoModelForSequenceClassification, BertConfig

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.hub import load_model, load_tokenizer
from tests.handlers.loading import load
from tests.tiny_models import KINDS, bert, save_tiny, wordpiece

HUB_CLASS = "AutoModelForMultipleChoice"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "bpe.codes", "special_tokens_map.json")


@pytest.fixture
def folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny BERT to break."""
    copied: Path = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    return copied


def without_tokenizer(folder: Path) -> Path:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_folder_without_a_tokenizer_is_refused(kind: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = without_tokenizer(shutil.copytree(tiny_model(kind), tmp_path / "model"))
    with pytest.raises(LoadError, match=r"model/ .*tokenizer.*save it beside the model: tokenizer\.save_pretrained"):
        load(folder)


def test_an_invented_vocabulary_is_refused_even_where_its_size_would_do(tmp_path: Path) -> None:
    """transformers makes up one of five special tokens."""
    BertConfig(vocab_size=8).save_pretrained(tmp_path / "model")
    with pytest.raises(LoadError, match=r"model/ holds no tokenizer file \(.*tokenizer\.json.*\); save it beside"):
        load_tokenizer(tmp_path / "model")


def test_a_configuration_alone_is_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").is_file()
    with pytest.raises(LoadError, match=r"holds no tokenizer file|does not hold a tokenizer"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"model": 3}'])
def test_a_damaged_tokenizer_is_refused(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(LoadError, match="tokenizer"):
        load(folder)


@pytest.mark.parametrize("tokens", [80, 3000])
def test_a_tokenizer_of_another_vocabulary_is_refused(tokens: int, folder: Path) -> None:
    """Its words would be other words of the model's, or none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from tests.tiny_models import bert_like

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, *(f"word{i}" for i in range(tokens - 5))])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    bert_like(tokenizer).save_pretrained(without_tokenizer(folder))
    with pytest.raises(
        LoadError, match=rf"holds a tokenizer of {tokens:,} tokens, but the model knows \d+: it is another"
    ):
        load(folder)


def test_a_table_that_is_rounded_up_is_the_tokenizer_s_own(tmp_path: Path) -> None:
    """Models are often given more rows than tokens, for the speed of their matrices."""
    tokenizer: Any = wordpiece()
    config = bert(tokenizer)
    config.vocab_size = -(-len(tokenizer) // 64) * 64
    AutoModelForMultipleChoice.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_tokenizer(tmp_path)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_model_with_another_head_is_refused_in_one_line(labels: int, folder: Path) -> None:
    """With one label, its head has the very shapes of a multiple-choice head."""
    config = bert(wordpiece())
    config.num_labels = labels
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    with pytest.raises(LoadError) as refused:
        load(folder)
    assert str(refused.value) == (
        "model/ holds a BertForSequenceClassification, which has another head or none; expected a model fine-tuned "
        "with AutoModelForMultipleChoice and saved with it"
    )


def test_a_model_without_a_head_is_refused(folder: Path) -> None:
    AutoModel.from_config(bert(wordpiece())).save_pretrained(folder)
    with pytest.raises(LoadError, match="holds a BertModel, which has another head or none"):
        load(folder)


def test_weights_that_lack_the_head_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"the weights lack classifier\.bias, classifier\.weight; fine-tune the model"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", b"", r"config\.json is not JSON"),
        ("config.json", b"\xff", r"config\.json is not JSON"),
        ("config.json", b"[]", r"config\.json is not a JSON object"),
        ("config.json", b'{"vocab_size": "many"}', "does not hold a model"),
        ("config.json", b'{"model_type": "none such"}', "does not hold a"),
        ("model.safetensors", None, "does not hold a model"),
        ("model.safetensors", b"", "does not hold a model"),
        ("model.safetensors", b"\x00" * 100, "does not hold a model"),
    ],
)
def test_a_damaged_model_is_refused(file: str, content: bytes | None, words: str, folder: Path) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(LoadError, match=words):
        load(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    with pytest.raises(LoadError, match="does not hold a model for AutoModelForMultipleChoice"):
        load(folder)


def test_a_whole_folder_is_taken(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    assert len(load_tokenizer(folder)) > 5
    assert load_model(folder, HUB_CLASS, torch.float32).config.model_type == "bert"
