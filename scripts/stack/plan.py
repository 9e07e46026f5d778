"""What a start serves: the recipes' archives, and what operators chose on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.build.reader import Archive, read_archive
from scripts.core.errors import UserError
from scripts.core.explainers import explainer_of
from scripts.core.order import version_order
from scripts.stack.state import Choices
from scripts.stack.versions import Notify


@dataclass(frozen=True)
class Plan:
    """Archives in order of model and version, and what is to be done with them."""

    archives: list[Archive]
    workers: dict[str, int] = field(default_factory=dict)
    """`model/version` to worker count, where it is not the archive's own."""
    defaults: dict[str, str] = field(default_factory=dict)

    explainer_workers: dict[str, int] = field(default_factory=dict)
    """The same for workers that explain; they are never part of a start's own count."""

    def workers_of(self, archive: Archive) -> int | None:
        return self.workers.get(key(archive))

    def explainer_workers_of(self, archive: Archive) -> int | None:
        return self.explainer_workers.get(f"{explainer_of(archive.name)}/{archive.version}")

    @property
    def explaining(self) -> list[Archive]:
        return [archive for archive in self.archives if archive.explains]


def key(archive: Archive) -> str:
    """How choices.json names a version."""
    return f"{archive.name}/{archive.version}"


def find_archives(recipes: Path, store: Path, notify: Notify) -> list[Path]:
    """Build what the recipes describe; without recipes, whatever lies in the store."""
    if any(recipes.glob("*/*/model.yaml")):
        from scripts.build.build import build_all

        return build_all(recipes, store, notify)
    return sorted(store.glob("*.mar"))


def make_plan(paths: Sequence[Path], store: Path, choices: Choices, workers: int | None, notify: Notify) -> Plan:
    """`workers` is for every version and for this start only. What can no longer be respected is said and left out."""
    chosen: dict[str, Archive] = {}
    for path in [*paths, *extras(paths, store, choices, notify)]:
        archive = read_archive(path)
        if key(archive) in chosen:
            notify(f"warning: {path} is left out, {chosen[key(archive)].path.name} holds the same model and version")
        elif key(archive) not in choices.left_out:
            chosen[key(archive)] = archive
    if not chosen:
        raise UserError(f"nothing to serve: no archive in {store} and no recipe to build one from")
    archives = sorted(chosen.values(), key=lambda archive: (archive.name, version_order(archive.version)))
    counts = choices.workers if workers is None else dict.fromkeys(chosen, workers)
    return Plan(archives, counts, defaults(archives, choices, notify), choices.workers)


def extras(paths: Sequence[Path], store: Path, choices: Choices, notify: Notify) -> list[Path]:
    """Archives that were registered by hand and are still there."""
    known = {path.name for path in paths}
    found = [store / name for name in choices.extra if name not in known]
    for path in found:
        if not path.exists():
            notify(f"warning: {path} was registered by hand and is gone; it is left out")
    return [path for path in found if path.exists()]


def defaults(archives: Sequence[Archive], choices: Choices, notify: Notify) -> dict[str, str]:
    """Each model's default: the chosen version, else the highest."""
    found = {archive.name: archive.version for archive in archives}
    for model, version in choices.defaults.items():
        if any((archive.name, archive.version) == (model, version) for archive in archives):
            found[model] = version
        elif model in found:
            notify(f"warning: {model} {version} was the chosen default and is not served; it is {found[model]} now")
    return found
