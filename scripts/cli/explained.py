"""An explanation in the terminal: coloured words, and the heaviest ones with their figures.

Blue speaks for the choice, orange against it; terminals that show no colour still have the signs of the figures.
"""

from __future__ import annotations

from typing import Any

import click

Colour = tuple[int, int, int]
FOR: Colour = (0, 114, 178)
AGAINST: Colour = (213, 94, 0)
"""Told apart by all common kinds of colour blindness (Okabe and Ito 2008)."""
PALE = 0.06
"""A word with a smaller share of the heaviest one's score stays without colour."""
SHOWN, BAR = 8, 16


def explained(texts: dict[str, str], found: dict[str, Any]) -> str:
    """One explanation of an answer; `texts`: field to the client's string, in the order to be shown."""
    most = max((abs(word["score"]) for word in found["words"]), default=0.0) or 1.0
    against = f" and not {texts['choices[' + str(found['against']) + ']']}" if "against" in found else ""
    lines = [f"why {found['label']}{against}"]
    fields = [field for field in texts if any(word["field"] == field for word in found["words"])]
    width = max(map(len, fields), default=0)
    lines += [f"  {field.ljust(width)}  {coloured(texts[field], field, found, most)}" for field in fields]
    heaviest = sorted(found["words"], key=lambda word: -abs(word["score"]))[:SHOWN]
    longest = max((len(word["text"]) for word in heaviest), default=0)
    for word in heaviest:
        bar = click.style("█" * max(round(BAR * abs(word["score"]) / most), 1), fg=colour_of(word))
        error = f" ± {word['standard_error']:.3f}" if "standard_error" in word else ""
        unknown = "  (unknown to the model)" if word.get("unknown") else ""
        lines.append(f"  {word['text'].ljust(longest)}  {word['score']:+8.3f}{error}  {bar}{unknown}")
    return "\n".join([*lines, *notes(found)])


def coloured(text: str, field: str, found: dict[str, Any], most: float) -> str:
    """The text, a word's colour the stronger the more it weighs; what the model did not see is dim."""
    marks = [
        (word["start"], word["end"], shade(word, abs(word["score"]) / most))
        for word in found["words"]
        if word["field"] == field and abs(word["score"]) >= PALE * most
    ]
    marks += [(s["start"], s["end"], {"dim": True}) for s in found.get("not_seen", []) if s["field"] == field]
    parts, at = [], 0
    for start, end, style in sorted(marks, key=lambda mark: mark[0]):
        parts += [text[at:start], click.style(text[start:end], **style)]
        at = end
    return "".join([*parts, text[at:]])


def shade(word: dict[str, Any], share: float) -> dict[str, Any]:
    """White on the full colour for the heaviest words, black on a light shade for the others."""
    background = tuple(round(255 - share * (255 - part)) for part in colour_of(word))
    return {"bg": background, "fg": (255, 255, 255) if share > 0.75 else (0, 0, 0)}


def colour_of(word: dict[str, Any]) -> Colour:
    return FOR if word["score"] >= 0 else AGAINST


def notes(found: dict[str, Any]) -> list[str]:
    """How it was found, and what to be careful about."""
    change = f"{found['baseline_value']:.3f} without words to {found['value']:.3f}"
    told = [f"  {found['method']}, {found['target']} from {change}, {found['compute_ms']:.0f} ms"]
    if not found["complete"]:
        told.append(f"  careful: the scores miss that change by {abs(found['delta']):.3f}")
    if found.get("not_seen"):
        told.append("  careful: what is dim was cut off, the model did not see it")
    return told
