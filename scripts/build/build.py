"""Build an archive: lay out, pack, verify, and only then put it into the store.

Same sources and libraries, same bytes: files in order of name, no clock, no compression (whose output differs between
zlib builds; weights hardly shrink anyway).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import psutil
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import SafetensorError

import marctl_handlers
from marctl.build.reader import EXPLAIN_CONFIG, MANIFEST, Archive, read_archive
from marctl.build.recipe import Explanations, Version, Weights, archive_name, read_versions
from marctl.build.sources import locate
from marctl.build.verify import verify
from marctl.core.archive_code import CODE_PREFIXES, PACKAGE
from marctl.core.children import Children
from marctl.core.errors import UserError
from marctl.core.files import sync
from marctl.signing.envelope import read_envelope, sign
from marctl_handlers.archive import METADATA_FILE, MODEL_FOLDER, TASK_FILE
from marctl_handlers.core.composite import MEMBERS_FOLDER
from marctl_handlers.core.messages import Binary
from marctl_handlers.core.samples import SAMPLES_FILE
from marctl_handlers.core.task import Task
from marctl_handlers.tasks import OWN_TASK

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip file can hold; archives must not tell when they were built."""
TEMP = tempfile.gettempdir()
CREATED_ON = "01/01/1980 00:00:00"
LIBRARIES = ("msgspec", "numpy", "packaging", "prometheus-client", "PyYAML")
"""What every archive needs at run time, besides its task's own libraries."""
HANDLERS = Path(marctl_handlers.__file__).parent
ENTRY_FILE = "entry.py"
CHECK_BYTES = 1 << 30
"""Memory that the check of an archive may take; of the included ones none takes 0.7 GiB."""

Notify = Callable[[str], None]


def build(
    version: Version,
    store: Path,
    *,
    force: bool = False,
    key: Ed25519PrivateKey | None = None,
    notify: Notify = lambda _: None,
) -> tuple[Path, bool]:
    """Build one version into `store`; returns the archive and whether it had to be built. As `Builds.begin`."""
    with Builds(store, key=key, notify=notify) as builds:
        return builds.begin(version, force=force).result()


class Builds:
    """Builds versions into a store: laid out and packed one after the other, verified side by side.

    A version is verified by a process of its own while the next ones are laid out here. Whatever ends the block, be it
    Ctrl-C, ends those processes and removes what is not finished.
    """

    def __init__(self, store: Path, *, key: Ed25519PrivateKey | None = None, notify: Notify = lambda _: None) -> None:
        """`key` signs each archive, and those of its members. It signs nothing but what was built with it: an archive
        that says to be of these sources and lacks its signature is built anew."""
        self._store = store
        self._key = key
        self._notify = notify
        self._children = Children()
        self._pool = ThreadPoolExecutor(side_by_side(), "verify")
        self._begun: dict[Path, Future[tuple[Path, bool]]] = {}
        self._partials: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._children.end()
        self._pool.shutdown(cancel_futures=kind is not None)
        for partial in self._partials:
            partial.unlink(missing_ok=True)

    def begin(self, version: Version, *, force: bool = False) -> Future[tuple[Path, bool]]:
        """The archive, once it is in the store, and whether it had to be built.

        An archive made from the same sources is left as it is. One that fails its verification is never put in the
        store, and the archive that stood there before, if any, stays. Raises UserError for what cannot be laid out.
        """
        target = self._store / version.archive_name
        wait([self._begun[target]] if target in self._begun else [])  # as another one's member
        for member in version.members:
            self.begin(member).result()
        members = members_in(version, self._store)
        sources = source_digest(version, members)
        if not force and is_current(target, sources) and (self._key is None or is_signed(target, self._key)):
            self._begun[target] = Future()
            self._begun[target].set_result((target, False))
            return self._begun[target]
        with told(version, target):
            partial, reference = self._pack(version, sources, members)
        self._notify(f"{version}: verifying")
        self._begun[target] = self._pool.submit(self._finish, version, partial, reference)
        return self._begun[target]

    def _pack(self, version: Version, sources: str, members: Sequence[Archive]) -> tuple[Path, list[dict[str, Any]]]:
        """The archive under a name of its own, and the reference's answers to its samples."""
        partial = self._store / f".{version.archive_name}.{os.getpid()}.partial"
        self._partials.add(partial)
        self._store.mkdir(parents=True, exist_ok=True)
        with work_folder() as work:
            self._notify(f"{version}: laying out")
            reference = lay_out(version, work / "stage", sources, members)
            self._notify(f"{version}: packing")
            pack(run_archiver(version, work / "stage", work), partial)
        return partial, reference

    def _finish(self, version: Version, partial: Path, reference: list[dict[str, Any]]) -> tuple[Path, bool]:
        """Verify it, and only then put it into the store."""
        target = self._store / version.archive_name
        with told(version, target):
            try:
                verified = verify(partial, reference, self._children)
                sync(partial)
                os.replace(partial, target)
                if self._key is not None:
                    sign(target, verified.statement, self._key)
                sync(self._store)
            finally:
                partial.unlink(missing_ok=True)
        return target, True


@contextmanager
def told(version: Version, target: Path) -> Iterator[None]:
    """Faults of the disk and of weights as a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        raise UserError(f"{version}: cannot build {target}: {err}; the temporary files went to {TEMP}") from err


def side_by_side() -> int:
    """How many archives are verified at once: one for each core, and for each GiB of memory that is free."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // CHECK_BYTES))


def build_all(recipes: Path, store: Path, on_progress: Notify = lambda _: None) -> list[Path]:
    """Build every recipe below `recipes` whose archive is missing or out of date; returns all archives.

    One that cannot be built does not stop the others: it is told as a warning, and left out, unless an archive that was
    built of it before is there. Raises UserError if nothing is left.
    """
    versions, faults = read_versions(recipes)
    found: dict[Path, Path] = {}
    with Builds(store, notify=on_progress) as builds:
        begun: dict[Path, Future[tuple[Path, bool]]] = {}
        for folder in sorted(versions):
            with blaming(folder, faults):
                begun[folder] = builds.begin(versions[folder])
        for folder, future in begun.items():
            with blaming(folder, faults):
                found[folder] = future.result()[0]
    for folder, err in sorted(faults.items()):
        former = store / archive_name(folder)
        if still_good(former):
            found[folder] = former
        outcome = "the archive that was built before is served" if folder in found else "it is left out"
        on_progress(f"warning: {title_of(folder)} cannot be built, {outcome}: {err}")
    if faults and not found:
        raise UserError("\n".join(str(faults[folder]) for folder in sorted(faults)))
    return [found[folder] for folder in sorted(found)]


@contextmanager
def blaming(folder: Path, faults: dict[Path, UserError]) -> Iterator[None]:
    """A failure of the block becomes the fault of the recipe in `folder`.

    What a user's model or task raises while it is laid out is anybody's guess.
    """
    try:
        yield
    except UserError as err:
        faults[folder] = err
    except Exception as err:
        faults[folder] = UserError(f"{title_of(folder)}: {type(err).__name__}: {err}")


def title_of(folder: Path) -> str:
    return f"{folder.parent.name} {folder.name}"


def still_good(target: Path) -> bool:
    """Whether an archive is there and answers its samples, with the libraries that are installed now."""
    try:
        return target.exists() and bool(verify(target))
    except UserError:
        return False


def members_in(version: Version, store: Path) -> list[Archive]:
    """The archives of a version's members. Raises UserError for one that is not there."""
    return [read_archive(store / member.archive_name) for member in version.members]


def is_current(target: Path, sources: str) -> bool:
    """Whether the archive is there, whole, and made from these sources."""
    try:
        return target.exists() and read_archive(target).metadata.get("sources") == sources
    except UserError:
        return False


def is_signed(target: Path, key: Ed25519PrivateKey) -> bool:
    """Whether this key has signed the archive as it is."""
    try:
        envelope = read_envelope(target)
        return (
            envelope is not None
            and envelope.is_signed_by(key.public_key())
            and envelope.statement == read_archive(target).statement
        )
    except UserError:
        return False


def source_digest(version: Version, members: Sequence[Archive]) -> str:
    """SHA-256 over all that an archive is made from: recipe, weights, handlers, library versions; no path, no date."""
    weights = version.recipe.weights
    recipe = msgspec.to_builtins(version.recipe) | {"settings": version.task_settings}
    recipe.pop("training")
    recipe["weights"] = msgspec.to_builtins(weights) | {"directory": None}
    parts: dict[str, Any] = {
        "name": str(version),
        "recipe": recipe,
        "requests": version.requests,
        "metadata": version.metadata,
        "libraries": library_versions(version),
    }
    parts |= {f"{PACKAGE}/{path}": digest(HANDLERS / path) for path in handler_files()}
    if version.task_file:
        parts["task"] = digest(version.task_file)
    parts |= {f"members/{member.name}/{member.version}": member.sha256 for member in members}
    if version.members:
        parts |= {path.name: digest(path) for path in own_files(version)}
    if weights.delta and (version.folder / weights.delta).exists():
        parts["delta"] = digest(version.folder / weights.delta)
    if version.recipe.ranges:
        parts["ranges"] = digest(version.folder / version.recipe.ranges)
    if weights.directory:
        folder = (version.folder / weights.directory).resolve()
        parts |= {f"weights/{p.relative_to(folder)}": digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_versions(version: Version) -> dict[str, str]:
    """Installed versions, without local parts such as torch's `+cpu`: they name a build, not another interface."""
    names = {*LIBRARIES, *version.task.libraries, *version.recipe.libraries}
    names |= set(version.task.explain_libraries) if version.recipe.explanations else set()
    return {name: importlib.metadata.version(name).split("+")[0] for name in sorted(names)}


def handler_files() -> list[Path]:
    """Every source file of the package, relative to it."""
    return sorted(path.relative_to(HANDLERS) for path in HANDLERS.rglob("*.py"))


def lay_out(version: Version, stage: Path, sources: str, members: Sequence[Archive]) -> list[dict[str, Any]]:
    """Write everything that goes into the archive below `stage`; returns the reference's answers to the samples."""
    lay_out_model(version, stage / MODEL_FOLDER)
    for member in members:
        lay_out_member(member, stage / MEMBERS_FOLDER / member.name / member.version)
    for path in handler_files():
        (stage / PACKAGE / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HANDLERS / path, stage / PACKAGE / path)
    if version.task_file:
        shutil.copyfile(version.task_file, stage / TASK_FILE)
    recipe, requests = version.recipe, version.requests
    if recipe.explanations:
        (stage / EXPLAIN_CONFIG).write_text(yaml.safe_dump(explain_config(version, recipe.explanations)))
    samples = zip(requests, recipe.samples, strict=True)
    write_json(stage / SAMPLES_FILE, [{"request": request, "expected": s.expected} for request, s in samples])
    write_json(stage / METADATA_FILE, metadata(version, sources, stage, members))
    return version.task.reference(stage / MODEL_FOLDER, requests, version.settings)


def lay_out_model(version: Version, folder: Path) -> None:
    """The model as its task loads it: saved anew by transformers, or a copy of the recipe's folder."""
    folder.mkdir(parents=True)
    for path in own_files(version) if version.members else ():
        shutil.copyfile(path, folder / path.name)
    if version.task.hub_class is None:
        if version.recipe.weights != Weights():
            shutil.copytree(locate(version), folder, dirs_exist_ok=True)
        return
    from marctl.build.weights import load_weights, quiet_transformers
    from marctl_handlers.text.ranges import RANGES_FILE
    from marctl_handlers.text.saved_tokenizer import record

    model, tokenizer = load_weights(version)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record(folder, tokenizer)
    copy_files(Path(locate(version)), folder, version.task.files)
    if version.recipe.ranges:
        shutil.copyfile(version.folder / version.recipe.ranges, folder / RANGES_FILE)
    forget_origin(folder)


def own_files(version: Version) -> list[Path]:
    """Small files beside the recipe of a version with members, which its task loads."""
    return [path for pattern in version.task.files for path in sorted(version.folder.glob(pattern))]


def lay_out_member(member: Archive, folder: Path) -> None:
    """All of a member's archive but its code: the version that it is part of has that once for all."""
    with zipfile.ZipFile(member.path) as archive:
        for name in archive.namelist():
            if not name.startswith((*CODE_PREFIXES, "MAR-INF/")) and name != ENTRY_FILE:
                archive.extract(name, folder)


def member_record(member: Archive) -> dict[str, Any]:
    return {
        "version": f"{member.name}/{member.version}",
        "sha256": member.sha256,
        "task": member.metadata["task"],
        "licence": member.metadata.get("licence"),
    }


def copy_files(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """Files that match, as they are; of a hub's model, which is no folder here, none."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def forget_origin(model_folder: Path) -> None:
    """Drop the path that the files came from: two checkouts must give the same bytes."""
    for name in ("config.json", "tokenizer_config.json"):
        path = model_folder / name
        if path.exists():
            content = json.loads(path.read_text())
            write_json(
                path,
                {k: v for k, v in content.items() if k not in {"_name_or_path", "name_or_path", "local_files_only"}},
            )


def metadata(version: Version, sources: str, stage: Path, members: Sequence[Archive]) -> dict[str, Any]:
    """What a registry, an operator and the handler's own load need to know of the version."""
    recipe = version.recipe
    return {
        "model": version.model,
        "version": version.version,
        "task": OWN_TASK if version.task_file else recipe.task,
        "description": recipe.description,
        "settings": version.task_settings,
        **version.gpu_settings,
        "licence": recipe.licence,
        "data": msgspec.to_builtins(recipe.data),
        "libraries": library_versions(version),
        **declared(version.task),
        "sample_tolerance": recipe.sample_tolerance,
        "sources": sources,
        **({"members": [member_record(member) for member in members]} if members else {}),
        "files": {str(p.relative_to(stage)): digest(p) for p in sorted(stage.rglob("*")) if p.is_file()},
        **version.metadata,
    }


def declared(task: type[Task[Any, Any]]) -> dict[str, Any]:
    """What others must know of a task without running its code: its schemas, and what is logged of its answers."""
    label = {int: "int", float: "float"}.get(task.label_type, "str")
    raw = task.question_type is Binary
    found: dict[str, Any] = {
        "input_schema": None if raw else schema_of(*(task.bodies or (task.question_type,))),
        "content_types": list(task.content_types),
        "output_schema": schema_of(*(task.replies or (task.answer_type,))),
        "log_columns": [{"name": column.name, "type": column.type} for column in task.log_columns],
        "label_type": label,
        "tensors": bool(task.inputs),
    }
    if explained := task.explain_types():
        found |= {"explain_input_schema": schema_of(explained[0])}
        found |= {"explain_output_schema": schema_of(explained[1])}
    return found


def schema_of(*types: type) -> dict[str, Any]:
    """JSON Schema of a value of one of these types."""
    schemas, parts = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    return {**(schemas[0] if len(types) == 1 else {"anyOf": list(schemas)}), "$defs": parts}


def server_config(version: Version) -> dict[str, Any]:
    """model-config.yaml: TorchServe's own keys (ModelConfig.java, 0.12.0), and the handler's section."""
    recipe = version.recipe
    workers = 1 if recipe.workers == "shared" else recipe.workers
    return {
        "minWorkers": workers,
        "maxWorkers": workers,
        # For the stack; TorchServe, which does not know it, starts a worker as for any other archive.
        **({"shared": True} if recipe.workers == "shared" else {}),
        "batchSize": recipe.batching.batch_size,
        "maxBatchDelay": recipe.batching.max_delay_ms,
        "jobQueueSize": recipe.batching.queue_size,
        "responseTimeout": recipe.response_timeout_s,
        "startupTimeout": recipe.startup_timeout_s,
        # TorchServe deals the node's GPUs out to workers in turn; where there are none, this means nothing.
        "deviceType": "cpu" if recipe.device == "cpu" or recipe.workers == "shared" else "gpu",
        "handler": version.handler,
    }


def explain_config(version: Version, explanations: Explanations) -> dict[str, Any]:
    """The same for explainer workers."""
    config = server_config(version)
    limits = ("max_steps", "max_samples", "max_words", "tokens_per_pass")
    handler = config["handler"] | {
        "cache": False,
        "log": {"input": "none", "share": 0},
        "nice": explanations.nice,
        "batch_seconds": explanations.response_timeout_s / 2,
        "explanations": {name: getattr(explanations, name) for name in limits},
    }
    return config | {
        "minWorkers": explanations.workers,
        "maxWorkers": max(explanations.workers, 1),
        "batchSize": explanations.batch_size,
        "jobQueueSize": explanations.queue_size,
        "responseTimeout": explanations.response_timeout_s,
        "handler": handler,
    }


def run_archiver(version: Version, stage: Path, work: Path) -> Path:
    """Let torch-model-archiver lay the archive out as a folder; returns that folder.

    It runs as a process of its own, with a temp folder of its own, because it deletes <temp>/<model name> first.
    """
    config = work / "model-config.yaml"
    config.write_text(yaml.safe_dump(server_config(version), sort_keys=True))
    temp, out = work / "temp", work / "out"
    temp.mkdir()
    out.mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", version.model]
    command += ["--version", version.version, "--handler", str(HANDLERS / ENTRY_FILE), "--extra-files", str(stage)]
    command += ["--config-file", str(config), "--archive-format", "no-archive", "--export-path", str(out)]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(temp)}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{version}: torch-model-archiver failed: {last}")
    return out / version.model


def pack(folder: Path, target: Path) -> None:
    """Zip a laid-out archive reproducibly."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            if name == MANIFEST:
                path.write_bytes(json_bytes(json.loads(path.read_text()) | {"createdOn": CREATED_ON}))
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o644 << 16
            # Large files get 64-bit headers by their size: forcing them on all gives other bytes before Python 3.11.4.
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as out:
                shutil.copyfileobj(source, out, 1 << 20)


def write_json(path: Path, content: Any) -> None:
    path.write_bytes(json_bytes(content))


def json_bytes(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


@contextmanager
def work_folder() -> Iterator[Path]:
    """A private temporary folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="marctl-build-") as path:
        yield Path(path)
