"""An explanation in the terminal: coloured words, or features, and the heaviest ones with their figures.

Blue speaks for the choice, orange against it; where no colour is shown, their bars and signs still differ.
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
SHOWN, BAR, WIDTH = 8, 16, 100
FOR_MARK, AGAINST_MARK = "█", "▒"


def explained(texts: dict[str, str], found: dict[str, Any]) -> str:
    """One explanation of an answer; `texts`: field to the client's string, in the order to be shown."""
    return by_features(found) if "features" in found else by_words(texts, found)


def by_features(found: dict[str, Any]) -> str:
    """The reasons in words, then the heaviest features."""
    heaviest = sorted(found["features"], key=lambda one: -abs(one["score"]))[:SHOWN]
    most = abs(heaviest[0]["score"]) or 1.0
    named = [f"{one['feature']} = {shown(one['value'])}" for one in heaviest]
    width = max(map(len, named))
    lines = [f"why {found['label']}" if "label" in found else "why this value"]
    lines += [f"  {reason}" for reason in found["reasons"]]
    for name, one in zip(named, heaviest, strict=True):
        marks = [mark for mark in ("imputed", "clipped", "protected") if one.get(mark)]
        lines.append(f"  {name.ljust(width)}  {figures(one, most)}{'  (' + ', '.join(marks) + ')' if marks else ''}")
    return "\n".join([*lines, legend(found), *notes(found, f"compared with {found['baseline']}, ")])


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "missing"}[value]
    return f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def figures(part: dict[str, Any], most: float) -> str:
    """A score, with its standard error where it has one, and its bar."""
    mark = FOR_MARK if part["score"] >= 0 else AGAINST_MARK
    bar = click.style(mark * max(round(BAR * abs(part["score"]) / most), 1), fg=colour_of(part))
    error = f" ± {part['standard_error']:.3f}" if "standard_error" in part else ""
    return f"{part['score']:+8.3f}{error}  {bar}"


def by_words(texts: dict[str, str], found: dict[str, Any]) -> str:
    """The texts with their words marked, then the heaviest words."""
    most = max((abs(word["score"]) for word in found["words"]), default=0.0) or 1.0
    against = f" and not {texts['choices[' + str(found['against']) + ']']}" if "against" in found else ""
    lines = [f"why {found['label']}{against}"]
    fields = [field for field in texts if any(word["field"] == field for word in found["words"])]
    width = max(map(len, fields), default=0)
    lines += [f"  {field.ljust(width)}  {coloured(texts[field], field, found, most)}" for field in fields]
    heaviest = sorted(found["words"], key=lambda word: -abs(word["score"]))[:SHOWN]
    longest = max((len(word["text"]) for word in heaviest), default=0)
    for word in heaviest:
        unknown = "  (unknown to the model)" if word.get("unknown") else ""
        lines.append(f"  {word['text'].ljust(longest)}  {figures(word, most)}{unknown}")
    return "\n".join([*lines, legend(found), *own_word(found, most), *notes(found)])


def legend(found: dict[str, Any]) -> str:
    """What bars and figures mean."""
    return f"  {FOR_MARK} speaks for it, {AGAINST_MARK} against it; a figure is how far it moves the {found['target']}"


def own_word(found: dict[str, Any], most: float) -> list[str]:
    """Why a word of the choice itself may count against it, where one does."""
    from marctl_handlers.explanations.reading import OWN_WORD_AGAINST

    own = [word["score"] for word in found["words"] if word["field"] == f"choices[{found.get('choice')}]"]
    if not any(score <= -PALE * most for score in own):
        return []
    text = OWN_WORD_AGAINST.format(target=found["target"])
    return [click.wrap_text(text, width=WIDTH, initial_indent="  ", subsequent_indent="  ")]


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


def notes(found: dict[str, Any], compared: str = "") -> list[str]:
    """How it was found, and what to be careful about."""
    without = "" if compared else " without words"
    change = f"{found['baseline_value']:.3f}{without} to {found['value']:.3f}"
    told = [f"  {found['method']}, {found['target']} from {change}, {compared}{found['compute_ms']:.0f} ms"]
    if not found["complete"]:
        told.append(f"  careful: the scores miss that change by {abs(found['delta']):.3f}")
    if found.get("not_seen"):
        told.append("  careful: what is dim was cut off, the model did not see it")
    return told
