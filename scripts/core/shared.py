"""Names of the workers that hold many versions: TorchServe has them like models, but no model can be called so."""

from __future__ import annotations

from marctl.core.explainers import explainer_of

PREFIX = "_shared-"
"""Names of models begin with a letter or a digit (scripts/core/names.py)."""
VERSION = "1"
"""TorchServe asks for one."""


def shared_name(digest: str, *, explain: bool = False) -> str:
    """The workers that run one handler code with one configuration, which `digest` tells; those that explain beside."""
    name = PREFIX + digest[:12]
    return explainer_of(name) if explain else name


def is_shared(name: str) -> bool:
    return name.startswith(PREFIX)


def address(worker: str, model: str, version: str) -> str:
    """What stands in a path for `model/version` of a version in a shared worker; handlers/shared/host.py reads it."""
    return f"{worker}/{VERSION}/{model}/{version}"
