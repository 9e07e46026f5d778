"""An explanation as a page for people: one file, no script, nothing fetched.

Blue speaks for the choice, orange against it, the darker the more: two colours that all common kinds of colour
blindness tell apart (Okabe and Ito 2008). Words against are underlined with dots, too, so that print without colour
will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from handlers.core.errors import HandlerError
from handlers.tasks.multiple_choice.explain.answer import ExplainedAnswer, Explanation, WordScore
from handlers.tasks.multiple_choice.explain.request import ExplainQuestion

FOR, AGAINST = "0, 114, 178", "213, 94, 0"
"""Red, green, blue."""
LIGHTEST, DARKEST = 0.08, 0.55
"""Opacity behind a word: at the darkest, black text still has a contrast of 5 to 1 (WCAG 2.2, AA)."""
BARS = 20
ROW, LABEL, HALF = 22, 170, 220
"""Pixels of the bar chart: a bar's height, the words' column, the longest bar."""

STYLE = f"""
body {{ font: 16px/1.6 system-ui, sans-serif; color: #111; background: #fff; max-width: 46rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.25rem; }} h2 {{ font-size: 1.05rem; margin-top: 2rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }}
dt {{ color: #555; }} dd {{ margin: 0; white-space: pre-wrap; }}
mark {{ color: inherit; border-radius: 2px; padding: 0 1px; }}
mark.against {{ text-decoration: underline dotted 2px rgb({AGAINST}); text-underline-offset: 3px; }}
.cut {{ color: #666; text-decoration: line-through; }} .note {{ color: #555; font-size: .9rem; }}
.chosen {{ font-weight: 600; }} .warn {{ border-left: 4px solid rgb({AGAINST}); padding-left: .75rem; }}
svg {{ max-width: 100%; height: auto; font: 13px system-ui, sans-serif; }}
@media print {{ mark {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
""".strip()


def page(rows: Sequence[tuple[object, object]]) -> str:
    """A request's questions and answers, an error in the place of those that have one."""
    body = "\n".join(part for question, answer in rows for part in section(question, answer))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>Why this answer?</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def section(question: object, answer: object) -> Iterator[str]:
    if not isinstance(question, ExplainQuestion) or not isinstance(answer, ExplainedAnswer):
        if isinstance(answer, HandlerError):
            yield f'<p class="warn">{escape(answer.error)}: {escape(str(answer))}</p>'
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
            chart(found.words, most),
            f'<p class="note">{escape(footnote(answer, found))}</p>',
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
    opacity = LIGHTEST + (DARKEST - LIGHTEST) * share if share >= 0.02 else 0.0
    colour, kind = (FOR, "for") if word.score >= 0 else (AGAINST, "against")
    kind = kind if opacity else ""
    title = f"{word.score:+.4g}" + ("" if word.standard_error is None else f" ± {word.standard_error:.2g}")
    title += ", a word that the model does not know" if word.unknown else ""
    return f'<mark class="{kind}" style="background: rgba({colour}, {opacity:.3f})" title="{title}">'


def chart(words: Sequence[WordScore], most: float) -> str:
    """The heaviest words as bars: to the right for the choice, to the left against it. Whiskers are standard errors."""
    ranked = sorted(words, key=lambda word: -abs(word.score))[:BARS]
    if not ranked or not most:
        return ""
    reach = max(abs(word.score) + (word.standard_error or 0.0) for word in ranked)
    middle, width, height = LABEL + HALF, LABEL + 2 * HALF + 70, ROW * len(ranked) + 8
    parts = [f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="#888"/>']
    for i, word in enumerate(ranked):
        y, length = 4 + i * ROW, HALF * abs(word.score) / reach
        colour, x = (FOR, middle) if word.score >= 0 else (AGAINST, middle - length)
        parts.append(f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(short(word))}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y + 2}" width="{length:.1f}" height="{ROW - 6}" fill="rgb({colour})"/>')
        if word.standard_error is not None:
            end, spread = middle + HALF * word.score / reach, HALF * word.standard_error / reach
            ends = f'x1="{end - spread:.1f}" x2="{end + spread:.1f}" y1="{y + ROW / 2 - 1}" y2="{y + ROW / 2 - 1}"'
            parts.append(f'<line {ends} stroke="#111" stroke-width="2"/>')
        parts.append(f'<text x="{middle + HALF + 8}" y="{y + 14}">{word.score:+.3g}</text>')
    label = "Bar chart of the words that weigh most; the same figures stand at the words"
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


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
        f"{answer.model} {answer.model_version}. Blue speaks for, orange against. Method: {found.method}{size}, "
        f"in {found.precision}; baseline: {found.baseline}. The {found.target} goes from {found.baseline_value:.4g} "
        f"without words to {found.value:.4g}; the scores add up to that within {abs(found.delta):.2g}."
    )


def warnings(found: Explanation) -> Iterator[str]:
    if not found.complete:
        text = f"The scores do not add up: they miss the change by {abs(found.delta):.3g}, "
        text += f"and at most {found.delta_bound:.3g} would be well."
        yield f'<p class="warn">{text}</p>'
    if found.not_seen:
        yield '<p class="warn">The model did not see what is struck out.</p>'
