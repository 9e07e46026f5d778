"""Reports as one HTML file each, which loads nothing from elsewhere and runs no script; plots are SVG inside it."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from marctl.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, NEUTRAL = "#0072B2", "#D55E00", "#666666"
"""Distinguishable with any colour vision, and by lightness in grey (Okabe and Ito 2008)."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top; max-width: 30rem; overflow-wrap: break-word }
th { border-bottom: 2px solid #999; white-space: nowrap }
.wide { overflow-x: auto }
td { border-bottom: 1px solid #ddd }
.note { color: #555 }
svg { max-width: 100%; height: auto }
"""


def document(title: str, note: str, body: str) -> str:
    """The whole file; `note` stands under the title, `body` is HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f'<h1>{text(title)}</h1><p class="note">{text(note)}</p>{body}</body></html>\n'
    )


def pictures(draw: Sequence[Callable[[Axes], None]]) -> str:
    """Plots side by side, as SVG."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as err:
        raise UserError("the HTML page needs matplotlib; pip install matplotlib") from err
    # Text stays text in the SVG, and the same figures give the same bytes.
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "marctl", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    ):
        figure = Figure(figsize=(4 * len(draw), 3.6), layout="constrained")
        for one, axes in zip(draw, figure.subplots(1, len(draw), squeeze=False)[0], strict=True):
            one(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def legend(axes: Axes) -> None:
    """Below the plot, where it covers nothing that is drawn."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text(content: object) -> str:
    """Escaped, because clients wrote some of it."""
    return html.escape(str(content))
