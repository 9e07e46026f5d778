"""An explanation as a page for people: one file, no script, nothing fetched.

Blue speaks for what is explained, orange against it, the darker the more: two colours that all common kinds of colour
blindness tell apart (Okabe and Ito 2008). Words against are underlined with dots, too, so that print without colour
will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from marctl_handlers.core.errors import HandlerError

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


@dataclass(frozen=True)
class Bar:
    """One part's score, with its standard error where it was sampled."""

    label: str
    score: float
    standard_error: float | None = None


def page(parts: Iterable[str]) -> str:
    """The whole page round its parts, which are HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>Why this answer?</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def failed(error: HandlerError) -> str:
    """In the place of an answer."""
    return f'<p class="warn">{escape(error.error)}: {escape(str(error))}</p>'


def incomplete(delta: float, bound: float) -> Iterator[str]:
    text = f"The scores do not add up: they miss the change by {abs(delta):.3g}, and at most {bound:.3g} would be well."
    yield f'<p class="warn">{text}</p>'


def chart(bars: Sequence[Bar], what: str) -> str:
    """The heaviest parts as bars: to the right for, to the left against. Whiskers are standard errors."""
    ranked = sorted(bars, key=lambda bar: -abs(bar.score))[:BARS]
    if not ranked or not ranked[0].score:
        return ""
    reach = max(abs(bar.score) + (bar.standard_error or 0.0) for bar in ranked)
    middle, width, height = LABEL + HALF, LABEL + 2 * HALF + 70, ROW * len(ranked) + 8
    parts = [f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="#888"/>']
    for i, bar in enumerate(ranked):
        y, length = 4 + i * ROW, HALF * abs(bar.score) / reach
        colour, x = (FOR, middle) if bar.score >= 0 else (AGAINST, middle - length)
        parts.append(f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y + 2}" width="{length:.1f}" height="{ROW - 6}" fill="rgb({colour})"/>')
        if bar.standard_error is not None:
            end, spread = middle + HALF * bar.score / reach, HALF * bar.standard_error / reach
            ends = f'x1="{end - spread:.1f}" x2="{end + spread:.1f}" y1="{y + ROW / 2 - 1}" y2="{y + ROW / 2 - 1}"'
            parts.append(f'<line {ends} stroke="#111" stroke-width="2"/>')
        parts.append(f'<text x="{middle + HALF + 8}" y="{y + 14}">{bar.score:+.3g}</text>')
    label = f"Bar chart of the {what} that weigh most; the same figures stand at the {what}"
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
