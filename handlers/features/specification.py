"""The feature specification: what a model reads, feature by feature, and how each becomes numbers.

A person writes it in YAML or JSON; `fit` fills in what is learned from a training table; the archive holds the result
as `model/features.json`. Learned parameters stand beside those that were given by hand, in the same fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from marctl_handlers.core.errors import LoadError
from marctl_handlers.features.entity import STAMP, Entity, Name

FEATURES_FILE = "features.json"
LARGEST = 3.4e38
"""Numbers beyond this have no float32, which is what models compute in."""
LONGEST_CATEGORY = 1_000
"""Characters."""
MOST_CATEGORIES = 1_000
MOST_FEATURES = 2_000

FeatureType = Literal["number", "integer", "boolean", "category"]
Operation = Literal["ratio", "difference", "sum", "product"]
Category = Annotated[str, Meta(min_length=1, max_length=LONGEST_CATEGORY)]
Positive = Annotated[float, Meta(gt=0)]


class FeaturesInvalid(ValueError):
    """A specification, or a table that should fit one, is wrong; `faults` says everything that is, with its place."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = list(faults)


class Step(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", omit_defaults=True):
    """One step of a feature's transform. A field that is None is learned by `fit`."""


class Clip(Step, frozen=True, tag="clip"):
    """Values beyond `low` and `high` count as these, and are marked as clipped."""

    low: float | None = None
    high: float | None = None
    quantile: Annotated[float, Meta(ge=0, lt=0.5)] = 0.01
    """Where the bounds are learned: this part of the training rows lies beyond each."""


class Log(Step, frozen=True, tag="log"):
    """The natural logarithm of value + `shift`."""

    shift: float = 0.0


class Standardise(Step, frozen=True, tag="standardise"):
    """(value - `mean`) / `scale`, which `fit` takes from the training rows that have the value."""

    mean: float | None = None
    scale: Positive | None = None


class Bucket(Step, frozen=True, tag="bucket"):
    """The number of `edges` that the value reaches: 0 below the first one. Learned edges are quantiles."""

    edges: Annotated[tuple[float, ...], Meta(min_length=1)] | None = None
    count: Annotated[int, Meta(ge=2, le=1_000)] = 5
    """Buckets, where the edges are learned."""


class OneHot(Step, frozen=True, tag="one_hot"):
    """A column for each category, or bucket: 1 where it is the row's, 0 elsewhere."""


class Ordinal(Step, frozen=True, tag="ordinal"):
    """The category's place in `categories`, counted from 0."""


class Hash(Step, frozen=True, tag="hash"):
    """A column for each of `buckets`; a category's is its UTF-8 bytes' CRC-32 modulo their number."""

    buckets: Annotated[int, Meta(ge=2, le=4_096)] = 32


StepKind = type[Step]
Steps = Clip | Log | Standardise | Bucket | OneHot | Ordinal | Hash
CHAINS: dict[str, tuple[type[Step], ...]] = {
    "number": (Clip, Log, Standardise),
    "buckets": (Clip, Bucket, OneHot),
}
"""Steps of numbers, in this order; each may be left out."""


class Derived(Struct, frozen=True, forbid_unknown_fields=True):
    """A feature that is computed from others and never sent."""

    operation: Operation
    of: Annotated[tuple[Name, ...], Meta(min_length=2, max_length=50)]
    """`ratio` and `difference` take two. Missing if one of them is, or if the divisor is 0."""


class Feature(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One feature."""

    name: Name
    type: FeatureType
    description: str = ""
    unit: str = ""
    range: tuple[float | None, float | None] | None = None
    """Lowest and highest possible value; null for no bound."""
    outside: Literal["refuse", "clip"] = "refuse"
    """What becomes of a value outside of the range: an error, or the bound, marked as clipped."""
    categories: Annotated[tuple[Category, ...], Meta(min_length=1, max_length=MOST_CATEGORIES)] | None = None
    """In the order of their codes; learned, in alphabetical order, if left out."""
    unknown: Literal["missing", "refuse"] = "missing"
    """What becomes of a category that is none of these: it counts as missing, or is an error."""
    missing: Literal["refuse", "default", "mean", "median", "most_frequent", "keep"] | None = None
    """What stands in for a missing value: an error, the default, what training saw, or NaN for models that know it.
    If left out: the default where there is one, else an error."""
    default: float | bool | Category | None = None
    fill: float | bool | Category | None = None
    """Learned: what stands in for a missing value by `mean`, `median` or `most_frequent`."""
    transform: tuple[Steps, ...] = ()
    """Categories need one of one_hot, ordinal and hash. Numbers: clip, log, standardise; or clip, bucket, one_hot."""
    derived: Derived | None = None
    monotone: Literal["increasing", "decreasing"] | None = None
    """How the prediction may follow this feature; training enforces it where the model can."""
    protected: bool = False
    """Reports give figures by group of this feature, and explanations mark it."""
    freshness_s: Positive | None = None
    """A stored value that is older counts as missing, and one whose age is not known."""
    entity: Entity | None = None
    """Given: the feature may stand in a store, and a request may name the entity instead of bringing it."""

    @property
    def missing_rule(self) -> str:
        return self.missing or ("refuse" if self.default is None else "default")

    @property
    def stand_in(self) -> float | bool | str | None:
        """For a missing value; None where there is none."""
        return self.default if self.missing_rule == "default" else self.fill

    @property
    def is_category(self) -> bool:
        return self.type == "category"

    def step(self, kind: StepKind) -> Any:
        """The step of this kind, or None."""
        return next((step for step in self.transform if isinstance(step, kind)), None)


class Specification(Struct, frozen=True, forbid_unknown_fields=True):
    """All features of a model, in the order of its input's columns."""

    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=MOST_FEATURES)]

    def __getitem__(self, name: str) -> Feature:
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, Feature]:
        return {feature.name: feature for feature in self.features}

    @property
    def sent(self) -> list[Feature]:
        """Those that a request may bring."""
        return [feature for feature in self.features if feature.derived is None]

    @property
    def entities(self) -> dict[str, Entity]:
        """Whose features may stand in a store, by name."""
        return {feature.entity.name: feature.entity for feature in self.features if feature.entity is not None}

    def stored(self, entity: str) -> list[Feature]:
        """The features that may stand in a store under an entity."""
        return [feature for feature in self.features if feature.entity is not None and feature.entity.name == entity]


def specification_of(content: Any) -> Specification:
    """From decoded YAML or JSON; a step may be its bare name. Raises FeaturesInvalid listing every fault."""
    if isinstance(content, list | tuple):
        content = {"features": content}
    if not isinstance(content, Mapping) or not isinstance(content.get("features"), list | tuple):
        raise FeaturesInvalid([f"expected `features:` and a list of features, got {kind_of(content)}"])
    features, faults = [], [f"{name}: no such field; there is `features`" for name in content if name != "features"]
    for i, entry in enumerate(content["features"]):
        try:
            features.append(msgspec.convert(written_out(entry), Feature))
        except (msgspec.ValidationError, RecursionError) as err:
            faults.append(f"{place_of(entry, i)}: {err}")
    faults = faults or [*list_faults(features), *(fault for one in features for fault in feature_faults(one))]
    if faults:
        raise FeaturesInvalid(faults)
    return Specification(tuple(features))


def written_out(entry: Any) -> Any:
    """The same with `log` as `{kind: log}`, and a lone step as a list."""
    if not isinstance(entry, Mapping) or "transform" not in entry:
        return entry
    steps = entry["transform"] if isinstance(entry["transform"], list | tuple) else [entry["transform"]]
    return {**entry, "transform": [{"kind": step} if isinstance(step, str) else step for step in steps]}


def place_of(entry: Any, i: int) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"features[{i}]" + (f" ({name[:100]})" if isinstance(name, str) else "")


def kind_of(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "nothing"}.get(type(value), repr(value)[:50])


def list_faults(features: Sequence[Feature]) -> Iterator[str]:
    """Of the features together: names, and what derived ones are made of."""
    names = [feature.name for feature in features]
    numbers = {feature.name for feature in features if not feature.is_category}
    if not names:
        yield "features: empty; expected at least one"
    yield from (f"{name}: stands more than once" for name in sorted({n for n in names if names.count(n) > 1}))
    for feature in features:
        for name in feature.derived.of if feature.derived else ():
            if name not in numbers:
                yield f"{feature.name}.derived.of: {name!r} is no numeric feature of this specification"
    entities: dict[str, Entity] = {}
    for feature in features:
        if feature.entity is not None and entities.setdefault(feature.entity.name, feature.entity) != feature.entity:
            yield f"{feature.name}.entity: another feature gives {feature.entity.name} another key or type"
    try:
        derived_order(features)
    except CycleError as err:
        yield f"derived features form a cycle: {' <- '.join(err.args[1])}; a feature cannot be made of itself"


def derived_order(features: Sequence[Feature]) -> list[str]:
    """Names such that each stands after those that it is made of. Raises CycleError."""
    return list(TopologicalSorter({f.name: f.derived.of if f.derived else () for f in features}).static_order())


def feature_faults(feature: Feature) -> list[str]:
    """Whatever the types alone cannot refuse in one feature."""
    found = [*number_faults(feature), *range_faults(feature), *missing_faults(feature), *step_faults(feature)]
    found += [*derived_faults(feature), *stored_faults(feature)]
    return [f"{feature.name}.{fault}" for fault in found]


def number_faults(feature: Feature) -> Iterator[str]:
    """YAML has .nan and .inf."""
    numbers = [*(feature.range or ()), feature.default, feature.fill]
    numbers += [value for step in feature.transform for value in msgspec.structs.astuple(step)]
    edges = [edge for step in feature.transform if isinstance(step, Bucket) for edge in step.edges or ()]
    for number in (*numbers, *edges):
        if isinstance(number, float) and not abs(number) <= LARGEST:
            yield f"{number}: expected a number between {-LARGEST} and {LARGEST}"


def range_faults(feature: Feature) -> Iterator[str]:
    if feature.type in ("category", "boolean"):
        if feature.range is not None:
            yield f"range: belongs to numbers, not to a {feature.type}"
        if feature.monotone and feature.is_category:
            yield "monotone: categories have no order that a prediction could follow"
    elif feature.range is not None:
        low, high = bounds_of(feature)
        if low > high:
            yield f"range: {low} is above {high}"
    if feature.outside == "clip" and feature.range is None:
        yield "outside: clip needs a range"
    if feature.derived is not None and feature.range is not None and feature.outside == "refuse":
        yield "range: nobody sent a derived value, so that it cannot be refused; add `outside: clip`"
    if not feature.is_category:
        yield from (f"{name}: belongs to categories" for name in ("categories",) if feature.categories is not None)
        if feature.unknown != "missing":
            yield "unknown: belongs to categories"
    elif len(set(feature.categories or ())) < len(feature.categories or ()):
        yield "categories: one of them stands more than once"


def bounds_of(feature: Feature) -> tuple[float, float]:
    """The range, as wide as float32 where it has no bound."""
    low, high = feature.range or (None, None)
    return (-LARGEST if low is None else low, LARGEST if high is None else high)


def missing_faults(feature: Feature) -> Iterator[str]:
    rule = feature.missing_rule
    if rule == "default" and feature.default is None:
        yield "missing: default needs a `default`"
    if feature.default is not None and rule != "default":
        yield f"default: would never be used, because missing is {rule}"
    if rule in ("mean", "median") and feature.type in ("category", "boolean"):
        yield f"missing: {rule} belongs to numbers; a {feature.type} has most_frequent"
    if rule == "most_frequent" and feature.step(Hash) is not None:
        yield "missing: most_frequent does not go with hash, which keeps no category's name; give a default"
    # The mean of integers need not be one.
    fillable = msgspec.structs.replace(feature, type="number") if feature.type == "integer" else feature
    for name, kind in (("default", feature), ("fill", fillable)):
        value = getattr(feature, name)
        if value is not None and (fault := value_fault(kind, value)):
            yield f"{name}: {fault}"
        elif value is not None and feature.categories is not None and value not in feature.categories:
            yield f"{name}: {told(value)} is none of the categories"


def value_fault(feature: Feature, value: Any) -> str | None:
    """Why a value cannot be this feature's; None if it can. Unknown categories are looked at elsewhere."""
    if feature.is_category:
        if not isinstance(value, str):
            return f"expected text, got {told(value)}"
        if len(value) > LONGEST_CATEGORY:
            return f"expected at most {LONGEST_CATEGORY:,} characters, got {len(value):,}"
        if feature.categories is not None and value not in feature.categories and feature.unknown == "refuse":
            return f"expected one of {some(feature.categories)}, got {told(value)}"
        return None
    if feature.type == "boolean":
        return None if isinstance(value, bool) else f"expected true or false, got {told(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected {'an integer' if feature.type == 'integer' else 'a number'}, got {told(value)}"
    return number_fault(feature, value)


def number_fault(feature: Feature, value: float) -> str | None:
    if not abs(value) <= LARGEST:
        return f"expected a finite number, at most {LARGEST:g}, got {told(value)}"
    if feature.type == "integer" and value != int(value):
        return f"expected an integer, got {told(value)}"
    low, high = bounds_of(feature)
    if feature.outside == "refuse" and not low <= value <= high:
        unit = f" {feature.unit}" if feature.unit else ""
        if low == -LARGEST or high == LARGEST:
            bound = f"at most {high:g}" if low == -LARGEST else f"at least {low:g}"
        else:
            bound = f"{low:g} to {high:g}"
        return f"expected {bound}{unit}, got {told(value)}"
    return None


def told(value: Any) -> str:
    """A client's value in an error, as JSON and short."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "a number too large"
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number too large"
    if isinstance(value, dict | list):
        return kind_of(value)
    # Lone surrogates have no UTF-8.
    short = value[:41].encode("utf-8", "replace").decode() if isinstance(value, str) else value
    text = msgspec.json.encode(short).decode()
    return text if len(text) <= 40 else f"{text[:37]}..."


def some(values: Sequence[str]) -> str:
    """The first few of a list."""
    shown = ", ".join(map(told, values[:8]))
    return shown if len(values) <= 8 else f"{shown} and {len(values) - 8} more"


def step_faults(feature: Feature) -> Iterator[str]:
    kinds = [type(step) for step in feature.transform]
    if feature.is_category:
        if len(kinds) != 1 or kinds[0] not in (OneHot, Ordinal, Hash):
            yield "transform: a category needs exactly one of one_hot, ordinal and hash"
        if Hash in kinds and feature.categories is not None:
            yield "categories: hash takes any category; remove the list, or choose another transform"
        return
    if not any(is_within(kinds, chain) for chain in CHAINS.values()) or (OneHot in kinds and Bucket not in kinds):
        yield "transform: expected clip, log, standardise in this order, or clip, bucket, one_hot; each may be left out"
        return
    log, clip = feature.step(Log), feature.step(Clip)
    low = max(bounds_of(feature)[0], -LARGEST if clip is None or clip.low is None else clip.low)
    if log is not None and low + log.shift <= 0:
        yield f"transform: log needs a range whose lower end plus its shift ({log.shift:g}) is above 0"
    if clip is not None and None not in (clip.low, clip.high) and clip.low > clip.high:
        yield f"transform: clip from {clip.low} to {clip.high}"
    bucket = feature.step(Bucket)
    if bucket is not None and bucket.edges and sorted(set(bucket.edges)) != list(bucket.edges):
        yield "transform: the edges of bucket must rise"


def is_within(kinds: Sequence[type], chain: Sequence[type]) -> bool:
    """Whether the kinds stand in the chain, in its order, each once at most."""
    return [kind for kind in chain if kind in kinds] == list(kinds)


def derived_faults(feature: Feature) -> Iterator[str]:
    if feature.derived is None:
        return
    if feature.type != "number":
        yield f"type: a derived feature is a number, not a {feature.type}"
    if feature.entity is not None or feature.freshness_s is not None:
        yield "entity: a derived feature stands in no store; its parts may"
    if feature.derived.operation in ("ratio", "difference") and len(feature.derived.of) != 2:
        yield f"derived.of: {feature.derived.operation} takes two features, got {len(feature.derived.of)}"


def stored_faults(feature: Feature) -> Iterator[str]:
    if feature.entity is not None:
        yield from feature.entity.faults()
        if feature.name.startswith(STAMP):
            yield f"name: {STAMP} begins the fields of a store that say how old a value is"
    elif feature.freshness_s is not None:
        yield "freshness_s: belongs to stored features, which have an `entity`"


def unfitted(specification: Specification) -> list[str]:
    """Parameters that only a fit can give, such as `income.transform: standardise has no mean`."""
    found = []
    for feature in specification.features:
        hashed = feature.step(Hash) is not None
        if feature.is_category and feature.categories is None and not hashed:
            found.append(f"{feature.name}.categories: not given")
        if feature.missing_rule in ("mean", "median", "most_frequent") and feature.fill is None:
            found.append(f"{feature.name}.fill: not given, because missing is {feature.missing_rule}")
        wanted = {Clip: ("low", "high"), Standardise: ("mean", "scale"), Bucket: ("edges",)}
        for step in feature.transform:
            names = [name for name in wanted.get(type(step), ()) if getattr(step, name) is None]
            found += [f"{feature.name}.transform: {step.__struct_config__.tag} has no {name}" for name in names]
    return found


def read_features(folder: Path) -> Specification:
    """From an archive's `model/` folder. Raises LoadError."""
    path = folder / FEATURES_FILE
    try:
        return specification_of(msgspec.json.decode(path.read_bytes()))
    except FileNotFoundError as err:
        raise LoadError(f"{FEATURES_FILE} is missing; expected the model's feature specification") from err
    except FeaturesInvalid as err:
        raise LoadError(f"{FEATURES_FILE}: {err}; rebuild the archive with `marctl build`") from err
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise LoadError(f"{FEATURES_FILE} is damaged ({err}); rebuild the archive with `marctl build`") from err


def write_features(specification: Specification, folder: Path) -> None:
    """As an archive holds it; the same bytes for the same content."""
    (folder / FEATURES_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(specification), indent=1) + b"\n")
