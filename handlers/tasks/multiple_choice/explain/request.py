"""What a client may ask of an explanation: the key `explain` beside a question's own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from marctl_handlers.core.settings import ExplanationSettings
from marctl_handlers.tasks.multiple_choice.schema import Question

Method = Literal["integrated_gradients", "gradient_x_input", "shapley", "occlusion"]
Target = Literal["logit", "probability", "margin"]
Baseline = Literal["mask", "pad", "unk"]

DEFAULT_STEPS = 32
"""Gauss-Legendre points of the first try; the median question of six layers needs no more."""
Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0, le=15)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How to explain."""

    method: Method = "integrated_gradients"
    target: Target = "logit"
    """What is explained: a choice's own score, its probability, or how far its score is ahead of another choice's."""
    choices: Literal["chosen", "all"] | Annotated[list[Index], Meta(min_length=1, max_length=16)] = "chosen"
    against: Index | None = None
    """The other choice of `margin`; the strongest of the others if left out."""
    baseline: Baseline | None = None
    """What stands for an absent word: the tokenizer's token of that kind; `mask`, or `pad` where there is none."""
    n_steps: Count | None = None
    """Points of the integral in the first try; doubled until completeness holds, up to the version's limit."""
    samples: Annotated[int, Meta(ge=2)] | None = None
    """Orders of the words that Shapley values are averaged over."""
    format: Literal["json", "html"] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec reports with the path of these options."""
        for name, method in (("n_steps", "integrated_gradients"), ("samples", "shapley")):
            if getattr(self, name) is not None and self.method != method:
                raise ValueError(f"`{name}` belongs to the method {method}, got `{self.method}`")
        if self.against is not None and self.target != "margin":
            raise ValueError(f"`against` belongs to the target margin, got `{self.target}`")
        if self.baseline is not None and self.method == "gradient_x_input":
            raise ValueError("gradient_x_input has no `baseline`: it multiplies with the whole embedding")
        if isinstance(self.choices, list) and len(set(self.choices)) < len(self.choices):
            raise ValueError("`choices` names one choice more than once")


class ExplainQuestion(Question, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A question as for predictions, with options for its explanation."""

    explain: Options = Options()


def faults(
    question: ExplainQuestion, limits: ExplanationSettings, baselines: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Faults that types alone cannot express: the text, and the option at fault."""
    options, last = question.explain, len(question.choices) - 1
    for name, most in (("n_steps", limits.max_steps), ("samples", limits.max_samples)):
        given = getattr(options, name)
        if given is not None and given > most:
            yield f"Expected `int` <= {most}, got {given}", name
    named = options.choices if isinstance(options.choices, list) else []
    for place, index in [*((f"choices[{i}]", c) for i, c in enumerate(named)), ("against", options.against)]:
        if index is not None and index > last:
            yield f"Expected a choice's index, 0 to {last}, got {index}", place
    if options.against is not None and options.against in named:
        yield f"Expected another choice than those to be explained, got {options.against}", "against"
    if options.baseline is not None and options.baseline not in baselines:
        there = ", ".join(baselines) or "none"
        yield f"Expected a token that this version's tokenizer has ({there}), got '{options.baseline}'", "baseline"
