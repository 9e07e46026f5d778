"""What an archive holds decides whether it loads, how it is named in a cache, and whether it may take requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from marctl_handlers.archive import answers, archive_digest, check_samples, load
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline

HANDLER = {"task": "multiple_choice", "precision": "float32", "max_tokens": 64}
REQUESTS = [
    {"question": "What do people use to cut bread?", "choices": ["a knife", "a spoon", "a cloud"]},
    {"question": "Why?", "choices": ["orange juice", "milk"], "context": "He poured."},
]


def loaded(root: Path, **changes: Any) -> Pipeline:
    return load(root, Model("quiz", "1.0"), HANDLER | changes)


@pytest.fixture
def root(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """An extracted archive of a tiny BERT, with samples of its own answers."""
    shutil.copytree(tiny_model("bert"), tmp_path / "root" / "model")
    samples = [
        {"request": request, "expected": {"prediction": answer["prediction"], "probabilities": answer["probabilities"]}}
        for request, answer in zip(REQUESTS, answers(loaded(tmp_path / "root"), REQUESTS), strict=True)
    ]
    (tmp_path / "root" / "samples.json").write_text(json.dumps(samples))
    (tmp_path / "root" / "metadata.json").write_text(
        json.dumps({"libraries": {"torch": "1.0"}, "sample_tolerance": 0.01})
    )
    return tmp_path / "root"


def test_a_whole_archive_answers_its_samples(root: Path) -> None:
    check_samples(loaded(root), root)


def test_other_weights_are_told_by_the_samples(root: Path) -> None:
    path = root / "model" / "model.safetensors"
    weights = {name: -weight if "classifier" in name else weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"answers its sample 0 wrongly: .*; rebuild the archive"):
        check_samples(loaded(root), root)


def test_an_archive_without_samples_has_none_to_fail(root: Path) -> None:
    (root / "samples.json").unlink()
    (root / "metadata.json").unlink()
    check_samples(loaded(root), root)


DAMAGED = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"3", b'"x"']


@pytest.mark.parametrize(
    "content",
    [*DAMAGED, b"{}", b"[3]", b"[{}]", b'[{"request": {}}]', b'[{"request": 3, "expected": {}}]'],
    ids=lambda content: ascii(content)[:40],
)
def test_damaged_samples_stop_the_load(content: bytes, root: Path) -> None:
    (root / "samples.json").write_bytes(content)
    with pytest.raises(LoadError, match=r"samples\.json is damaged \(.*\); rebuild the archive"):
        check_samples(loaded(root), root)


def test_a_sample_that_the_task_does_not_take_stops_the_load(root: Path) -> None:
    (root / "samples.json").write_text(json.dumps([{"request": {"question": "Why?"}, "expected": {"prediction": 0}}]))
    with pytest.raises(LoadError, match=r"samples\.json: a request that this task does not take: .*`choices`"):
        check_samples(loaded(root), root)


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGED,
        b"[]",
        b'{"libraries": 3}',
        b'{"libraries": ["torch"]}',
        b'{"libraries": {"torch": 3}}',
        b'{"libraries": {"torch": "newest"}}',
        b'{"libraries": {"": "1.0"}}',
    ],
    ids=lambda content: ascii(content)[:40],
)
def test_damaged_metadata_stops_the_load(content: bytes, root: Path) -> None:
    (root / "metadata.json").write_bytes(content)
    with pytest.raises(LoadError, match=r"metadata\.json is damaged \(.*\); rebuild the archive"):
        loaded(root)


@pytest.mark.parametrize("tolerance", ['"much"', "null", "[]", "-1", "NaN"])
def test_a_tolerance_that_is_no_number_stops_the_load(tolerance: str, root: Path) -> None:
    (root / "metadata.json").write_text(f'{{"sample_tolerance": {tolerance}}}')
    with pytest.raises(LoadError, match=r"metadata\.json is damaged \(.*\); rebuild the archive"):
        check_samples(loaded(root), root)


def test_an_archive_says_which_libraries_it_lacks(root: Path) -> None:
    wanted = {"torch": "999.0", "no-such-library": "1.0", "numpy": "1.0"}
    (root / "metadata.json").write_text(json.dumps({"libraries": wanted}))
    with pytest.raises(
        LoadError, match=r"no-such-library is not installed; torch is .*; pip install .*'torch>=999\.0'"
    ):
        loaded(root)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (None, r"model-config\.yaml has no `handler` section; rebuild the archive"),
        ({"threads": 1}, "task is 'None'; expected one of .*multiple_choice"),
        ({"task": "multiple_choise"}, "task is 'multiple_choise'; expected one of .*multiple_choice"),
        (HANDLER | {"max_tokens": "many"}, r"model-config\.yaml, section `handler`: .* at `\$\.max_tokens`"),
        (HANDLER | {"max_token": 64}, "unknown field `max_token`"),
        ({"task": "own"}, r"task\.py is missing"),
    ],
)
def test_a_wrong_handler_section_names_its_field(handler: dict[str, Any] | None, words: str, root: Path) -> None:
    with pytest.raises(LoadError, match=words):
        load(root, Model("quiz", "1.0"), handler)


def test_what_is_in_an_archive_changes_its_digest(tmp_path: Path) -> None:
    (tmp_path / "marctl_handlers").mkdir()
    (tmp_path / "marctl_handlers" / "a.py").write_text("1")
    (tmp_path / "w").write_text("2")
    digests = [archive_digest(tmp_path)]
    (tmp_path / "w").write_text("3")
    digests.append(archive_digest(tmp_path))
    (tmp_path / "w").rename(tmp_path / "v")
    digests.append(archive_digest(tmp_path))
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "model-config.yaml").write_text("a: 1")
    digests.append(archive_digest(tmp_path))
    (tmp_path / "model-config.yaml").write_text("a: 2")
    digests.append(archive_digest(tmp_path))
    assert len(set(digests)) == 5
    (tmp_path / "marctl_handlers" / "__pycache__").mkdir()
    (tmp_path / "marctl_handlers" / "__pycache__" / "a.pyc").write_text("4")
    assert archive_digest(tmp_path) == digests[-1]
