from __future__ import annotations

import pytest
import yaml

from marctl.build.recipe_text import with_section

TEXT = """\
# A recipe.
task: multiple_choice   # of two
# Asked after every build.
samples:
  - request: {a: 1}  # the first
    # inside

# At the end.
description: |
  # no comment
  text
"""


@pytest.mark.parametrize("name", ["calibration", "samples", "task", "description"])
@pytest.mark.parametrize("content", [{"temperature": 1.5, "by_choices": {2: 1.4, 3: 1.6}}, ["é: word", 2], None])
def test_only_the_section_changes(name: str, content: object) -> None:
    changed = with_section(TEXT, name, content)
    wanted = {key: value for key, value in yaml.safe_load(TEXT).items() if key != name}
    assert yaml.safe_load(changed) == wanted | ({} if content is None else {name: content})
    assert {"# A recipe.\n", "# At the end.\n"} <= set(changed.splitlines(keepends=True))


def test_adding_and_removing_gives_the_text_back() -> None:
    assert with_section(with_section(TEXT, "calibration", {"temperature": 2.0}), "calibration", None) == TEXT


@pytest.mark.parametrize(
    "text", ["{a: 1, b: {c: 2}}", "---\na: 1\nb: 2\n...\n", "a: 1\nb: |\n  x\n  # y\n", "a: 1\nb: 2"]
)
def test_any_form_of_yaml_keeps_its_content(text: str) -> None:
    assert yaml.safe_load(with_section(text, "b", {"z": 1.5})) == {"a": 1, "b": {"z": 1.5}}
