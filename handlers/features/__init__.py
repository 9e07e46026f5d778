"""One definition of a model's features, used by training, serving, batch jobs and drift reports alike."""

from handlers.features.encode import EncodedColumn, Features
from handlers.features.entity import Entity
from handlers.features.fit import fit
from handlers.features.specification import (
    Feature,
    FeaturesInvalid,
    Specification,
    read_features,
    specification_of,
    write_features,
)
from handlers.features.tables import arrow_schema, resolve_table
from handlers.features.values import Resolved

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
