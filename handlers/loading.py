"""From an extracted archive to a task that answers.

An archive's root holds `entry.py`, `model-config.yaml`, `samples.json`, `metadata.json`, the `handlers/` package and
`model/`, a Hugging Face `save_pretrained` folder. Nothing is fetched: a missing file stops the load.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from handlers.core.errors import LoadError
from handlers.core.settings import Settings
from handlers.core.task import Task

if TYPE_CHECKING:
    from handlers.text.tokenization import PairEncoder

MODEL_FOLDER = "model"
METADATA_FILE = "metadata.json"
CONFIG_FILE = "model-config.yaml"


def load_task(
    root: Path, name: str, version: str, handler: Mapping[str, Any] | None, device: str = "cpu"
) -> Task[Any, Any]:
    """Load, warm up and return the task of an archive extracted to `root`; raises LoadError naming the cure."""
    settings = Settings.load(handler)
    check_libraries(root)
    loaders = {"multiple_choice": load_multiple_choice}
    if settings.task not in loaders:
        raise LoadError(f"task is {settings.task!r}; expected one of {', '.join(sorted(loaders))}")
    task = loaders[settings.task](root / MODEL_FOLDER, name, version, settings, device)
    task.warm_up()
    return task


def load_multiple_choice(folder: Path, name: str, version: str, settings: Settings, device: str) -> Task[Any, Any]:
    """A multiple-choice task from a `save_pretrained` folder."""
    # A worker must never wait for a hub; this also silences the libraries' progress bars in the server's log.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from handlers.samples import read_samples
    from handlers.tasks.multiple_choice.task import MultipleChoice, Question, pairs
    from handlers.text.choose import load_scorer
    from handlers.text.tokenization import PairEncoder, Row

    transformers_logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise LoadError(f"{folder.name}/config.json is missing; rebuild the archive with `marctl build`")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as err:
        raise LoadError(f"{folder.name}/ does not hold a tokenizer: {err}") from err
    encoder = PairEncoder(tokenizer, settings.max_tokens)
    if settings.explanations is not None:
        return load_explaining(folder, name, version, settings, encoder, device)
    samples: list[Row] = []
    if settings.precision == "int8":
        asked = [msgspec.convert(sample.request, Question) for sample in read_samples(folder.parent)]
        samples = encoder.encode(pairs(asked))
    scorer = load_scorer(folder, encoder, settings, device, samples)
    return MultipleChoice(name, version, settings, encoder, scorer)


def load_explaining(
    folder: Path, name: str, version: str, settings: Settings, encoder: PairEncoder, device: str
) -> Task[Any, Any]:
    """The same task, which also explains: in float32 and by the model's own code, which has gradients."""
    import torch

    from handlers.tasks.multiple_choice.task import MultipleChoice
    from handlers.text.choose import load_model
    from handlers.text.torch_runtime import TorchScorer

    try:
        from handlers.tasks.multiple_choice.explain.explainer import Explainer
    except ImportError as err:
        raise LoadError(f"explanations need Captum ({err}); pip install captum") from err
    torch.set_num_threads(settings.threads)
    model = load_model(folder, torch.float32)
    task = MultipleChoice(name, version, settings, encoder, TorchScorer.of(model, encoder, settings, device))
    assert settings.explanations is not None
    task.explainer = Explainer(task, model, settings.explanations)
    return task


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


def check_libraries(root: Path) -> None:
    """Every library that the archive was verified with must be here, in that version or a later one."""
    from packaging.version import Version

    path = root / METADATA_FILE
    if not path.exists():
        return  # laid out by torch-model-archiver alone, which records none
    try:
        wanted: dict[str, str] = msgspec.json.decode(path.read_bytes())["libraries"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as err:
        raise LoadError(f"{METADATA_FILE} is damaged ({err}); rebuild the archive") from err
    faults = []
    for library, verified in sorted(wanted.items()):
        try:
            found = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{library} is not installed")
            continue
        if Version(found) < Version(verified):
            faults.append(f"{library} is {found}")
    if faults:
        needed = " ".join(f"'{library}>={verified}'" for library, verified in sorted(wanted.items()))
        raise LoadError(f"the archive was verified with other libraries: {'; '.join(faults)}; pip install {needed}")
