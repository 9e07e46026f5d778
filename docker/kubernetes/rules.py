"""Writes components/monitoring/prometheusrule.yaml, the rules of docker/prometheus for Prometheus's operator.

python docker/kubernetes/rules.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCES = HERE.parent / "prometheus" / "rules"
TARGET = HERE / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Written by docker/kubernetes/rules.py from docker/prometheus/rules: change them there, and run it again.\n"


def resource() -> dict[str, Any]:
    """The PrometheusRule with the groups of all files, in their order."""
    groups = [group for path in sorted(SOURCES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "marctl", "namespace": "marctl"},
        "spec": {"groups": groups},
    }


def text() -> str:
    return HEAD + yaml.safe_dump(resource(), sort_keys=False, width=120)


if __name__ == "__main__":
    TARGET.write_text(text())
