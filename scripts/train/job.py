"""`marctl train`: from a recipe and data to a delta, recorded accuracy and a model card in the version's folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor

from marctl.build.build import digest
from marctl.build.delta import pack_delta, write_delta
from marctl.build.recipe import Training, Version, read_version
from marctl.build.weights import load_base, load_weights
from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.train.batches import Example, Pairs, tokenize
from marctl.train.loop import freeze, noisy_copies, teacher_logits, train
from marctl.train.metadata import write_metadata
from marctl.train.questions import Dataset, LabelledQuestion, find_split
from marctl.train.section import training_of
from marctl_handlers.tasks.multiple_choice.schema import Question, first_text
from marctl_handlers.text.first_token import use_first_token_only
from marctl_handlers.text.tokenization import PairEncoder

CLAIM_FILE = "made_from.json"


@dataclass(frozen=True)
class Asked:
    """A question, and the data set that it comes from."""

    dataset: str
    question: LabelledQuestion


def train_version(version: Version, data: Path, work: Path, notify: Callable[[str], None]) -> Path:
    """Train a recipe's delta on every `<data>/<set>/train.jsonl` and write it; returns the delta's path.

    `work` keeps the checkpoint: the same command after an interruption goes on where it stopped.
    """
    training = training_of(version)
    datasets = find_split(data, "train")
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer, _ = load_base(version)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    if tokenizer.mask_token_id is None and (training.input_mask_share or training.noisy_copies):
        raise UserError(
            f"{version}: its tokenizer has no mask token; take input_mask_share and noisy_copies out of `training`"
        )
    asked = draw(datasets, training)
    against = contrasts(datasets, training, asked)
    start = ready_start(version, training, data, work, notify)
    teachers = ready_teachers(version, training, {one.dataset for one in asked}, data, work, notify)
    deltas = delta_digests([*([start] if start else []), *teachers.values()])
    claim(work, version, datasets, deltas)
    notify(f"{version}: tokenizing {len(asked) + len(against):,} questions")
    encoder = PairEncoder(tokenizer, version.settings.max_tokens)
    examples = tokenize(encoder, as_pairs(asked))
    logits: list[Tensor | None] | None = None
    if teachers:
        examples += noisy_copies(examples, training, tokenizer.mask_token_id, set(tokenizer.all_special_ids))
        logits = opinions(teachers, training, asked, examples, tokenizer, work) + [None] * len(against)
    examples += tokenize(encoder, against, len(examples))
    begun = starting_weights(start, version) if start else base
    results = []
    for number, run in enumerate(training.runs, 1):
        notify(f"{version}: run {number} of {len(training.runs)}, {run.epochs} epochs")
        model, _, _ = load_base(version)
        model.load_state_dict(begun)
        use_first_token_only(model)
        freeze(model, training.frozen)
        checkpoint = work / f"run-{number}.pt"
        results.append(train(model, encoder, examples, training, run, checkpoint, logits))
    path = version.folder / str(version.recipe.weights.delta)
    write_delta(path, pack_delta(base, average(results)))
    used = [dataset for dataset in datasets if not training.draw or dataset.name in training.draw]
    record_training(version, training, used, start, teachers, deltas)
    return path


def claim(work: Path, version: Version, datasets: Sequence[Dataset], deltas: Mapping[Path, str]) -> None:
    """Record in `work` what its checkpoints belong to. Raises UserError if it holds those of another training."""
    recipe, path = version.recipe, work / CLAIM_FILE
    now = msgspec.to_builtins(
        {
            "training": recipe.training,
            "weights": recipe.weights,
            "max_tokens": version.settings.max_tokens,
            "data": {dataset.name: dataset.sha256 for dataset in datasets},
            "teachers or start": {as_named(folder, version): digested for folder, digested in deltas.items()},
        }
    )
    if any(work.glob("*.pt")):
        try:
            before = json.loads(path.read_bytes())
        except (OSError, ValueError):
            before = {}
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise UserError(
                f"{work}: its checkpoint was made with other {', '.join(changed)}; forget it (--restart), or leave it "
                "there and train in another folder (--work)"
            )
    write_atomically(path, json.dumps(now))


def average(results: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several runs' weights, name by name."""
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}  # type: ignore[misc]  # sum starts at int 0


def first_text_of(question: LabelledQuestion) -> str:
    """As the handler joins context and question."""
    return first_text(Question(question.question, question.choices, question.context))


def as_pairs(asked: Sequence[Asked]) -> list[tuple[Pairs, int]]:
    """What `tokenize` takes."""
    return [
        ([(first_text_of(one.question), choice) for choice in one.question.choices], one.question.label)
        for one in asked
    ]


def draw(datasets: Sequence[Dataset], training: Training) -> list[Asked]:
    """The questions of an epoch, as `training.draw` says; raises UserError for a data set that is not there."""
    if not training.draw:
        return [Asked(dataset.name, question) for dataset in datasets for question in dataset.questions]
    by_name = {dataset.name: dataset.questions for dataset in datasets}
    if unknown := sorted(set(training.draw) - set(by_name)):
        raise UserError(f"training.draw: no data set {', '.join(unknown)}; there are {', '.join(sorted(by_name))}")
    found = []
    for name, count in sorted(training.draw.items()):
        times, rest = divmod(count, len(by_name[name]))
        dice = random.Random(f"{training.runs[0].seed}/{name}")
        found += [Asked(name, question) for question in by_name[name] * times + dice.sample(by_name[name], rest)]
    return found


def contrasts(datasets: Sequence[Dataset], training: Training, asked: Sequence[Asked]) -> list[tuple[Pairs, int]]:
    """As `training.contrast` says, for the questions `asked`: one choice, a pair per context, the first one its own."""
    by_name = {dataset.name: dataset.questions for dataset in datasets}
    if unknown := sorted({*training.contrast, *training.contrast.values()} - set(by_name)):
        raise UserError(f"training.contrast: no data set {', '.join(unknown)}; there are {', '.join(sorted(by_name))}")
    found: list[tuple[Pairs, int]] = []
    for name, other in training.contrast.items():
        beside = {choice: question.choices for question in by_name[other] for choice in question.choices}
        known = [one.question for one in asked if one.dataset == name and one.question.context in beside]
        if not known:
            raise UserError(f"training.contrast: no question drawn of {name} has a context that is a choice in {other}")
        for question in known:
            others = [choice for choice in beside[question.context or ""] if choice != question.context]
            if not others:
                continue
            right = question.choices[question.label]
            texts = [first_text_of(replace(question, context=text)) for text in (question.context, *others)]
            found.append(([(text, right) for text in texts], 0))
    return found


def ready_teachers(
    version: Version, training: Training, drawn: set[str], data: Path, work: Path, notify: Callable[[str], None]
) -> dict[str, Version]:
    """By data set the version that `training.teacher` names, trained now if it never was."""
    named = training.teacher or {}
    if isinstance(named, str):
        named = dict.fromkeys(drawn, named)
    if unknown := sorted(set(named) - drawn):
        raise UserError(f"training.teacher: no data set {', '.join(unknown)}; drawn are {', '.join(sorted(drawn))}")
    found = {name: read_version(version.folder.parent / name) for name in sorted(set(named.values()))}
    for name, teacher in found.items():
        ensure_trained(teacher, f"its teacher {name}", version, data, work, notify)
    return {dataset: found[name] for dataset, name in named.items()}


def ready_start(
    version: Version, training: Training, data: Path, work: Path, notify: Callable[[str], None]
) -> Version | None:
    """The version that `training.start` names, trained now if it never was.

    Raises UserError, before any training, if its base or its layers are others.
    """
    if training.start is None:
        return None
    start = read_version(version.folder.parent / training.start)
    if start.base != version.base:
        raise UserError(f"training.start: {start} has other base weights than {version}; name a version with the same")
    if start.recipe.weights.layers not in (None, version.recipe.weights.layers):
        raise UserError(f"training.start: {start} keeps other layers than {version}; name a version that keeps all")
    ensure_trained(start, f"its start {training.start}", version, data, work, notify)
    return start


def ensure_trained(
    needed: Version, role: str, version: Version, data: Path, work: Path, notify: Callable[[str], None]
) -> None:
    """Train a version that `version` depends on if its delta is missing. Raises UserError if a version needs itself."""
    if needed.folder.resolve() == version.folder.resolve():
        raise UserError(f"{version}: {role} is {version} itself; name another version")
    delta = needed.recipe.weights.delta
    if delta is not None and not (needed.folder / delta).exists():
        notify(f"{version}: {role} is not trained yet, and comes first")
        folder = as_named(needed.folder, version).strip("./").replace("/", "-")
        train_version(needed, data, work / folder, notify)


def as_named(folder: Path, version: Version) -> str:
    """Another version's folder as a recipe names it: relative to the folder that holds `version`'s own."""
    return os.path.relpath(folder, version.folder.parent)


def delta_digests(others: Sequence[Version]) -> dict[Path, str]:
    """By folder the SHA-256 of a version's delta; none for one that has no delta."""
    deltas = {other.folder: other.folder / other.recipe.weights.delta for other in others if other.recipe.weights.delta}
    return {folder: digest(delta) for folder, delta in deltas.items()}


def opinions(
    teachers: Mapping[str, Version],
    training: Training,
    asked: Sequence[Asked],
    examples: Sequence[Example],
    tokenizer: Any,
    work: Path,
) -> list[Tensor | None]:
    """For each example the logits of its data set's teacher, None where there is none; kept in `work`.

    The first examples are the questions `asked`, the others noisy copies of them.
    """
    kept = work / "teacher.pt"
    if kept.exists():
        kept_logits: list[Tensor | None] = torch.load(kept, weights_only=True)
        return kept_logits
    said: dict[int, Tensor] = {}
    for teacher in {one.folder: one for one in teachers.values()}.values():
        model, its_tokenizer = load_weights(teacher)
        encoder = PairEncoder(its_tokenizer, teacher.settings.max_tokens)
        readable = examples
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            if training.noisy_copies:
                raise UserError(
                    f"training.noisy_copies: {teacher} has another tokenizer and cannot read them; set it to 0"
                )
            readable = tokenize(encoder, as_pairs(asked))
        heard = [one for one in readable if teachers.get(asked[one.index % len(asked)].dataset) is teacher]
        use_first_token_only(model)
        answers = teacher_logits(model.bfloat16(), encoder, heard)
        said |= {example.index: logits for example, logits in zip(heard, answers, strict=True)}
    found = [said.get(example.index) for example in examples]
    torch.save(found, kept)
    return found


def starting_weights(start: Version, version: Version) -> dict[str, Tensor]:
    """The layers of `start` that the version's recipe keeps, and everything outside the layers."""
    kept = version.recipe.weights.layers
    source: dict[str, Tensor] = load_weights(start)[0].state_dict()
    if kept is None or start.recipe.weights.layers is not None:
        return source
    names = {f".encoder.layer.{old}.": f".encoder.layer.{new}." for new, old in enumerate(kept)}
    return {
        name.replace(old, new): value for name, value in source.items() for old, new in names.items() if old in name
    } | {name: value for name, value in source.items() if ".encoder.layer." not in name}


def record_training(
    version: Version,
    training: Training,
    datasets: list[Dataset],
    start: Version | None,
    teachers: Mapping[str, Version],
    deltas: Mapping[Path, str],
) -> None:
    """Note when, on what, with which library, from which start and after which teachers the delta was made."""
    made_with = {"torch": importlib.metadata.version("torch"), "runs": msgspec.to_builtins(training.runs)}
    if start is not None and start.folder in deltas:
        made_with["start"] = {as_named(start.folder, version): {"delta_sha256": deltas[start.folder]}}
    for dataset, teacher in sorted(teachers.items()):
        if teacher.folder in deltas:
            known = {"delta_sha256": deltas[teacher.folder], "taught": []}
            noted = made_with.setdefault("teachers", {}).setdefault(as_named(teacher.folder, version), known)
            noted["taught"].append(dataset)
    write_metadata(
        version,
        {
            "trained": datetime.now(UTC).date().isoformat(),
            "trained_with": made_with,
            "training_files": {
                dataset.name: {"sha256": dataset.sha256, "questions": len(dataset.questions)} for dataset in datasets
            },
        },
    )
