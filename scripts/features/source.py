"""The feature specification of a version, from its archive, and the entity that is meant."""

from __future__ import annotations

import zipfile
from pathlib import Path

from marctl.build.reader import read_archive, read_text
from marctl.build.specification import SpecificationInvalid
from marctl.core.errors import UserError
from marctl.core.yaml_text import YamlInvalid, read_yaml
from marctl.stack.state import State
from marctl_handlers.core.errors import LoadError
from marctl_handlers.features import FeaturesInvalid, Specification, specification_of
from marctl_handlers.features.entity import Entity
from marctl_handlers.features.specification import FEATURES_FILE

ARCHIVED = f"model/{FEATURES_FILE}"


def of_version(state: State, store: Path, model: str, version: str) -> Specification:
    """From the archive that is declared, else from the one that the store has. Raises UserError."""
    declared = state.history.current().document.find(model, version)
    path = store / (declared.file if declared else f"{model}-{version}.mar")
    archive = read_archive(path)
    if ARCHIVED not in archive.files:
        raise SpecificationInvalid(f"{path} has no feature specification ({ARCHIVED})")
    with zipfile.ZipFile(path) as file:
        content = read_text(file, ARCHIVED)
    try:
        return specification_of(read_yaml(content))
    except (FeaturesInvalid, YamlInvalid, LoadError) as err:
        raise SpecificationInvalid(f"{path}: {ARCHIVED}: {err}") from err


def entity_of(specification: Specification, name: str | None, columns: list[str] | None = None) -> Entity:
    """The entity of that name; without one, the only one whose ids are among the columns. Raises UserError."""
    known = specification.entities
    if not known:
        raise SpecificationInvalid("no feature of this specification has an `entity`, so none stands in a store")
    if name is not None:
        if name not in known:
            raise UserError(f"no such entity: {name}; there is {', '.join(known)}")
        return known[name]
    found = [entity for entity in known.values() if columns is None or entity.name in columns]
    if len(found) != 1:
        many = "more than one of the entities" if found else "none of the entities"
        raise UserError(f"the file has a column for {many} {', '.join(known)}; name one with --entity")
    return found[0]
