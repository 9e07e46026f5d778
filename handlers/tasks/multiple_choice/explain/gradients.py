"""Methods that follow the gradient at the word embeddings, many cases in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor

from marctl_handlers.explanations.outcome import Found
from marctl_handlers.tasks.multiple_choice.explain.cases import SPECIAL, Case
from marctl_handlers.tasks.multiple_choice.explain.forward import Inputs, WordModel, fitting
from marctl_handlers.tasks.multiple_choice.explain.request import DEFAULT_STEPS, Target

Results = dict[int, Found]
"""By the case's place in what was asked."""


def integrated_gradients(
    model: WordModel, cases: Sequence[Case], deadline: float, *, max_steps: int, tokens_per_pass: int
) -> list[Found | None]:
    """Gradients along the straight line from the baseline's embeddings to the text's, times their distance.

    A case whose scores do not add up is tried again with twice the steps, up to `max_steps`. None where the deadline
    (time.monotonic seconds) came first; after it nothing is refined either.
    Source: Sundararajan et al. 2017, arXiv:1703.01365.
    """
    found: Results = {}
    steps_of = {i: min(case.options.n_steps or DEFAULT_STEPS, max_steps) for i, case in enumerate(cases)}
    pending = list(steps_of)
    while pending:
        for steps, target, places in passes(cases, pending, steps_of, tokens_per_pass):
            if found and time.monotonic() > deadline:
                return [found.get(i) for i in range(len(cases))]
            group = [cases[i] for i in places]
            found.update(zip(places, integrate(model, group, target, steps, tokens_per_pass), strict=True))
        pending = [i for i in pending if not found[i].complete and steps_of[i] < max_steps]
        steps_of |= {i: min(2 * steps_of[i], max_steps) for i in pending}
    return [found[i] for i in range(len(cases))]


def gradient_x_input(
    model: WordModel, cases: Sequence[Case], deadline: float, *, tokens_per_pass: int
) -> list[Found | None]:
    """The gradient at the text itself times the whole embedding: one pass, but the scores need not add up."""
    found: Results = {}
    for _, target, places in passes(cases, range(len(cases)), dict.fromkeys(range(len(cases)), 1), tokens_per_pass):
        if found and time.monotonic() > deadline:
            break
        group = [cases[i] for i in places]
        found.update(zip(places, multiply(model, group, target), strict=True))
    return [found.get(i) for i in range(len(cases))]


def passes(
    cases: Sequence[Case], places: Sequence[int], steps_of: dict[int, int], tokens_per_pass: int
) -> list[tuple[int, Target, list[int]]]:
    """Steps, target and cases that go through the model together: of one shape, and alike in length."""

    def kind(i: int) -> tuple[int, Target, int]:
        return steps_of[i], cases[i].options.target, len(cases[i].rows)

    found = []
    for (steps, target, rows), same in groupby(sorted(places, key=lambda i: (*kind(i), cases[i].longest)), kind):
        together: list[int] = []
        for i in same:
            if together and len(together) >= fitting(cases[i].longest, tokens_per_pass, rows):
                found.append((steps, target, together))
                together = []
            together.append(i)
        found.append((steps, target, together))
    return found


def integrate(model: WordModel, cases: Sequence[Case], target: Target, steps: int, tokens_per_pass: int) -> list[Found]:
    started = time.monotonic()
    inputs = model.inputs(cases)
    method = LayerIntegratedGradients(forward(model, target), model.embedding)
    rows = inputs.ids.shape[0] * inputs.ids.shape[1]
    per_token = method.attribute(
        inputs.ids,
        inputs.baseline_ids,
        additional_forward_args=inputs.rest,
        n_steps=steps,
        internal_batch_size=rows * fitting(inputs.ids.shape[2], tokens_per_pass, rows),
    )
    return results(model, cases, target, inputs, per_token, model.logits_without, started, steps)


def multiply(model: WordModel, cases: Sequence[Case], target: Target) -> list[Found]:
    started = time.monotonic()
    inputs = model.inputs(cases)
    method = LayerGradientXActivation(forward(model, target), model.embedding)
    per_token = method.attribute(inputs.ids, additional_forward_args=inputs.rest)
    return results(model, cases, target, inputs, per_token, model.logits_of_nothing, started, None)


def forward(model: WordModel, target: Target) -> Callable[..., Tensor]:
    def run(ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        return model.target(target, model.logits(ids, mask, types))

    return run


@torch.no_grad()
def results(
    model: WordModel,
    cases: Sequence[Case],
    target: Target,
    inputs: Inputs,
    per_token: Tensor,
    baseline: Callable[[Inputs], Tensor],
    started: float,
    steps: int | None,
) -> list[Found]:
    """Sum up per word. per_token: (cases * rows, tokens, width); `baseline` gives the logits without the words."""
    values = model.target(target, model.logits(inputs.ids, *inputs.rest))
    nothing = model.target(target, baseline(inputs))
    scores = per_token.sum(-1).view(inputs.ids.shape).double().tolist()
    seconds = (time.monotonic() - started) / len(cases)
    return [
        Found(per_word(case, rows), value, without, seconds, steps)
        for case, rows, value, without in zip(cases, scores, values.tolist(), nothing.tolist(), strict=True)
    ]


def per_word(case: Case, scores: Sequence[Sequence[float]]) -> list[float]:
    """Sum a case's token scores, (rows, tokens), by word; special tokens and padding are left out."""
    total = [0.0] * len(case.words)
    for row, values in zip(case.rows, scores, strict=True):
        for word, value in zip(row.words, values, strict=False):
            if word != SPECIAL:
                total[word] += value
    return total
