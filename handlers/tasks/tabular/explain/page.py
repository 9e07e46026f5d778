"""An explained row as a page: the reasons in words, the heaviest features as bars, and all of them in a table."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from marctl_handlers.core.errors import HandlerError
from marctl_handlers.explanations.form import Rows
from marctl_handlers.explanations.page import Bar, chart, failed, incomplete, page
from marctl_handlers.tasks.tabular.explain.answer import ExplainedClassified, ExplainedValue, Explanation, FeatureScore
from marctl_handlers.tasks.tabular.explain.reasons import shown

LONGEST = 24
"""Characters of a bar's label."""


def answers_page(rows: Rows) -> str:
    """A request's rows and answers, an error in the place of those that have one."""
    return page(part for _, answer in rows for part in section(answer))


def section(answer: Any) -> Iterator[str]:
    if isinstance(answer, HandlerError):
        yield failed(answer)
    elif isinstance(answer, ExplainedClassified):
        yield f"<h1>{escape(answer.label)} <span class='note'>{100 * answer.confidence:.1f} %</span></h1>"
        yield from (part for found in answer.explanations for part in explained(answer, found))
    elif isinstance(answer, ExplainedValue):
        yield f"<h1>{answer.prediction:,.6g}</h1>"
        yield from (part for found in answer.explanations for part in explained(answer, found))


def explained(answer: ExplainedClassified | ExplainedValue, found: Explanation) -> Iterator[str]:
    yield f"<h2>{escape(f'What speaks for “{found.label}”?' if found.label else 'What makes this value?')}</h2>"
    yield "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in found.reasons) + "</ul>"
    yield chart([Bar(short(one), one.score, one.standard_error) for one in found.features], "features")
    yield table(found)
    yield f'<p class="note">{escape(footnote(answer, found))}</p>'
    if not found.complete:
        yield from incomplete(found.delta, found.delta_bound)


def short(one: FeatureScore) -> str:
    text = f"{one.feature} = {shown(one) or 'missing'}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def table(found: Explanation) -> str:
    ranked = sorted(found.features, key=lambda one: -abs(one.score))
    rows = [
        f"<dt>{escape(one.feature)}</dt><dd>{escape(shown(one) or 'missing')}{notes(one)} "
        f"<span class='note'>{one.score:+.4g}</span></dd>"
        for one in ranked
    ]
    return f"<dl>{''.join(rows)}</dl>"


def notes(one: FeatureScore) -> str:
    told = [name for name in ("imputed", "clipped", "protected") if getattr(one, name)]
    return f" <span class='note'>({', '.join(told)})</span>" if told else ""


def footnote(answer: ExplainedClassified | ExplainedValue, found: Explanation) -> str:
    size = " (all sets of features)" if found.exact else f" ({found.steps} orders)" if found.steps else ""
    return (
        f"{answer.model} {answer.model_version}. Blue speaks for, orange against. Method: {found.method}{size}; "
        f"baseline: {found.baseline}. The {found.target} goes from {found.baseline_value:.4g} to {found.value:.4g}; "
        f"the scores add up to that within {abs(found.delta):.2g}."
    )
