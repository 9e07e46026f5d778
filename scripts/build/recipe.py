"""A version's recipe, `model_store/<model>/<version>/model.yaml`: everything that its archive is made from.

The folder names the model and the version. Beside the recipe may lie small weights, and `metadata.yaml`, which training
and evaluation write: what a registry wants to know of a version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from handlers.core.settings import CacheSettings, Log, Precision
from handlers.tasks.multiple_choice.task import Question
from scripts.core.errors import UserError
from scripts.core.explainers import SUFFIX, is_explainer
from scripts.core.faults import listed, schema_faults

RECIPE_FILE = "model.yaml"
METADATA_FILE = "metadata.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""torch-model-archiver's own rule (model_packaging_utils.py)."""

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
    max_delay_ms: Positive = 2
    """How long the first request of a batch waits for others; while a worker computes, the queue fills by itself."""
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
    """A request whose answer is known; every archive answers its samples before it is used."""

    request: Question
    expected: Expected


class Expected(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`probabilities`, where given, are compared within the recipe's tolerance."""

    prediction: Annotated[int, Meta(ge=0)]
    probabilities: list[float] | None = None


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
    """The content of model.yaml."""

    task: Literal["multiple_choice"]
    description: str
    weights: Weights
    runtime: Literal["torch"] = "torch"
    precision: Precision = "auto"
    max_tokens: Annotated[int, Meta(ge=8)] = 128
    rows_per_pass: Positive | None = None
    threads: Positive = 1
    workers: Positive = 1
    batching: Batching = Batching()
    log: Log = Log()
    cache: CacheSettings | bool = CacheSettings()
    """`cache: off`, or how long answers are kept."""
    explanations: Explanations | None = None
    response_timeout_s: Positive = 60
    startup_timeout_s: Positive = 180
    samples: Annotated[list[Sample], Meta(min_length=1)]
    sample_tolerance: Annotated[float, Meta(gt=0, lt=1)] = 0.03
    """Largest allowed difference of a sample's probabilities, over all precisions that the version may run in."""
    licence: str | None = None
    data: list[Source] = []
    training: Training | None = None


@dataclass(frozen=True)
class Version:
    """One model version: its recipe, where it stands, and its name."""

    folder: Path
    recipe: Recipe

    @property
    def model(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def archive_name(self) -> str:
        return f"{self.model}-{self.version}.mar"

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
    faults = [
        f"{kind} name {name!r}: use letters, digits, '.', '_' and '-'"
        for kind, name in (("model", folder.parent.name), ("version", folder.name))
        if not NAME.fullmatch(name)
    ]
    if is_explainer(folder.parent.name):
        faults.append(f"model name {folder.parent.name!r}: the ending {SUFFIX!r} is kept for workers that explain")
    faults += schema_faults(recipe_schema(), content)
    if not faults:
        recipe = msgspec.convert(content, Recipe)
        faults += meaning_faults(folder, recipe)
    if faults:
        raise UserError(listed(path, faults))
    return Version(folder, recipe)


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of model.yaml."""
    return msgspec.json.schema(Recipe)


def meaning_faults(folder: Path, recipe: Recipe) -> list[str]:
    """What the schema can't see: files that must exist, fields that go together, samples that make sense."""
    weights, faults = recipe.weights, []
    sources = [name for name in ("directory", "hub", "package") if getattr(weights, name)]
    if len(sources) != 1:
        given = " and ".join(sources) or "none"
        faults.append(f"weights: expected exactly one of directory, hub and package, got {given}")
    if weights.directory and not (folder / weights.directory).is_dir():
        faults.append(
            f"weights.directory: no folder {(folder / weights.directory).resolve()}; "
            "save the model there with save_pretrained"
        )
    if weights.hub and not weights.revision:
        faults.append(f"weights.revision: missing; name the commit of {weights.hub}, or two builds may differ")
    if weights.package and not weights.path:
        faults.append("weights.path: missing; name the folder of the model's files inside the package")
    if weights.delta and not (folder / weights.delta).is_file() and recipe.training is None:
        faults.append(f"weights.delta: no file {folder / weights.delta}; train it, or remove the line")
    for i, sample in enumerate(recipe.samples):
        count = len(sample.request.choices)
        if sample.expected.prediction >= count:
            faults.append(
                f"samples[{i}].expected.prediction: {sample.expected.prediction}, "
                f"but there are {count} choices, counted from 0"
            )
        if sample.expected.probabilities is not None and len(sample.expected.probabilities) != count:
            faults.append(
                f"samples[{i}].expected.probabilities: {len(sample.expected.probabilities)} of them for {count} choices"
            )
    return faults


def find_versions(store: Path) -> list[Version]:
    """Every recipe below a model store, by model and version; raises UserError with the faults of all of them."""
    versions, faults = [], []
    for path in sorted(store.glob(f"*/*/{RECIPE_FILE}")):
        try:
            versions.append(read_version(path.parent))
        except UserError as err:
            faults.append(str(err))
    if faults:
        raise UserError("\n".join(faults))
    return versions
