"""What a start declares: the versions that recipes describe or the store holds, on top of what is declared already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from marctl.build.reader import Archive, read_archive
from marctl.core.errors import UserError
from marctl.core.order import version_order
from marctl.signing.trust import Trust
from marctl.stack.document import SHARED, Document, Model, Version, refuse_faults
from marctl.stack.history import Revision
from marctl.stack.metrics.gpus import names_of_gpus
from marctl.stack.store import digest_of
from marctl.stack.versions import Notify
from marctl_handlers.core.devices import fault_of

TAKE_BACK = "take back"
"""The command of a revision by which the reconciler undoes one that failed."""


class NothingToServe(UserError):
    """No archive and no recipe."""


def find_archives(recipes: Path, store: Path, notify: Notify) -> list[Path]:
    """Build what the recipes describe; without recipes, whatever lies in the store."""
    if any(recipes.glob("*/*/model.yaml")):
        from marctl.build.build import build_all

        return build_all(recipes, store, notify)
    return sorted(store.glob("*.mar"))


def drafted(document: Document, store: Path, notify: Notify) -> Document:
    """The document with the archives of a store. Raises DocumentInvalid, and NothingToServe if there is none."""
    paths = sorted(store.glob("*.mar"))
    if not paths:
        raise NothingToServe(f"no archive in {store}; build some: marctl build")
    return declare(document, paths, set(), notify)


def trusted_archives(store: Path, trust: Trust, notify: Notify) -> list[Path]:
    """What lies in the store and is vouched for. Nothing is built: what a build makes here, nobody has signed."""
    found = []
    for path in sorted(store.glob("*.mar")):
        try:
            trust.check(path, read_archive(path).statement)
            found.append(path)
        except UserError as err:
            notify(f"warning: left out: {err}")
    return found


def computable(paths: Sequence[Path], notify: Notify) -> list[Path]:
    """Without what needs a GPU on a node that has none: it must not keep the other versions from being served."""
    needy = [path for path in paths if read_archive(path).metadata.get("device") == "cuda"]
    fault = no_gpu() if needy else None
    if fault is None:
        return list(paths)
    for path in needy:
        notify(
            f"warning: {path.name} is left out: its recipe says `device: cuda`, and {fault}; "
            "write `device: auto` for a version that may compute on the processor, too"
        )
    return [path for path in paths if path not in needy]


def no_gpu() -> str | None:
    """Why no version can compute on a GPU here; None if there is one that PyTorch can use."""
    if not names_of_gpus():
        return "nvidia-smi lists no GPU here"
    return fault_of(0)


def declare(document: Document, paths: Sequence[Path], left_out: set[tuple[str, str]], notify: Notify) -> Document:
    """The document with the archives that are not in it, and with the current content of those that are.

    `left_out`: versions that were taken out of it on purpose. A default stays where it is; that of a new model is its
    highest version. Raises DocumentInvalid.
    """
    chosen: dict[tuple[str, str], Archive] = {}
    for path in paths:
        archive = read_archive(path)
        first = chosen.setdefault((archive.name, archive.version), archive)
        if first is not archive:
            notify(f"warning: {path} is left out, {first.path.name} holds the same model and version")
    known = document
    ordered = sorted(chosen.values(), key=lambda archive: (archive.name, version_order(archive.version)))
    for archive in ordered:
        if (archive.name, archive.version) not in left_out:
            document = with_archive(document, archive, known=known, notify=notify)
    refuse_faults(document, "what the archives would declare")
    return document


def with_archive(document: Document, archive: Archive, known: Document, notify: Notify) -> Document:
    """One archive more, or its new content. Models that `known` lacks get their last archive as the default."""
    name, version = archive.name, archive.version
    before = document.find(name, version)
    if before and before.archive == digest_of(archive) and before.file == archive.path.name:
        return document
    if before:
        notify(f"{name} {version}: its archive has another content than before")
        workers = before.workers if before.shared == archive.shared else declared(archive).workers
        kept = msgspec.structs.replace(before, archive=digest_of(archive), file=archive.path.name, workers=workers)
        explainers = (
            archive.explainers if before.explainers is None or archive.explainers is None else before.explainers
        )
        return document.with_version(name, version, msgspec.structs.replace(kept, explainers=explainers))
    model = document.models.get(name)
    default = version if model is None or name not in known.models else model.default
    versions = {**(model.versions if model else {}), version: declared(archive)}
    if default != version:
        notify(f"{name} {version} is new and gets no traffic yet: marctl default {name} {version}")
    changed = Model(default=default, versions=versions, traffic=model.traffic if model else None)
    return document.with_model(name, changed)


def declared(archive: Archive, workers: int | None = None) -> Version:
    """An archive as the document has it, with its own number of workers unless another one is given."""
    own: int | Literal["shared"] = SHARED if archive.shared else archive.workers
    return Version(
        archive=digest_of(archive),
        file=archive.path.name,
        workers=own if workers is None else workers,
        explainers=archive.explainers,
    )


def with_workers(document: Document, workers: int | None) -> Document:
    """So many workers for every version that has any of its own; unchanged for None."""
    for name, version, content in list(document.versions()) if workers is not None else ():
        if content.workers and not content.shared:
            changed = msgspec.structs.replace(content, workers=workers)
            document = document.with_version(name, version, changed)
    return document


def left_out(revisions: Iterable[Revision]) -> set[tuple[str, str]]:
    """Versions that an operator took out of the document and nobody put in again.

    What the reconciler took back because it failed is not among them: it may be in order by now.
    """
    there: set[tuple[str, str]] = set()
    removed: set[tuple[str, str]] = set()
    for revision in revisions:
        now = {(name, version) for name, version, _ in revision.document.versions()}
        if revision.command != TAKE_BACK:
            removed |= there - now
        removed -= now
        there = now
    return removed
