"""An archive extracted to a folder: its files, its digest, its libraries, its samples, and the task that it holds.

The root holds `entry.py`, `model-config.yaml`, `samples.json`, `metadata.json`, the package `marctl_handlers/` and
`model/`, and `task.py` where the task is the user's own. A version that is made of others has each of them under
`members/MODEL/VERSION/`, like such a root without the code. Nothing is fetched: a missing file stops the load.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from marctl_handlers.core.composite import MEMBERS_FOLDER, Composite, CompositeSettings, member_names
from marctl_handlers.core.errors import HandlerError, LoadError
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.samples import SAMPLES_FILE, Sample, read_json, read_samples
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.tasks import OWN_TASK, find_task, line_of

MODEL_FOLDER = "model"
CODE_PREFIXES = ("marctl_handlers/", "handlers/")
"""Where archives hold their copy of this package: the second ones were built when it had that name."""
METADATA_FILE = "metadata.json"
CONFIG_FILE = "model-config.yaml"
TASK_FILE = "task.py"
DEFAULT_TOLERANCE = 0.05
"""For an archive whose metadata names none."""


def load(root: Path, model: Model, handler: Mapping[str, Any] | None, device: str = "cpu") -> Pipeline:
    """Load and warm up the version of an archive extracted to `root`. Raises LoadError naming the cure."""
    check_libraries(root)
    task_type = task_of(root, handler)
    settings = task_type.settings_type.load(handler)
    pipeline = pipeline_of(task_type, root / MODEL_FOLDER, model, settings, device)
    with told(task_type, "warm_up"):
        pipeline.warm_up()
    return pipeline


def task_of(root: Path, handler: Mapping[str, Any] | None) -> type[Task[Any, Any]]:
    """The task that the `handler` section names. Raises LoadError."""
    if not handler:
        raise LoadError("model-config.yaml has no `handler` section; rebuild the archive with `marctl build`")
    name = handler.get("task")
    task = find_task(str(name), root / TASK_FILE if name == OWN_TASK else None)
    return task.of(tasks_of_members(root, handler)) if issubclass(task, Composite) else task


def pipeline_of(
    task_type: type[Task[Any, Any]], folder: Path, model: Model, settings: Settings, device: str
) -> Pipeline:
    """A pipeline round the task, loaded from `folder`. Raises LoadError, also for what the task's own code raises."""
    with told(task_type, "load"):
        task = task_type(settings, device)
        if isinstance(task, Composite):
            task.join(load_members(folder.parent, settings, device))
        task.load(folder)
    with told(task_type, "explainer"):
        explainer = task.explainer() if settings.explanations is not None else None
    if settings.explanations is not None and explainer is None:
        raise LoadError(f"{task_type.__name__} explains nothing; remove `explanations` from the recipe")
    return Pipeline(task, model, explainer=None if explainer is None else Pipeline(explainer, model))


def tasks_of_members(root: Path, handler: Mapping[str, Any]) -> list[type[Task[Any, Any]]]:
    """The tasks of those members whose files are whole. Raises LoadError if there are none."""
    found: list[type[Task[Any, Any]]] = []
    faults = []
    for name in member_names(handler):
        member = root / MEMBERS_FOLDER / name
        try:
            found.append(task_of(member, handler_section(member)))
        except LoadError as err:
            faults.append(f"{name}: {err}")
    if not found:
        raise LoadError(f"none of its members can be read: {'; '.join(faults)}")
    return found


def load_members(root: Path, settings: Settings, device: str) -> dict[str, Task[Any, Any] | LoadError]:
    """Every member of an archive extracted to `root`, loaded for work in this process, or why it cannot be."""
    assert isinstance(settings, CompositeSettings)
    found: dict[str, Task[Any, Any] | LoadError] = {}
    for member in settings.members:
        try:
            found[member.version] = load_member(
                root / MEMBERS_FOLDER / member.version, member.version, settings, device
            )
        except LoadError as err:
            found[member.version] = err
    return found


def load_member(root: Path, name: str, whole: Settings, device: str) -> Task[Any, Any]:
    """A member that has answered its own samples; it explains if the `whole` does. Raises LoadError."""
    check_libraries(root)
    handler = handler_section(root)
    task_type = task_of(root, handler)
    settings = msgspec.structs.replace(
        task_type.settings_type.load(handler), threads=whole.threads, explanations=whole.explanations
    )
    with told(task_type, "load"):
        task = task_type(settings, device)
        task.load(root / MODEL_FOLDER)
    if whole.explanations is None:  # else its explainer is warmed up
        with told(task_type, "warm_up"):
            task.warm_up()
    check_samples(Pipeline(task, Model(*name.split("/"))), root)
    return task


def handler_section(root: Path) -> Mapping[str, Any] | None:
    """Of the model-config.yaml in a folder. Raises LoadError."""
    try:
        content = yaml.safe_load((root / CONFIG_FILE).read_bytes())
    except (OSError, yaml.YAMLError) as err:
        raise LoadError(f"{CONFIG_FILE} cannot be read ({' '.join(str(err).split())}); rebuild the archive") from err
    return content.get("handler") if isinstance(content, dict) else None


@contextmanager
def told(task_type: type[Task[Any, Any]], step: str) -> Iterator[None]:
    """Make a LoadError of whatever a step of the task raises, with its place in the task's file."""
    try:
        yield
    except LoadError:
        raise
    except Exception as err:
        file = Path(inspect.getfile(task_type))
        place = f"{file.name}{line_of(err, file)}"
        raise LoadError(f"{task_type.__name__}.{step} raised {type(err).__name__} ({place}): {err}") from err


def archive_digest(root: Path) -> str:
    """SHA-256, in hex, of what an archive extracted to `root` holds.

    metadata.json carries the digests of the sources and of every file, and is small; an archive that
    torch-model-archiver alone laid out has none, so that all of it is read.
    """
    recorded = [root / METADATA_FILE, root / CONFIG_FILE]
    files = recorded if all(path.is_file() for path in recorded) else sorted(p for p in root.rglob("*") if p.is_file())
    whole = hashlib.sha256()
    for path in files:
        if "__pycache__" in path.parts:
            continue
        with path.open("rb") as file:
            whole.update(f"{path.relative_to(root).as_posix()}\0".encode())
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def read_metadata(root: Path) -> dict[str, Any]:
    """metadata.json; empty for an archive that torch-model-archiver alone laid out. Raises LoadError."""
    metadata: dict[str, Any] = read_json(root / METADATA_FILE, dict[str, Any], {})
    return metadata


def handlers_digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over the handler code of an archive with this metadata; empty if it does not say.

    Versions whose code is the same can be served by one process.
    """
    files = metadata.get("files")
    if not isinstance(files, Mapping):
        return ""
    code = sorted(f"{path}\0{sha256}\n" for path, sha256 in files.items() if path.startswith(CODE_PREFIXES))
    return hashlib.sha256("".join(code).encode()).hexdigest() if code else ""


def check_libraries(root: Path) -> None:
    """Raise LoadError unless every library that the archive was verified with is here, in that version or later."""
    from packaging.version import Version

    wanted = read_metadata(root).get("libraries", {})
    faults = []
    try:
        for library, verified in sorted(wanted.items()):
            try:
                found = importlib.metadata.version(library)
            except importlib.metadata.PackageNotFoundError:
                faults.append(f"{library} is not installed")
                continue
            if Version(found) < Version(verified):
                faults.append(f"{library} is {found}")
    except (AttributeError, TypeError, ValueError) as err:
        raise LoadError(f"{METADATA_FILE} is damaged ({err}); rebuild the archive with `marctl build`") from err
    if faults:
        needed = " ".join(f"'{library}>={verified}'" for library, verified in sorted(wanted.items()))
        raise LoadError(f"the archive was verified with other libraries: {'; '.join(faults)}; pip install {needed}")


def answers(pipeline: Pipeline, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The decoded answer, or error, to each of some sample requests, all asked in one batch. Raises LoadError."""
    question_type = pipeline.task.question_type
    try:
        questions = [msgspec.convert(request, question_type) for request in requests]
    except msgspec.ValidationError as err:
        raise LoadError(f"{SAMPLES_FILE}: a request that this task does not take: {err}; rebuild the archive") from err
    return [
        {"error": result.error, "detail": str(result)}
        if isinstance(result, HandlerError)
        else msgspec.to_builtins(result)
        for result in pipeline.predict(questions)
    ]


def check_samples(pipeline: Pipeline, root: Path) -> None:
    """Ask a version the samples of its archive, extracted to `root`.

    Raises LoadError at the first wrong answer: a version on damaged weights or another library must take no request.
    """
    samples, tolerance = read_samples(root), tolerance_of(read_metadata(root))
    given = answers(pipeline, [sample.request for sample in samples])
    for i, (sample, answer) in enumerate(zip(samples, given, strict=True)):
        if faults := differences(type(pipeline.task), sample, answer, tolerance):
            raise LoadError(
                f"it answers its sample {i} wrongly: {'; '.join(faults)}; rebuild the archive with `marctl build`"
            )


def tolerance_of(metadata: Mapping[str, Any]) -> float:
    """By how much a number in a sample's answer may differ. Raises LoadError."""
    tolerance = metadata.get("sample_tolerance", DEFAULT_TOLERANCE)
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise LoadError(
            f"{METADATA_FILE} is damaged (sample_tolerance is {tolerance!r}); rebuild the archive with `marctl build`"
        )
    return float(tolerance)


def differences(
    task_type: type[Task[Any, Any]], sample: Sample, answer: Mapping[str, Any], tolerance: float
) -> list[str]:
    """Where an answer to a sample's request departs from what was expected; empty if it does not."""
    if "error" in answer and "error" not in sample.expected:
        return [f"the answer is an error: {answer['error']}: {answer.get('detail', '')}"]
    return task_type.differences(sample.expected, answer, tolerance)
