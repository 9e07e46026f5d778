"""One definition of a model's features, used by training, serving, batch jobs and drift reports alike."""

from marctl_handlers.features.encode import EncodedColumn, Features
from marctl_handlers.features.entity import Entity
from marctl_handlers.features.fit import fit
from marctl_handlers.features.specification import (
    Feature,
    FeaturesInvalid,
    Specification,
    read_features,
    specification_of,
    write_features,
)
from marctl_handlers.features.tables import arrow_schema, resolve_table
from marctl_handlers.features.values import Resolved

__all__ = [
    "EncodedColumn",
    "Entity",
    "Feature",
    "Features",
    "FeaturesInvalid",
    "Resolved",
    "Specification",
    "arrow_schema",
    "fit",
    "read_features",
    "resolve_table",
    "specification_of",
    "write_features",
]
