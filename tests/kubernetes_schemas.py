"""Every fault of a Kubernetes manifest, by the published schemas: the API's own, and those of custom resources.

kubernetes-validate brings the first and tells one fault at a time; so its schemas are asked here. The others are those
of Prometheus's operator and KEDA, as the cloudcoil-models packages bring them.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from jsonschema import Draft202012Validator
from kubernetes_validate import latest_version
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

OLDEST, LATEST = "1.31.0", latest_version()
"""Of Kubernetes: the first with all that the manifests use, and the last that is known."""
CUSTOM = {
    "ServiceMonitor": prometheus.ServiceMonitor,
    "PrometheusRule": prometheus.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
}


def faults(manifest: dict[str, Any], version: str) -> list[str]:
    """Each with its place. A field that no schema knows is a fault, too."""
    kind = manifest["kind"]
    validator = custom(kind) if kind in CUSTOM else standard(kind, manifest["apiVersion"], version)
    found = [f"{kind}: {error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
    if kind in CUSTOM and manifest["apiVersion"] != CUSTOM[kind].gvk().api_version:
        found.append(f"{kind}: $.apiVersion: {manifest['apiVersion']}")
    return sorted(found)


@cache
def standard(kind: str, api_version: str, version: str) -> Draft202012Validator:
    """Strict: without further fields."""
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    definitions = schema_contents(f"{folder}/_definitions.json", version)
    registry: Registry[Any] = Registry().with_resource("_definitions.json", Resource.from_contents(definitions))
    return Draft202012Validator(schema, registry=registry)


@cache
def custom(kind: str) -> Draft202012Validator:
    schema = CUSTOM[kind].model_json_schema(by_alias=True)
    return Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """The schema with no further fields wherever it names some."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in closed and isinstance(closed["properties"], dict):
        closed.setdefault("additionalProperties", False)
    return closed
