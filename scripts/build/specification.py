"""A feature specification that a person wrote."""

from __future__ import annotations

from pathlib import Path

from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.core.yaml_text import YamlInvalid, read_yaml
from marctl_handlers.features import FeaturesInvalid, Specification, specification_of


class SpecificationInvalid(UserError):
    """It cannot be read, or does not say what is needed."""


def read_specification(path: Path) -> Specification:
    """YAML or JSON; what is learned in training may be open. Raises SpecificationInvalid."""
    try:
        return specification_of(read_yaml(path.read_bytes()))
    except OSError as err:
        raise SpecificationInvalid(f"{path}: {err.strerror or err}") from err
    except YamlInvalid as err:
        raise SpecificationInvalid(f"{path}: {err}") from err
    except FeaturesInvalid as err:
        raise SpecificationInvalid(listed(path, err.faults)) from err
