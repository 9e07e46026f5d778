"""Labelled multiple-choice questions: JSON lines of {"question", "choices", "label", "context"?, "id"?}."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from marctl.core.errors import UserError


class LabelledQuestion(msgspec.Struct, frozen=True):
    """One line of a data file. `label` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    label: int
    context: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(self.choices):
            raise ValueError(f"label is {self.label}, but there are {len(self.choices)} choices")


@dataclass(frozen=True)
class Dataset:
    """The questions of one file; `name` is its folder's, `sha256` its content's."""

    name: str
    path: Path
    sha256: str
    questions: list[LabelledQuestion]


def read_questions(path: Path) -> Dataset:
    """Read one JSONL file; raises UserError naming the line and field of the first bad row."""
    try:
        content = path.read_bytes()
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}; expected a JSONL file of labelled questions") from err
    decoder = msgspec.json.Decoder(LabelledQuestion)
    questions = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            questions.append(decoder.decode(line))
        except msgspec.DecodeError as err:
            raise UserError(f"{path}:{number}: {err}") from err
    if not questions:
        raise UserError(f"{path}: no questions in the file; expected one JSON object a line")
    return Dataset(dataset_name(path), path, hashlib.sha256(content).hexdigest(), questions)


def dataset_name(path: Path) -> str:
    """`codah` for `codah/dev.jsonl`, `quiz` for `quiz.jsonl`."""
    return path.parent.name if path.stem in {"train", "dev", "test", "validation"} else path.stem


def find_files(data: Path, split: str) -> list[Path]:
    """Every `<data>/<set>/<split>.jsonl`, by name."""
    paths = sorted(data.glob(f"*/{split}.jsonl"))
    if not paths:
        raise UserError(f"{data}: no */{split}.jsonl below it; expected one folder per data set")
    return paths


def find_split(data: Path, split: str) -> list[Dataset]:
    """The questions of every `<data>/<set>/<split>.jsonl`, by name."""
    return [read_questions(path) for path in find_files(data, split)]
