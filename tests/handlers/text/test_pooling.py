from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from marctl_handlers.text.choose import load_runtime
from marctl_handlers.text.hub import load_tokenizer
from marctl_handlers.text.packed_runtime import PackedRuntime
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.settings import POOLING_MODES, PoolingMode, TextSettings
from marctl_handlers.text.tokenization import TextEncoder
from marctl_handlers.text.torch_runtime import TorchRuntime

TEXTS = [
    "He poured orange juice on his cereal; she poured milk on hers, naïvely.",
    "a knife",
    "Why not 3 or 42?",
    "Why not 3 or 42?",
    "?",
    "Where do people cut bread, and where might he go? There is a light rain today. " * 4,
]
FOREVER = float("inf")
RUNTIMES = {"bert": PackedRuntime, "roberta": PackedRuntime, "mpnet": TorchRuntime, "distilbert": TorchRuntime}


def load(folder: Path, pooling: Pooling, **changes: Any) -> tuple[Any, TextEncoder]:
    settings = TextSettings(**{"task": "embedding", "precision": "float32", "max_tokens": 40} | changes)
    encoder = TextEncoder(load_tokenizer(folder), settings.max_tokens)
    return load_runtime(folder, "AutoModel", encoder, settings, "cpu", pooling=pooling), encoder


@torch.inference_mode()
def plain(folder: Path, texts: Sequence[str], mode: PoolingMode, normalize: bool, max_tokens: int = 40) -> torch.Tensor:
    """One text at a time, so that nothing is padded."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        states = model(**inputs).last_hidden_state[0]
        vectors.append({"mean": states.mean(0), "cls": states[0], "max": states.max(0).values}[mode])
    found = torch.stack(vectors)
    return found / found.norm(dim=1, keepdim=True) if normalize else found


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("kind", RUNTIMES)
def test_vectors_of_a_ragged_batch_are_those_of_each_text_alone(
    kind: str, mode: PoolingMode, tiny_model: Callable[[str], Path]
) -> None:
    runtime, encoder = load(tiny_model(kind), Pooling(mode, normalize=True), rows_per_pass=4)
    assert isinstance(runtime, RUNTIMES[kind])
    found = torch.tensor(runtime.run(encoder.encode(TEXTS), FOREVER))
    torch.testing.assert_close(found, plain(tiny_model(kind), TEXTS, mode, normalize=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_vectors_keep_their_length_if_they_are_not_to_be_normalized(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    runtime, encoder = load(tiny_model(kind), Pooling("mean", normalize=False))
    found = torch.tensor(runtime.run(encoder.encode(TEXTS), FOREVER))
    torch.testing.assert_close(found, plain(tiny_model(kind), TEXTS, "mean", normalize=False), atol=1e-4, rtol=0)
    assert (found.norm(dim=1) > 1.5).all()


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs 8-bit integer instructions")
def test_int8_vectors_point_where_float_ones_do(tiny_model: Callable[[str], Path]) -> None:
    pooling, folder = Pooling("mean", normalize=True), tiny_model("bert")
    settings = TextSettings(task="embedding", precision="int8", max_tokens=40)
    encoder = TextEncoder(load_tokenizer(folder), 40)
    rows = encoder.encode(TEXTS)
    runtime = load_runtime(folder, "AutoModel", encoder, settings, "cpu", rows, pooling=pooling)
    found = torch.tensor(runtime.run(rows, FOREVER))
    assert "int8" in runtime.runtime
    assert ((found * plain(folder, TEXTS, "mean", normalize=True)).sum(1) > 0.98).all()


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "bertweet", "deberta"])
def test_rows_of_texts_are_those_that_the_tokenizer_makes(kind: str, tiny_model: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(tiny_model(kind))
    rows = TextEncoder(tokenizer, 16).encode(TEXTS)
    whole = [AutoTokenizer.from_pretrained(tiny_model(kind))(text)["input_ids"] for text in TEXTS]
    cut = [AutoTokenizer.from_pretrained(tiny_model(kind))(text, truncation=True, max_length=16) for text in TEXTS]
    assert [row.ids for row in rows] == [inputs["input_ids"] for inputs in cut]
    assert [row.truncated for row in rows] == [len(ids) > 16 for ids in whole]
    assert all(row.second_at == len(row.ids) for row in rows)


def test_tokens_are_counted_as_rows_are_cut(tiny_model: Callable[[str], Path]) -> None:
    encoder = TextEncoder(load_tokenizer(tiny_model("bert")), 16)
    assert encoder.count(TEXTS) == sum(len(row.ids) for row in encoder.encode(TEXTS))


def test_the_warm_up_is_one_pass_and_one_row_of_each_length(tiny_model: Callable[[str], Path]) -> None:
    """More rows than a pass has room for would only repeat its shape, and keep a version from its first client."""
    runtime, _ = load(tiny_model("bert"), Pooling("mean", normalize=True), max_tokens=128)
    seen: list[tuple[int, int]] = []
    bert = runtime.bert
    runtime.bert = lambda rows: (seen.append((len(rows), len(rows[0].ids))), bert(rows))[1]
    runtime.warm_up()
    assert seen == [(1, 32), (128, 32), (1, 64), (64, 64), (1, 96), (42, 96), (1, 128), (32, 128)]
