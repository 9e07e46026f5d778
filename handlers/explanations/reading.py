"""How to read an explanation: sentences that the page and the terminal share."""

from __future__ import annotations

OWN_WORD_AGAINST = (
    "A word of the explained choice counts against it where the model would score that choice higher without the "
    "word. The scores tell what moves this choice's {target}, not whether it is right; the choice with the highest "
    "one is the answer."
)
"""For a choice with such a word."""
