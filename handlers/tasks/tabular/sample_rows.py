"""Requests that a specification allows, for the samples of a version whose owner gives none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marctl_handlers.features import Feature, Specification
from marctl_handlers.features.specification import Bucket, Standardise


def sample_rows(specification: Specification) -> list[Mapping[str, Any]]:
    """A row with every feature, and one without those that may be missing."""
    whole = {feature.name: typical(feature) for feature in specification.sent}
    needed = {f.name: whole[f.name] for f in specification.sent if f.missing_rule == "refuse"}
    return [{"features": whole}, *([{"features": needed}] if needed != whole else [])]


def typical(feature: Feature) -> Any:
    """What fills a gap, else the mean that was learned, else the middle of the range."""
    if feature.stand_in is not None:
        return whole_number(feature, feature.stand_in)
    if feature.is_category:
        return feature.categories[0] if feature.categories else "a"
    if feature.type == "boolean":
        return True
    scaled, bucket = feature.step(Standardise), feature.step(Bucket)
    low, high = feature.range or (None, None)
    value = 1.0 if scaled is None or len(feature.transform) > 1 else scaled.mean
    value = bucket.edges[0] if bucket is not None else value
    if low is not None and high is not None:
        value = (low + high) / 2
    bounded = max(value if low is None else low, value) if high is None else min(high, value)
    return whole_number(feature, bounded)


def whole_number(feature: Feature, value: Any) -> Any:
    return int(value) if feature.type == "integer" else value
