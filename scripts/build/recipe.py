"""A version's recipe, `model_store/<model>/<version>/model.yaml`: everything that its archive is made from.

The folder names the model and the version. Beside the recipe may lie small weights, and `metadata.yaml`, which training
and evaluation write: what a registry wants to know of a version.
"""

from __future__ import annotations

import importlib.metadata
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from marctl.build.table_training import TableTraining
from marctl.core.errors import UserError
from marctl.core.faults import listed, schema_faults
from marctl.core.names import name_faults
from marctl_handlers.core.calibration import METHODS, Calibration
from marctl_handlers.core.composite import Composite, member_names
from marctl_handlers.core.devices import Device
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Binary
from marctl_handlers.core.settings import CacheSettings, Log, Settings
from marctl_handlers.core.task import Task
from marctl_handlers.tasks import OWN_TASK, find_task

RECIPE_FILE = "model.yaml"
METADATA_FILE = "metadata.yaml"

PARTS = "#/$defs/"
PART = PARTS + "{name}"

Positive = Annotated[int, Meta(ge=1)]


class Weights(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the weights and the tokenizer come from: exactly one of `directory`, `hub` and `package`."""

    directory: str | None = None
    """A folder written by `save_pretrained`, model and tokenizer; relative to the recipe."""
    hub: str | None = None
    """A Hugging Face model id; needs network at build time only."""
    revision: str | None = None
    """Commit of the hub model, so that two builds take the same files."""
    package: str | None = None
    """An installed Python distribution that carries the files."""
    path: str | None = None
    """Folder of the files inside the package."""
    sha256: dict[str, str] = {}
    """File name -> hex digest; checked before the files are used."""
    layers: list[int] | None = None
    """Encoder layers to keep, in this order; all if left out."""
    delta: str | None = None
    """Safetensors file beside the recipe with what training added to those weights."""


class Batching(Struct, frozen=True, forbid_unknown_fields=True):
    """TorchServe's batching of requests."""

    batch_size: Positive = 32
    max_delay_ms: Positive = 1
    """How long the first request of a batch waits for others; while a worker computes, the queue fills by itself. With
    0 TorchServe would take two requests at most, however many wait (Model.java, `pollBatch`)."""
    queue_size: Positive = 1000


class Explanations(Struct, frozen=True, forbid_unknown_fields=True):
    """Workers of their own for explanations; without this section a version gives predictions only."""

    workers: Annotated[int, Meta(ge=0)] = 1
    """Each holds the model once more, in float32. 0: none until `marctl scale MODEL-explain VERSION N`."""
    queue_size: Positive = 16
    """Requests that wait; more are refused at once with 503 and Retry-After."""
    batch_size: Positive = 4
    response_timeout_s: Positive = 60
    nice: Annotated[int, Meta(ge=0, le=19)] = 19
    """How far they stand back from the predictions' workers at the processor; 19 is farthest."""
    max_steps: Positive = 256
    max_samples: Annotated[int, Meta(ge=2)] = 512
    max_words: Positive = 128
    tokens_per_pass: Positive = 1024
    """The last four are explained in handlers/core/settings.py."""


class Sample(Struct, frozen=True, forbid_unknown_fields=True):
    """A request whose answer is known; every archive answers its samples before it is used.

    `request` is a question as clients send it; that of a raw body is `{file: cat.png, content_type: image/png}`, the
    file beside the recipe. `expected` holds fields of the answer; numbers are compared within the recipe's tolerance.
    """

    request: dict[str, Any]
    expected: dict[str, Any]


class TrainingRun(Struct, frozen=True, forbid_unknown_fields=True):
    """One pass through training."""

    epochs: Positive
    learning_rate: float
    """At its peak, after the warm-up."""
    seed: int


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """How `marctl train` makes the delta; distils from `teacher` where one is named."""

    runs: Annotated[list[TrainingRun], Meta(min_length=1)]
    """The weights of several runs are averaged (model soup, Wortsman et al. 2022, arXiv:2203.05482)."""
    start: str | None = None
    """Folder of the recipe whose trained weights the runs begin with, beside this version's own; trained first if its
    delta is missing. It has the same base, and of its layers those are taken that this version keeps."""
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    questions_per_step: Positive = 32
    draw: dict[str, Positive] = {}
    """Questions of an epoch by data set, drawn with the first run's seed; beyond what a set has, some come again. A set
    that is not named is left out; with no names, all sets come whole."""
    contrast: dict[str, str] = {}
    """By data set another one whose choices are its contexts. The right choice of a question of the first must then fit
    its own context better than the choices beside that in the second: a reason fits the statement that it is for."""
    input_mask_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Of the tokens in half of the questions, drawn anew for each step; labels and teachers' answers stay (word
    dropout, Iyyer et al. 2015, doi:10.3115/v1/P15-1162)."""
    frozen: list[str] = []
    """Parts of parameter names that stay as they are."""
    teacher: str | dict[str, str] | None = None
    """Folder of its recipe, beside this version's own; trained first if its delta is missing. One for all data sets, or
    one by data set: on those that are not named the labels count alone."""
    teacher_weight: float = 0.8
    """Share of the loss that follows the teacher where it was asked; the rest follows the labels."""
    temperature: float = 2.0
    noisy_copies: int = 0
    """Masked copies of every question, labelled by the teacher alone, which must have the same tokenizer."""
    mask_share: float = 0.1


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """A data set that the weights were trained on: what a model card must name."""

    name: str
    source: str
    licence: str


class Recipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of model.yaml, but for the task's own settings, which stand beside these."""

    task: str
    """A task that comes with the package, or a Python file, relative to the recipe, that defines one: ./sentiment.py"""
    description: str
    weights: Weights = Weights()
    """None at all for a task of one's own that has no files."""
    libraries: list[str] = []
    """Further distributions that a task of one's own needs; the archive asks for the versions that are installed."""
    device: Device = "cpu"
    """`cuda`: on an NVIDIA GPU, nowhere else. `auto`: the same where the node has one, else on the processor."""
    workers_per_gpu: Positive | None = None
    """Worker processes, of all versions, that share a GPU: each takes this part of its memory. If left out, this
    version's own."""
    threads: Positive = 1
    workers: Positive | Literal["shared"] = 1
    """`shared`: no process of its own, but a place in one that holds many small versions and loads them on demand."""
    batching: Batching = Batching()
    log: Log = Log()
    cache: CacheSettings | bool = CacheSettings()
    """`cache: off`, or how long answers are kept."""
    calibration: Calibration | None = None
    """How scores become probabilities; learned by `marctl calibrate`."""
    ranges: str | None = None
    """Safetensors file beside the recipe with the ranges of 8-bit integers; written by `marctl quantize`."""
    explanations: Explanations | None = None
    response_timeout_s: Positive = 60
    startup_timeout_s: Positive = 180
    samples: Annotated[list[Sample], Meta(min_length=1)]
    sample_tolerance: Annotated[float, Meta(gt=0, lt=1)] = 0.03
    """Largest allowed difference of a number in a sample's answer, over all precisions that the version may run in."""
    licence: str | None = None
    data: list[Source] = []
    training: Training | None = None
    table_training: TableTraining | None = None
    """How `marctl train` makes a model that scores rows of a table."""
    autostart: bool = True
    """Whether `marctl up` builds and serves the version; if not, `marctl build` and `marctl register` do."""


@dataclass(frozen=True)
class Version:
    """One model version: its recipe, where it stands, and its name."""

    folder: Path
    recipe: Recipe
    task: type[Task[Any, Any]]
    task_settings: dict[str, Any] = field(default_factory=dict)
    """The task's own, as they stand in the recipe."""
    members: tuple[Version, ...] = ()
    """The versions that this one is made of."""

    @property
    def task_file(self) -> Path | None:
        """Where a task of the user's own is defined."""
        return own_file(self.folder, self.recipe.task)

    @property
    def handler(self) -> dict[str, Any]:
        """The `handler` section of model-config.yaml."""
        recipe = self.recipe
        return {
            **self.task_settings,
            "task": OWN_TASK if self.task_file else recipe.task,
            "threads": recipe.threads,
            **self.gpu_settings,
            "batch_seconds": recipe.response_timeout_s / 2,
            "log": msgspec.to_builtins(recipe.log),
            "cache": msgspec.to_builtins(recipe.cache),
            **({"calibration": msgspec.to_builtins(recipe.calibration)} if recipe.calibration else {}),
        }

    @property
    def gpu_settings(self) -> dict[str, Any]:
        """Empty for a version that computes on the processor."""
        recipe = self.recipe
        if recipe.device == "cpu":
            return {}
        own = 1 if recipe.workers == "shared" else recipe.workers
        explainers = recipe.explanations.workers if recipe.explanations else 0
        return {"device": recipe.device, "workers_per_gpu": recipe.workers_per_gpu or own + explainers}

    @cached_property
    def settings(self) -> Any:
        """What the version will be served with, as its task's settings type."""
        return msgspec.convert(self.handler, self.task.settings_type)

    @property
    def gives_probabilities_of(self) -> Literal["choices", "event"] | None:
        """As its task's settings decide."""
        return self.task(self.settings).gives_probabilities_of

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The samples' requests as the task takes them: a raw body's file is read."""
        if self.task.question_type is not Binary:
            return [sample.request for sample in self.recipe.samples]
        return [raw_request(self.folder, sample.request) for sample in self.recipe.samples]

    @property
    def model(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def archive_name(self) -> str:
        return archive_name(self.folder)

    @property
    def base(self) -> tuple[str | None, ...]:
        """Equal for versions that are made from the same weights."""
        weights = self.recipe.weights
        directory = str((self.folder / weights.directory).resolve()) if weights.directory else None
        return (directory, weights.hub, weights.revision, weights.package, weights.path)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What training and evaluation recorded; empty if nothing has."""
        path = self.folder / METADATA_FILE
        return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}

    def __str__(self) -> str:
        return f"{self.model} {self.version}"


def read_version(folder: Path) -> Version:
    """Read and check one recipe; raises UserError listing every fault with its path and cure."""
    folder = folder.resolve()
    path = folder / RECIPE_FILE
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}; expected a recipe, see `marctl build --help`") from err
    except yaml.YAMLError as err:
        raise UserError(f"{path}: not YAML: {' '.join(str(err).split())}") from err
    faults = name_faults(folder.parent.name, folder.name)
    task = None
    try:
        task = task_of(folder, content)
    except LoadError as err:
        faults.append(f"task: {err}")
    members: list[Version] = []
    if task is not None and issubclass(task, Composite):
        members, found = members_of(folder, content)
        faults += found
        task = composed(task, members, faults)
    if task is not None:
        faults += schema_faults(recipe_schema(task), content)
    if faults or task is None:
        raise UserError(listed(path, faults))
    names = own_settings(task)
    settings = {name: value for name, value in content.items() if name in names}
    try:
        recipe = msgspec.convert({name: value for name, value in content.items() if name not in names}, Recipe)
    except msgspec.ValidationError as err:  # what the types check beyond the schema
        raise UserError(listed(path, [str(err)])) from err
    version = Version(folder, recipe, task, settings, tuple(members))
    faults = meaning_faults(version)
    if faults:
        raise UserError(listed(path, faults))
    return version


def own_file(folder: Path, task: str) -> Path | None:
    """The file that a recipe's `task` names; None for a task that comes with the package."""
    return (folder / task).resolve() if task.endswith(".py") else None


def task_of(folder: Path, content: Any) -> type[Task[Any, Any]]:
    """The task that a recipe names. Raises LoadError."""
    name = content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise LoadError(f"expected the name of a task or a Python file, got {name!r}")
    return find_task(name, own_file(folder, name))


def members_of(folder: Path, content: Any) -> tuple[list[Version], list[str]]:
    """The versions that a recipe names as members, and what is wrong with its list."""
    try:
        names = member_names(content)
    except LoadError as err:
        return [], [str(err)]
    versions, faults = [], []
    for i, name in enumerate(names):
        member = folder.parent.parent / name
        try:
            if member == folder:
                raise UserError("a version cannot be a member of itself")
            refuse_composite(member)
            versions.append(read_version(member))
        except (UserError, LoadError) as err:
            faults.append(f"members[{i}]: {name}: {err}")
    return versions, faults


def refuse_composite(folder: Path) -> None:
    """Raise UserError for a recipe with members of its own, before they are read: they might lead back here."""
    try:
        content = yaml.safe_load((folder / RECIPE_FILE).read_text())
    except (OSError, yaml.YAMLError):
        return  # read_version tells it better
    if issubclass(task_of(folder, content), Composite):
        raise UserError("it is made of other versions itself; name those as members")


def composed(task: type[Composite], members: Sequence[Version], faults: list[str]) -> type[Task[Any, Any]] | None:
    """The task for these members; None, and one fault more, if they cannot be members together."""
    try:
        return task.of([member.task for member in members]) if members and not faults else None
    except LoadError as err:
        faults.append(str(err))
        return None


def own_settings(task: type[Task[Any, Any]]) -> set[str]:
    """Names of the settings that this task has beyond those of every task."""
    return {f.name for f in msgspec.structs.fields(task.settings_type)} - {
        f.name for f in msgspec.structs.fields(Settings)
    }


def recipe_schema(task: type[Task[Any, Any]]) -> dict[str, Any]:
    """JSON Schema of a recipe for this task: the recipe's fields, the task's own settings, its requests in samples."""
    (recipe, settings), parts = msgspec.json.schema_components([Recipe, task.settings_type], ref_template=PART)
    own = parts[settings["$ref"].removeprefix(PARTS)]["properties"]
    parts["Recipe"]["properties"] |= {name: own[name] for name in own_settings(task)}
    if task.question_type is not Binary:
        # Types of a user's own may have any name.
        [question], theirs = msgspec.json.schema_components([task.question_type], ref_template=f"{PARTS}task.{{name}}")
        parts |= {f"task.{name}": part for name, part in theirs.items()}
        parts["Sample"]["properties"]["request"] = question
    return {**recipe, "$defs": parts}


def raw_request(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """A raw body's sample with its file's content, in Base64 as JSON needs it."""
    content = (folder / str(request["file"])).read_bytes()
    return {"data": b64encode(content).decode(), "content_type": str(request.get("content_type", ""))}


def meaning_faults(version: Version) -> list[str]:
    """What the schema can't see: files that must exist, fields that go together, samples that make sense."""
    recipe = version.recipe
    try:
        _ = version.settings
    except msgspec.ValidationError as err:  # what the settings' types check beyond the schema
        return [str(err)]
    wanted = version.task.hub_class is not None or recipe.weights != Weights()
    faults = weight_faults(version.folder, recipe) if wanted else []
    if version.members and wanted:
        faults = ["weights: the members bring theirs; remove the section"]
    if recipe.explanations and version.task.explain_types() is None:
        faults.append(f"explanations: task {recipe.task} explains nothing; remove the section")
    faults += calibration_faults(version)
    faults += ranges_faults(version)
    faults += device_faults(recipe)
    if recipe.table_training is not None:
        faults += table_training_faults(version, recipe.table_training)
    for i, sample in enumerate(recipe.samples):
        if version.task.question_type is Binary:
            faults += [f"samples[{i}].request{fault}" for fault in raw_faults(version.folder, sample.request)]
        found = version.task.expected_faults(sample.request, sample.expected)
        faults += [f"samples[{i}].expected{fault}" for fault in found]
    for library in recipe.libraries:
        try:
            importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"libraries: {library} is not installed; pip install {library}, or remove it")
    return faults


def device_faults(recipe: Recipe) -> list[str]:
    """What would have no effect, or could never be served."""
    faults = []
    if recipe.device == "cuda" and recipe.workers == "shared":
        faults.append("device: shared workers compute on the processor; write `workers: 1`, or `device: auto`")
    if recipe.device == "cpu" and recipe.workers_per_gpu is not None:
        faults.append("workers_per_gpu: `device` is cpu; write `device: cuda` or `device: auto`, or remove the line")
    return faults


def calibration_faults(version: Version) -> list[str]:
    """A calibration that the task does not apply would be a promise that nobody keeps."""
    calibration = version.recipe.calibration
    if calibration is None:
        return []
    kind = version.gives_probabilities_of
    if kind and isinstance(calibration, METHODS[kind]):
        return []
    if kind is None:
        return [f"calibration: task {version.recipe.task} gives no probabilities; remove the section"]
    known = " and ".join(str(method.__struct_config__.tag) for method in METHODS[kind])
    return [f"calibration: this method is not for task {version.recipe.task}, which takes {known}"]


def raw_faults(folder: Path, request: dict[str, Any]) -> list[str]:
    name = request.get("file")
    if not isinstance(name, str) or set(request) - {"file", "content_type"}:
        return [f": expected {{file: NAME, content_type: TYPE}}, got {request!r}"]
    return [] if (folder / name).is_file() else [f".file: no file {folder / name}"]


def table_training_faults(version: Version, training: TableTraining) -> list[str]:
    """What is asked of a version whose model `marctl train` makes from a table."""
    faults = []
    if version.task.gives_probabilities_of is None or training.suffix not in version.task.model_suffixes:
        faults.append(f"table_training: task {version.recipe.task} is not trained so; remove the section")
    elif version.gives_probabilities_of != "event":
        faults.append("table_training: expected two `labels`; the target of a table is one of two")
    if not version.recipe.weights.directory:
        faults.append("weights.directory: missing; name the folder that the trained model is written to, such as model")
    if not (version.folder / training.features).is_file():
        faults.append(f"table_training.features: no file {version.folder / training.features}")
    return faults


def ranges_faults(version: Version) -> list[str]:
    name = version.recipe.ranges
    if name is None:
        return []
    if getattr(version.settings, "precision", None) != "int8":
        return ["ranges: only `precision: int8` uses them; set it, or remove the line"]
    if not (version.folder / name).is_file():
        return [f"ranges: no file {version.folder / name}; make it with `marctl quantize`, or remove the line"]
    return []


def weight_faults(folder: Path, recipe: Recipe) -> list[str]:
    weights, training = recipe.weights, recipe.training
    faults = []
    sources = [name for name in ("directory", "hub", "package") if getattr(weights, name)]
    if len(sources) != 1:
        given = " and ".join(sources) or "none"
        faults.append(f"weights: expected exactly one of directory, hub and package, got {given}")
    if weights.directory and not (folder / weights.directory).is_dir() and recipe.table_training is None:
        faults.append(
            f"weights.directory: no folder {(folder / weights.directory).resolve()}; "
            "save the model there with save_pretrained"
        )
    if weights.hub and not weights.revision:
        faults.append(f"weights.revision: missing; name the commit of {weights.hub}, or two builds may differ")
    if weights.package and not weights.path:
        faults.append("weights.path: missing; name the folder of the model's files inside the package")
    if weights.delta and not (folder / weights.delta).is_file() and training is None:
        faults.append(f"weights.delta: no file {folder / weights.delta}; train it, or remove the line")
    return faults


def find_versions(store: Path, model: str | None = None) -> list[Version]:
    """Every recipe below a model store, or of one model, by model and version; of all models, those with `autostart`.

    Raises UserError with the faults of all of them.
    """
    versions, faults = read_versions(store, model)
    if faults:
        raise UserError("\n".join(map(str, faults.values())))
    return list(versions.values())


def read_versions(store: Path, model: str | None = None) -> tuple[dict[Path, Version], dict[Path, UserError]]:
    """The same by folder, and of those that cannot be read, what is wrong."""
    versions, faults = {}, {}
    for path in sorted(store.glob(f"{model or '*'}/*/{RECIPE_FILE}")):
        try:
            if model or starts(path):
                versions[path.parent] = read_version(path.parent)
        except UserError as err:
            faults[path.parent] = err
    return versions, faults


def archive_name(folder: Path) -> str:
    """Of the version whose recipe is in this folder."""
    return f"{folder.parent.name}-{folder.name}.mar"


def starts(path: Path) -> bool:
    """Whether a recipe has `autostart`: asked before it is read, since it may need libraries that nobody installed."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return True  # read_version tells what is wrong
    return not isinstance(content, dict) or content.get("autostart") is not False
