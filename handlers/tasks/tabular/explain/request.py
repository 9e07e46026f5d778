"""What a client may ask of an explanation: the key `explain` beside a question's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from marctl_handlers.core.settings import ExplanationSettings
from marctl_handlers.tasks.tabular.schema import Question, Target

Method = Literal["tree_shap", "shapley"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How to explain."""

    method: Method | None = None
    """tree_shap, which is exact, for XGBoost's trees; shapley for any model. The first one that the model has."""
    target: Target | None = None
    """A label's logit (the default) or probability; the value of a regression."""
    label: str | None = None
    """Which label's; of two the second, of more the chosen one, if left out."""
    samples: Annotated[int, Meta(ge=2)] | None = None
    """Orders of the features that Shapley values are averaged over, where not all sets of features are tried."""
    format: Literal["json", "html"] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec reports with the path of these options."""
        if self.samples is not None and self.method == "tree_shap":
            raise ValueError("`samples` belongs to the method shapley, got `tree_shap`")
        if self.target == "probability" and self.method == "tree_shap":
            raise ValueError("tree_shap explains a logit; the method shapley explains probabilities, too")


class ExplainQuestion(Question, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A row as for predictions, with options for its explanation."""

    explain: Options = Options()


def faults(
    options: Options, limits: ExplanationSettings, methods: Sequence[Method], labels: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Faults that types alone cannot express: the text, and the option at fault. `labels`: none for a regression."""
    if options.method is not None and options.method not in methods:
        yield f"Expected a method that this model has ({', '.join(methods)}), got '{options.method}'", "method"
    if options.samples is not None and options.samples > limits.max_samples:
        yield f"Expected `int` <= {limits.max_samples}, got {options.samples}", "samples"
    if options.target is not None and (options.target == "value") != (not labels):
        wanted = "logit or probability" if labels else "value"
        yield f"Expected {wanted}, got '{options.target}'", "target"
    if options.label is not None and options.label not in labels:
        there = f"one of {', '.join(labels)}" if labels else "no label of a regression"
        yield f"Expected {there}, got '{options.label[:60]}'", "label"
