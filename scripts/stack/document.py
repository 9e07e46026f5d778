"""The declared state: one document that says what a stack serves. The reconciler makes it so.

    models:
      mcqa:
        default: "2.0"
        versions:
          "1.0": {archive: "sha256:9f86...", file: mcqa-1.0.mar, workers: 1}
          "2.0": {archive: "sha256:60303...", file: mcqa-2.0.mar, workers: 2, explainers: 1}
          "3.0": {archive: "sha256:b5bb9...", file: mcqa-3.0.mar, workers: shared}
        traffic:
          split: {"1.0": 80, "2.0": 20}
          fallback: ["1.0"]
    shared: {workers: 1, memory_mb: 2048}

`marctl state show` prints it with its revision on top; a file that names a revision is applied onto that one only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from marctl.core.errors import UserError
from marctl.core.faults import listed, schema_faults
from marctl.core.names import ARCHIVE_FILE, name_faults
from marctl.core.order import version_order
from marctl.core.yaml_text import YamlInvalid, read_yaml
from marctl.gateway.policies import Traffic, default_traffic, key_faults, meaning_faults, place, whole

MOST_WORKERS = 1024
Count = Annotated[int, Meta(ge=0, le=MOST_WORKERS)]
SHARED: Literal["shared"] = "shared"
"""In the place of a version's number of workers: it has none of its own, but a place in one that holds many."""


class DocumentInvalid(UserError):
    """A document has faults; the text lists all of them."""


class Version(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One version that is served."""

    archive: Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
    """What the file must contain: another content of the same name is not loaded."""
    file: Annotated[str, Meta(pattern=f"^{ARCHIVE_FILE.pattern}$", max_length=255)]
    """Its name in the store."""
    workers: Count | Literal["shared"]
    """0 parks a version: registered, without a process. `shared`: in a process with others."""
    explainers: Count | None = None
    """Workers that explain; left out where the archive cannot. Those of shared versions are shared, too."""

    @property
    def shared(self) -> bool:
        return self.workers == SHARED


class Model(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One model. Without `traffic`, all requests go to the default version."""

    default: str
    versions: Annotated[dict[str, Version], Meta(min_length=1)]
    traffic: Traffic | None = None

    @property
    def policy(self) -> Traffic:
        """The traffic policy in force."""
        return self.traffic or default_traffic(self.default)


class Pool(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The workers that shared versions are in; versions with other handler code have others of the same kind."""

    workers: Annotated[int, Meta(ge=1, le=MOST_WORKERS)] = 1
    """Processes. Each loads what it is asked for."""
    memory_mb: Annotated[int, Meta(ge=16)] = 2048
    """For the versions that one process holds; the one not asked for longest leaves."""
    batch_size: Annotated[int, Meta(ge=1)] = 64
    max_delay_ms: Annotated[int, Meta(ge=1)] = 1
    queue_size: Annotated[int, Meta(ge=1)] = 1000
    response_timeout_s: Annotated[int, Meta(ge=1)] = 60
    cold_wait_ms: Annotated[float, Meta(ge=0)] = 20.0
    load_seconds: Annotated[float, Meta(gt=0)] = 30.0
    turn_ms: Annotated[float, Meta(gt=0)] = 20.0
    batch_ms: Annotated[float, Meta(gt=0)] = 500.0
    """The last four are explained in handlers/shared/settings.py."""

    def runs_like(self, other: Pool | None) -> bool:
        """Whether a process of the one is a process of the other."""
        return other is not None and msgspec.structs.replace(self, workers=other.workers) == other


class Document(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole. Structs are frozen, their dicts are replaced and never changed."""

    models: dict[str, Model] = {}
    shared: Pool = Pool()

    def versions(self) -> Iterator[tuple[str, str, Version]]:
        """All versions, by model and in their order."""
        for name in sorted(self.models):
            versions = self.models[name].versions
            for version in sorted(versions, key=version_order):
                yield name, version, versions[version]

    def find(self, model: str, version: str) -> Version | None:
        found = self.models.get(model)
        return found.versions.get(version) if found else None

    def with_model(self, name: str, model: Model | None) -> Document:
        """The document with one model replaced, or taken out for None."""
        models = {key: value for key, value in self.models.items() if key != name}
        return msgspec.structs.replace(self, models=models | ({name: model} if model else {}))

    def with_version(self, model: str, version: str, content: Version | None) -> Document:
        """With one version replaced or added, or taken out for None; a model goes with its last version."""
        before = self.models[model]
        versions = {key: value for key, value in before.versions.items() if key != version}
        versions |= {version: content} if content else {}
        return self.with_model(model, msgspec.structs.replace(before, versions=versions) if versions else None)


class Declared(Struct, frozen=True, forbid_unknown_fields=True):
    """The form in which people read and write it."""

    revision: Annotated[int, Meta(ge=0)] | None = None
    models: dict[str, Model] = {}
    shared: Pool = Pool()

    @classmethod
    def of(cls, document: Document, revision: int | None = None) -> Declared:
        return cls(revision, document.models, document.shared)

    @property
    def document(self) -> Document:
        return Document(self.models, self.shared)


def faults(document: Document) -> list[str]:
    """Everything that is wrong with a document, each with its place and cure."""
    return schema_faults(schema(), msgspec.to_builtins(Declared.of(document))) or meaning(document)


def refuse_faults(document: Document, origin: object) -> None:
    """Raise DocumentInvalid if it has any."""
    if found := faults(document):
        raise DocumentInvalid(listed(origin, found))


def meaning(document: Document) -> list[str]:
    """What the schema can't see."""
    served = {name: list(model.versions) for name, model in document.models.items()}
    found: list[str] = []
    for name, model in document.models.items():
        found += [fault for version in model.versions for fault in name_faults(name, version)]
        found += default_faults(name, model)
        if model.traffic is not None:
            found += meaning_faults(name, model.traffic, served)
        found += parked_faults(name, model)
    return [*dict.fromkeys(found)]


def default_faults(name: str, model: Model) -> list[str]:
    if model.default not in model.versions:
        there = ", ".join(sorted(model.versions, key=version_order))
        return [f"{name}.default: {model.default} is no version of it; there are: {there}"]
    if model.versions[model.default].workers == 0:
        return [
            f"{name} {model.default} is the default version of {name} and must keep a worker; "
            f"first make another one the default: marctl default {name} VERSION"
        ]
    return []


def parked_faults(name: str, model: Model) -> list[str]:
    """Versions that are to answer and have nobody to do it."""
    parked = [version for version, content in model.versions.items() if content.workers == 0]
    return [
        f"{name} {version} has {place(model.traffic, version)} and must keep a worker; "
        f"first move it: marctl route split {name} VERSION=WEIGHT..."
        for version in parked
        if model.traffic is not None and version in model.traffic.versions
    ]


def schema() -> dict[str, Any]:
    """JSON Schema of the document as people write it."""
    return msgspec.json.schema(Declared)


def parse(text: str, origin: object) -> Declared:
    """A document from YAML; raises DocumentInvalid listing every fault."""
    try:
        content = read_yaml(text)
    except YamlInvalid as err:
        raise DocumentInvalid(f"{origin}: {err}") from err
    found = key_faults(content) or schema_faults(schema(), content)
    declared = Declared() if found else msgspec.convert(content, Declared)
    found += meaning(declared.document)
    if found:
        raise DocumentInvalid(listed(origin, found))
    return declared


def dump(document: Document, revision: int | None = None) -> str:
    """The YAML form, which `parse` reads."""
    content = whole(msgspec.to_builtins(Declared.of(document, revision)))
    if revision is None:
        del content["revision"]
    if not content["shared"]:
        del content["shared"]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
