"""Explanations have workers of their own: the same archive, registered once more under the model's name and a suffix.

TorchServe then keeps a queue of their own for them, and a worker that explains holds up nobody who wants a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable

SUFFIX = "-explain"


def explainer_of(model: str) -> str:
    """The name under which a model's explaining workers are registered."""
    return model + SUFFIX


def is_explainer(name: str) -> bool:
    return name.endswith(SUFFIX)


def models_in(names: Iterable[str]) -> list[str]:
    """The models among the names of versions' workers, sorted."""
    return sorted(name for name in names if not is_explainer(name))
