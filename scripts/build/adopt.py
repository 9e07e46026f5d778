"""Write a recipe for a model that someone has saved already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from handlers.core.settings import Precision
from handlers.tasks.multiple_choice.task import Question
from scripts.build.recipe import NAME, RECIPE_FILE, Expected, Recipe, Sample, Version, Weights, read_version
from scripts.core.errors import UserError

DEFAULT_SAMPLE = Question("What do people use to cut bread?", ("a knife", "a pillow", "a cloud"))
USUAL_TOKENS = 128
RESERVED_POSITIONS = 2
"""RoBERTa counts positions from padding_idx + 1, so two of them can't be used."""


def adopt(
    folder: Path,
    name: str,
    version: str,
    store: Path,
    samples: Sequence[Question] = (),
    *,
    precision: Precision = "auto",
    force: bool = False,
) -> Version:
    """Write `<store>/<name>/<version>/model.yaml` for a `save_pretrained` folder and return the version.

    The samples' expected answers are recorded from plain transformers in float32. Raises UserError if the folder holds
    no multiple-choice model, or a recipe stands there already.
    """
    from scripts.build.reference import plain_probabilities
    from scripts.build.weights import load_weights

    for kind, text in (("name", name), ("version", version)):
        if not NAME.fullmatch(text):
            raise UserError(
                f"--{kind} {text!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit"
            )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json in it; expected a folder written by save_pretrained, model and tokenizer"
        )
    place = store / name / version
    if (place / RECIPE_FILE).exists() and not force:
        raise UserError(f"{place / RECIPE_FILE} exists already; choose another --version, or add --force to replace it")
    draft = Recipe(
        task="multiple_choice",
        description=f"{name}, from {folder.resolve().name}",
        weights=Weights(directory=str(folder.resolve())),
        precision=precision,
        samples=[Sample(DEFAULT_SAMPLE, Expected(0))],
    )
    model, tokenizer = load_weights(Version(place.resolve(), draft))
    limit = token_limit(model, tokenizer)
    known = []
    for question in samples or [DEFAULT_SAMPLE]:
        probabilities = [round(p, 4) for p in plain_probabilities(model, tokenizer, question, limit)]
        known.append(Sample(question, Expected(probabilities.index(max(probabilities)), probabilities)))
    recipe = msgspec.structs.replace(draft, samples=known, max_tokens=limit)
    place.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in msgspec.to_builtins(recipe).items() if value not in (None, [])}
    (place / RECIPE_FILE).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return read_version(place)


def token_limit(model: Any, tokenizer: Any) -> int:
    """The usual limit, or less where the model's positions end earlier."""
    positions = getattr(model.config, "max_position_embeddings", USUAL_TOKENS + RESERVED_POSITIONS) - RESERVED_POSITIONS
    return int(min(USUAL_TOKENS, positions, tokenizer.model_max_length))


def read_samples(path: Path) -> list[Question]:
    """Questions from a JSONL file, one request a line; raises UserError naming the line."""
    questions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: cannot read samples: {err}") from err
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            questions.append(
                msgspec.convert(
                    {key: content[key] for key in ("question", "choices", "context") if key in content}, Question
                )
            )
        except (ValueError, TypeError) as err:
            raise UserError(f'{path}:{number}: {err}; expected {{"question": ..., "choices": [...]}}') from err
    return questions
