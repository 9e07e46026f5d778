"""Write a recipe for a model that someone has saved already."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from marctl.build.build import lay_out_model
from marctl.build.lone_file import ModelFile
from marctl.build.recipe import RECIPE_FILE, Explanations, Recipe, Sample, Version, Weights, own_file, read_version
from marctl.build.record import own_answers, rounded
from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.core.names import NAME
from marctl_handlers.archive import MODEL_FOLDER
from marctl_handlers.core.composite import Composite
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Binary
from marctl_handlers.core.pipeline import example_of
from marctl_handlers.core.task import Task
from marctl_handlers.tasks import TASKS, find_task

BESIDE = ("label", "id", "expected")
"""What may stand beside a request's fields in a file of samples."""


def adopt(
    source: Path | ModelFile,
    name: str,
    version: str,
    store: Path,
    requests: Sequence[Mapping[str, Any]] = (),
    *,
    task: str | None = None,
    explain: bool = False,
    force: bool = False,
    notify: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Version:
    """Write `<store>/<name>/<version>/model.yaml` for a model's folder, or its file, and return the version.

    `task` is a name, or a Python file's path; `settings` are the task's own. A file is copied beside the recipe. The
    samples' expected answers are recorded from the model's own library, in float32. Raises UserError if there is no
    such model, or a recipe stands there already.
    """
    place = refuse_place(store, name, version, force=force)
    path = source.path if isinstance(source, ModelFile) else source
    task = task or default_task(path)
    kind = task_named(task)
    with tempfile.TemporaryDirectory(prefix="marctl-adopt-") as work:
        folder = source.lay_out(kind, Path(work)) if isinstance(source, ModelFile) else source
        try:
            refuse_folder(folder, kind)
            notify(f"{name} {version}: reading {path}")
            own = {**kind.suggest(folder), **settings}
            asked = [check(kind, request) for request in requests or default_requests(kind, folder)]
            recipe = Recipe(
                task=str(own_file(Path.cwd(), task) or task),
                description=f"{name}, from {path.resolve().name}",
                weights=Weights(directory=MODEL_FOLDER if isinstance(source, ModelFile) else str(source.resolve())),
                libraries=list(kind.needed(folder)),
                explanations=Explanations() if explain else None,
                samples=record(place.resolve(), folder, kind, asked, own),
            )
        except LoadError as err:
            raise UserError(f"{path}: {err}") from err
        if isinstance(source, ModelFile):
            shutil.rmtree(place / MODEL_FOLDER, ignore_errors=True)
            shutil.copytree(folder, place / MODEL_FOLDER)
    write_recipe(recipe, own, place)
    return read_version(place)


def write_recipe(recipe: Recipe, settings: Mapping[str, Any], place: Path) -> None:
    """What differs from a recipe's defaults, the samples last."""
    place.mkdir(parents=True, exist_ok=True)
    plain = msgspec.to_builtins(Recipe(task="", description="", samples=recipe.samples))
    content = {name: value for name, value in msgspec.to_builtins(recipe).items() if value != plain[name]}
    content = {"task": content.pop("task"), **content, **settings, "samples": plain["samples"]}
    write_atomically(place / RECIPE_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def default_task(source: Path) -> str:
    """The task that such a file is made for; multiple_choice for a folder. Raises UserError."""
    if source.is_dir():
        return "multiple_choice"
    found = [name for name in TASKS if source.suffix in find_task(name).model_suffixes]
    if not found:
        known = sorted({suffix for name in TASKS for suffix in find_task(name).model_suffixes})
        raise UserError(f"{source}: expected a folder written by save_pretrained, or a file ({', '.join(known)})")
    return found[0]


def task_named(task: str) -> type[Task[Any, Any]]:
    """A task by name, or from a Python file; raises UserError."""
    try:
        found = find_task(task, own_file(Path.cwd(), task))
    except LoadError as err:
        raise UserError(f"--task {task}: {err}") from err
    if issubclass(found, Composite):
        raise UserError(f"--task {task}: it is made of other versions, not of a folder; write its recipe by hand")
    return found


def record(
    place: Path,
    folder: Path,
    task: type[Task[Any, Any]],
    requests: Sequence[dict[str, Any]],
    settings: Mapping[str, Any],
) -> list[Sample]:
    """Samples with the answers that the model's own library gives, or the task itself where it has no reference."""
    try:
        wanted = msgspec.convert({**settings, "task": "adopted"}, task.settings_type)
    except msgspec.ValidationError as err:
        raise UserError(f"a setting of the task is wrong: {err}") from err
    with tempfile.TemporaryDirectory(prefix="marctl-adopt-") as work:
        draft = Recipe(task="", description="", weights=Weights(directory=str(folder.resolve())), samples=[])
        model = Path(work, "model")
        lay_out_model(Version(place, draft, task), model)
        found = task.reference(model, requests, wanted) or own_answers(task, model, requests, wanted)
    return [Sample(request, rounded(answer)) for request, answer in zip(requests, found, strict=True)]


def check(task: type[Task[Any, Any]], request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as plain data; raises UserError if the task does not take it."""
    if task.question_type is Binary:
        raise UserError("a task of raw bodies has no --from; write the recipe by hand: samples name their files")
    try:
        question = msgspec.convert(dict(request), task.question_type)
    except msgspec.ValidationError as err:
        example = task.example or example_of(task.question_type)
        raise UserError(f"a sample is no request of this task: {err}; expected {example}") from err
    plain: dict[str, Any] = msgspec.to_builtins(question)
    return plain


def default_requests(task: type[Task[Any, Any]], folder: Path) -> list[Mapping[str, Any]]:
    found = task.default_samples(folder)
    if not found:
        raise UserError("--samples: needed for this task; give a JSONL file of requests, one a line")
    return found


def refuse_place(store: Path, name: str, version: str, *, force: bool) -> Path:
    """The folder of the recipe to be; raises UserError for a bad name, and for a recipe that stands there already."""
    place = store / name / version
    refuse_names(name, version)
    if (place / RECIPE_FILE).exists() and not force:
        raise UserError(f"{place / RECIPE_FILE} exists already; choose another --version, or add --force to replace it")
    return place


def refuse_names(name: str, version: str) -> None:
    for kind, text in (("name", name), ("version", version)):
        if not NAME.fullmatch(text):
            raise UserError(
                f"--{kind} {text!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit"
            )


def refuse_folder(folder: Path, task: type[Task[Any, Any]]) -> None:
    if task.hub_class and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json in it; expected a folder written by save_pretrained, model and tokenizer"
        )


def read_samples(path: Path, task: str) -> list[dict[str, Any]]:
    """Requests from a JSONL file, one a line; fields `label`, `id` and `expected` are left out.

    Raises UserError naming the line of the first that the task does not take.
    """
    try:
        kind = task_named(task)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: cannot read samples: {err}") from err
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = msgspec.json.decode(line, type=dict[str, Any])
            fields = {key: value for key, value in content.items() if key not in BESIDE}
            requests.append(check(kind, fields))
        except (msgspec.DecodeError, UserError) as err:
            raise UserError(f"{path}:{number}: {err}") from err
    return requests
