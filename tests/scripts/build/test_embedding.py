"""Embedding models from recipe to archive: what sentence-transformers puts beside a model goes along."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.recipe import read_version
from marctl.build.sources import locate
from marctl.core.errors import UserError
from marctl.train.evaluate import open_archive
from marctl_handlers.tasks.embedding.schema import Question
from tests.handlers.tasks.embedding.test_task import sentence_transformer

STORE = Path(__file__).parents[3] / "model_store"
TEXTS = ["a knife", "There is a light rain today.", "naïve café 漢字", "Why not 3 or 42? " * 30]
PRECISION_COSINE = 0.999
"""bfloat16's vectors with float32's, where the processor multiplies in it."""


def test_a_model_of_sentence_transformers_is_served_as_it_pools(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    reference = sentence_transformer(tiny_model("bert"), tmp_path / "model", "cls", normalize=False)
    version = adopt(tmp_path / "model", "embed", "1.0", tmp_path / "recipes", task="embedding", precision="float32")
    assert version.task_settings == {"max_tokens": 40, "precision": "float32"}
    path, _ = build(version, tmp_path / "store")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        assert {"model/modules.json", "model/1_Pooling/config.json"} <= names
        assert json.loads(archive.read("metadata.json"))["libraries"]["prometheus-client"]
    with open_archive(path) as pipeline:
        found = pipeline.predict([Question(text) for text in TEXTS])
    np.testing.assert_allclose([one.embedding for one in found], reference.encode(TEXTS), atol=1e-5, rtol=1e-5)


def test_a_folder_without_modules_must_say_how_it_pools(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set pooling and normalize in"):
        adopt(tiny_model("bert"), "embed", "1.0", tmp_path, task="embedding")


def test_the_default_model_is_the_published_one() -> None:
    from sentence_transformers import SentenceTransformer

    version = read_version(STORE / "embed" / "1.0")
    folder = locate(version)
    path, _ = build(version, STORE / "archives")
    with open_archive(path) as pipeline:
        found = pipeline.predict([Question(text) for text in TEXTS])
    assert {one.model for one in found} == {"sentence-transformers/all-MiniLM-L6-v2"}
    wanted = SentenceTransformer(folder, device="cpu").encode(TEXTS)
    assert (np.sum(np.array([one.embedding for one in found]) * wanted, axis=1) > PRECISION_COSINE).all()
