"""`marctl train`: from a recipe and data to a delta, recorded accuracy and a model card in the version's folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from torch import Tensor, nn

from handlers.multiple_choice import Question, first_text
from handlers.runtimes.first_token import use_first_token_only
from handlers.tokenization import PairEncoder
from scripts.archive.delta import pack_delta, write_delta
from scripts.archive.recipe import METADATA_FILE, Training, Version, read_version
from scripts.archive.weights import load_base, load_weights
from scripts.errors import UserError
from scripts.training.batches import Example, tokenize
from scripts.training.model_card import write_model_card
from scripts.training.questions import Dataset, LabelledQuestion, find_split
from scripts.training.train import freeze, noisy_copies, teacher_logits, train


def train_version(version: Version, data: Path, work: Path, notify: Callable[[str], None]) -> Path:
    """Train a recipe's delta on every `<data>/<set>/train.jsonl` and write it; returns the delta's path.

    `work` keeps the checkpoint: the same command after an interruption goes on where it stopped.
    """
    training = version.recipe.training
    if training is None or version.recipe.weights.delta is None:
        raise UserError(f"{version}: the recipe has no `training` section or no `weights.delta`; add both to train it")
    datasets = find_split(data, "train")
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer, _ = load_base(version)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    encoder = PairEncoder(tokenizer, version.recipe.max_tokens)
    questions = [question for dataset in datasets for question in dataset.questions]
    notify(f"{version}: tokenizing {len(questions):,} questions")
    examples = tokenize(encoder, [(first_text_of(q), q.choices, q.label) for q in questions])
    logits: list[Tensor] | None = None
    labelled = len(examples)
    if training.teacher:
        examples, logits = with_teacher(version, training, encoder, examples, tokenizer, work)
    results = []
    for number, run in enumerate(training.runs, 1):
        notify(f"{version}: run {number} of {len(training.runs)}, {run.epochs} epochs")
        model, _, _ = load_base(version)
        if training.teacher:
            start_from_teacher(model, version, training)
        use_first_token_only(model)
        freeze(model, training.frozen)
        checkpoint = work / f"run-{number}.pt"
        results.append(train(model, encoder, examples, training, run, checkpoint, logits, labelled))
    path = version.folder / version.recipe.weights.delta
    write_delta(path, pack_delta(base, average(results)))
    record_training(version, training, datasets)
    return path


def average(results: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several runs' weights, name by name."""
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}  # type: ignore[misc]  # sum starts at int 0


def first_text_of(question: LabelledQuestion) -> str:
    """As the handler joins context and question."""
    return first_text(Question(question.question, question.choices, question.context))


def teacher_version(version: Version, training: Training) -> Version:
    return read_version(version.folder.parent / str(training.teacher))


def with_teacher(
    version: Version, training: Training, encoder: PairEncoder, examples: list[Example], tokenizer: Any, work: Path
) -> tuple[list[Example], list[Tensor]]:
    """The examples with noisy copies, and the teacher's logits for all of them."""
    import torch

    special = set(tokenizer.all_special_ids)
    everything = [*examples, *noisy_copies(examples, training, tokenizer.mask_token_id, special)]
    kept = work / "teacher.pt"
    if kept.exists():
        logits = torch.load(kept, weights_only=True)
        if len(logits) == len(everything):
            return everything, logits
    teacher, _ = load_weights(teacher_version(version, training))
    use_first_token_only(teacher)
    logits = teacher_logits(teacher.bfloat16(), encoder, everything)
    torch.save(logits, kept)
    return everything, logits


def start_from_teacher(model: nn.Module, version: Version, training: Training) -> None:
    """Give the student the teacher's layers that its recipe keeps, and everything outside the layers."""
    teacher, _ = load_weights(teacher_version(version, training))
    kept = version.recipe.weights.layers
    source = teacher.state_dict()
    if kept is not None:
        names = {f".encoder.layer.{old}.": f".encoder.layer.{new}." for new, old in enumerate(kept)}
        source = {
            name.replace(old, new): value for name, value in source.items() for old, new in names.items() if old in name
        } | {name: value for name, value in source.items() if ".encoder.layer." not in name}
    model.load_state_dict(source)


def record_training(version: Version, training: Training, datasets: list[Dataset]) -> None:
    """Note when, on what and with which library the delta was made."""
    write_metadata(
        version,
        {
            "trained": datetime.now(UTC).date().isoformat(),
            "trained_with": {"torch": importlib.metadata.version("torch"), "runs": msgspec.to_builtins(training.runs)},
            "training_files": {
                dataset.name: {"sha256": dataset.sha256, "questions": len(dataset.questions)} for dataset in datasets
            },
        },
    )


def write_metadata(version: Version, changes: dict[str, Any]) -> None:
    """Merge `changes` into metadata.yaml and write the model card anew."""
    path = version.folder / METADATA_FILE
    known = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    path.write_text(yaml.safe_dump(known | changes, sort_keys=False, allow_unicode=True))
    write_model_card(read_version(version.folder))
