"""An explained multiple-choice answer as a page: the texts with their words marked, and the heaviest words."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from marctl_handlers.core.errors import HandlerError
from marctl_handlers.explanations.form import Rows
from marctl_handlers.explanations.page import AGAINST, DARKEST, FOR, LIGHTEST, Bar, chart, failed, incomplete, page
from marctl_handlers.explanations.reading import OWN_WORD_AGAINST
from marctl_handlers.tasks.multiple_choice.explain.answer import ExplainedAnswer, Explanation, WordScore
from marctl_handlers.tasks.multiple_choice.explain.request import ExplainQuestion

SEEN = 0.02
"""Of the heaviest word's score; a word with less stays without colour."""


def answers_page(rows: Rows) -> str:
    """A request's questions and answers, an error in the place of those that have one."""
    return page(part for question, answer in rows for part in section(question, answer))


def section(question: object, answer: object) -> Iterator[str]:
    if not isinstance(question, ExplainQuestion) or not isinstance(answer, ExplainedAnswer):
        if isinstance(answer, HandlerError):
            yield failed(answer)
        return
    yield f"<h1>{escape(answer.label)} <span class='note'>{100 * answer.confidence:.1f} %</span></h1>"
    yield from (explained(question, answer, explanation) for explanation in answer.explanations)


def explained(question: ExplainQuestion, answer: ExplainedAnswer, found: Explanation) -> str:
    """One explanation: the texts, the words by weight, and how they were found."""
    texts = [("context", question.context)] if question.context else []
    texts += [("question", question.question)]
    texts += [(f"choices[{i}]", choice) for i, choice in enumerate(question.choices)]
    most = max((abs(word.score) for word in found.words), default=0.0)
    lines = []
    for field, text in texts:
        name, note = field, ""
        if field.startswith("choices"):
            index = int(field[8:-1])
            name = f"choice {index}"
            note = f" <span class='note'>{100 * answer.probabilities[index]:.1f} %</span>"
        chosen = ' class="chosen"' if field == f"choices[{found.choice}]" else ""
        lines.append(f"<dt>{name}</dt><dd{chosen}>{highlighted(field, text, found, most)}{note}</dd>")
    return "\n".join(
        [
            f"<h2>{escape(headline(found, question))}</h2>",
            f"<dl>{''.join(lines)}</dl>",
            chart([Bar(short(word), word.score, word.standard_error) for word in found.words], "words"),
            f'<p class="note">{escape(footnote(answer, found))}</p>',
            *own_word(found, most),
            *warnings(found),
        ]
    )


def headline(found: Explanation, question: ExplainQuestion) -> str:
    if found.against is not None:
        return f"Why “{found.label}” and not “{question.choices[found.against]}”?"
    return f"What speaks for “{found.label}”?"


def highlighted(field: str, text: str, found: Explanation, most: float) -> str:
    """The text with its words marked, and struck out where the model did not see it."""
    marks = [
        (w.start, w.end, f"{opening(w, most)}{escape(text[w.start : w.end])}</mark>")
        for w in found.words
        if w.field == field
    ]
    marks += [
        (s.start, s.end, f'<span class="cut" title="not seen by the model">{escape(text[s.start : s.end])}</span>')
        for s in found.not_seen
        if s.field == field
    ]
    parts, at = [], 0
    for start, end, marked in sorted(marks):
        parts += [escape(text[at:start]), marked]
        at = end
    return "".join([*parts, escape(text[at:])])


def opening(word: WordScore, most: float) -> str:
    share = abs(word.score) / most if most else 0.0
    opacity = LIGHTEST + (DARKEST - LIGHTEST) * share if share >= SEEN else 0.0
    colour, kind = (FOR, "for") if word.score >= 0 else (AGAINST, "against")
    kind = kind if opacity else ""
    title = f"{word.score:+.4g}" + ("" if word.standard_error is None else f" ± {word.standard_error:.2g}")
    title += ", a word that the model does not know" if word.unknown else ""
    return f'<mark class="{kind}" style="background: rgba({colour}, {opacity:.3f})" title="{title}">'


def short(word: WordScore) -> str:
    """A word and where it stands, to fit its column."""
    text = word.text if len(word.text) <= 14 else word.text[:13] + "…"
    return f"{text} ({'choice ' + word.field[8:-1] if word.field.startswith('choices') else word.field})"


def footnote(answer: ExplainedAnswer, found: Explanation) -> str:
    how = {
        "integrated_gradients": f"{found.steps} steps",
        "shapley": "all sets of words" if found.exact else f"{found.steps} orders",
    }
    size = f" ({how[found.method]})" if found.method in how else ""
    return (
        f"{answer.model} {answer.model_version}. Blue speaks for, orange with dots against. "
        f"Method: {found.method}{size}, in {found.precision}; baseline: {found.baseline}. "
        f"The {found.target} goes from {found.baseline_value:.4g} without words to {found.value:.4g}; the scores add "
        f"up to that within {abs(found.delta):.2g}."
    )


def own_word(found: Explanation, most: float) -> Iterator[str]:
    """Why a word of the choice itself may count against it, where one does."""
    own = [word.score for word in found.words if word.field == f"choices[{found.choice}]"]
    if any(score < -SEEN * most for score in own):
        yield f'<p class="note">{escape(OWN_WORD_AGAINST.format(target=found.target))}</p>'


def warnings(found: Explanation) -> Iterator[str]:
    if not found.complete:
        yield from incomplete(found.delta, found.delta_bound)
    if found.not_seen:
        yield '<p class="warn">The model did not see what is struck out.</p>'
