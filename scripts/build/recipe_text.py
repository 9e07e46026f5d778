"""Changes a section of a recipe and leaves the rest of its text, comments included, as somebody wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from marctl.build.recipe import RECIPE_FILE
from marctl.core.errors import UserError
from marctl.core.files import alone, write_atomically

WIDTH = 120


def recipe_text(folder: Path) -> str:
    path = folder / RECIPE_FILE
    try:
        return path.read_text()
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}; expected a recipe, see `marctl build --help`") from err


def replace_text(folder: Path, text: str, changed: str) -> None:
    """Write the recipe, whose text was `text` when the work began. Raises UserError if somebody changed it since."""
    with alone(folder):
        path = folder / RECIPE_FILE
        if recipe_text(folder) != text:
            raise UserError(f"{path}: changed meanwhile, perhaps by another command; nothing was written, try again")
        if changed != text:
            write_atomically(path, changed)


def with_section(text: str, name: str, content: Any) -> str:
    """The recipe with `name: content` in place of that section, or at its end; without it where content is None.

    A recipe whose text cannot be cut there, such as one in braces, is written anew as a whole.
    """
    wanted = {key: value for key, value in yaml.safe_load(text).items() if key != name}
    if content is not None:
        wanted[name] = content
    changed = spliced(text, name, "" if content is None else dumped({name: content}))
    try:
        kept = yaml.safe_load(changed) == wanted
    except yaml.YAMLError:
        kept = False
    return changed if kept else dumped(wanted)


def dumped(content: Any) -> str:
    """Block style, with the innermost lists and mappings in one line."""
    flow = None if any(isinstance(value, dict | list) for value in content.values()) else False
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=WIDTH))


def spliced(text: str, name: str, block: str) -> str:
    """The text with whole lines replaced."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start, end = lines_of(text, lines, name)
    return "".join([*lines[:start], block, *lines[end:]])


def lines_of(text: str, lines: list[str], name: str) -> tuple[int, int]:
    """First line of a top-level section, and the line after it; both past the last line where there is none."""
    root = yaml.compose(text, yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == name:
            start = key.start_mark.line
            end = value.end_mark.line + (value.end_mark.column > 0)
            # The parser counts what stands before the next section, such as its comment, to this one.
            while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
                end -= 1
            return start, end
    return len(lines), len(lines)
