"""What the task needs of a model, whichever library it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.errors import LoadError

Encoded = NDArray[np.float32]
"""Shape (rows, columns)."""


class Runtime(Protocol):
    """A loaded model. Calls keep nothing of a batch."""

    name: str
    """Library and version, such as `xgboost 3.2.0`."""
    columns: int | None
    """That the model reads; None if the file does not say."""

    def scores(self, encoded: Encoded) -> NDArray[Any]:
        """What the model gives, shape (rows, outputs).

        One output is a value, or the probability (or logit, as the settings say) of the second class; several are one
        a class.
        """


def refuse_columns(runtime: Runtime, given: int) -> None:
    """Raise LoadError unless the model reads as many columns as the specification makes."""
    if runtime.columns is not None and runtime.columns != given:
        raise LoadError(
            f"the model reads {runtime.columns} columns, the feature specification makes {given}; "
            "give it the specification that it was trained with"
        )


def lacks(library: str, extra: str, err: ImportError) -> LoadError:
    return LoadError(
        f"this model needs {library} ({err}); pip install {library}, or this project with its extra {extra}"
    )


def by_row(scores: NDArray[Any]) -> NDArray[Any]:
    """The same with the rows' outputs in a second dimension."""
    return scores.reshape(len(scores), -1)


def unreadable(path: Path, kind: str, err: Exception) -> LoadError:
    said = str(err).strip().splitlines() or [type(err).__name__]
    return LoadError(f"{path.name} is no {kind}: {said[0][:200]}")
