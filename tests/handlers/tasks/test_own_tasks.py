"""A task of the user's own, in one Python file: what works, and how its mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.archive import load
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Model
from marctl_handlers.tasks import find_task, task_in
from tests.handlers.loading import ask

HEAD = """from __future__ import annotations
import msgspec
from marctl_handlers import Task

class Text(msgspec.Struct):
    text: str

class Label(msgspec.Struct):
    label: str
    score: float
"""
TASK = """
class Sentiment(Task[Text, Label]):
    def load(self, folder):
        self.good = set((folder / "good.txt").read_text().split())

    def predict(self, questions, deadline):
        return [Label("good" if self.good & set(q.text.split()) else "bad", 0.5) for q in questions]
"""
"""Begins at line 12 of a file with HEAD."""


def written(tmp_path: Path, content: str) -> Path:
    file = tmp_path / "task.py"
    file.write_text(content)
    return file


def test_a_file_s_task_is_served(tmp_path: Path) -> None:
    written(tmp_path, HEAD + TASK)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "good.txt").write_text("fine great")
    pipeline = load(tmp_path, Model("mood", "1.0"), {"task": "own"})
    (_, good), (_, bad), (code, error) = ask(pipeline, [{"text": "so fine"}, {"text": "so so"}, {"txt": "x"}])
    assert (good["label"], bad["label"], code) == ("good", "bad", 422)
    assert '{"text": ...}' in error["detail"]


def test_imports_of_tasks_in_the_file_are_not_its_own(tmp_path: Path) -> None:
    """So that a file may build on a task that comes with the package."""
    text = (
        "from marctl_handlers.tasks.multiple_choice.task import MultipleChoice\nclass Mine(MultipleChoice):\n    pass\n"
    )
    task = task_in(written(tmp_path, text))
    assert task.__name__ == "Mine"
    from marctl_handlers.tasks.multiple_choice.schema import Answer

    assert task.answer_type is Answer


def line(content: str, words: str) -> int:
    return next(i for i, text in enumerate(content.splitlines(), 1) if words in text)


SYNTAX = HEAD + TASK + "\ndef broken(:\n"
RAISES = HEAD + TASK + "\ndef fetch():\n    raise OSError('no such host')\n\nfetch()\n"
NOT_INSTALLED = HEAD + "import no_such_library\n" + TASK
EXITS = HEAD + TASK + "\nimport sys\nsys.exit(3)\n"
RESERVED = HEAD.replace("score: float", "latency_ms: float") + TASK
UNTYPED = HEAD + TASK.replace("Task[Text, Label]", "Task")
NO_STRUCT = HEAD + TASK.replace("Task[Text, Label]", "Task[Text, dict]")
BAD_FIELD = HEAD.replace("score: float", "score: Nothing") + TASK


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEAD, r"task\.py defines no task; expected a class like `class Sentiment\(Task\[Text, Label\]\)`"),
        ("", r"task\.py defines no task"),
        (
            HEAD + TASK + TASK.replace("Sentiment", "Mood"),
            r"task\.py defines 2 tasks \(Sentiment, Mood\); expected one",
        ),
        (
            HEAD + TASK.replace("def predict", "def predicts"),
            rf"task\.py, line {line(HEAD + TASK, 'class Sentiment')}: Sentiment does not define predict",
        ),
        (
            HEAD + TASK.replace("def predict", "def predicts").replace("def load", "def loads"),
            rf"task\.py, line {line(HEAD + TASK, 'class Sentiment')}: Sentiment does not define load, predict",
        ),
        (
            UNTYPED,
            rf"task\.py, line {line(UNTYPED, 'class Sentiment')}: TypeError: Sentiment names no types; write class",
        ),
        (NO_STRUCT, rf"task\.py, line {line(NO_STRUCT, 'class Sentiment')}: TypeError: Sentiment: its outcome type is"),
        (SYNTAX, rf"task\.py, line {line(SYNTAX, 'broken')}: SyntaxError: "),
        (RAISES, rf"task\.py, line {line(RAISES, 'raise OSError')}: OSError: no such host"),
        (NOT_INSTALLED, rf"task\.py, line {line(NOT_INSTALLED, 'no_such')}: ModuleNotFoundError: No module named"),
        (
            RESERVED,
            rf"task\.py, line {line(RESERVED, 'class Sentiment')}: TypeError: Label\.latency_ms: every answer has",
        ),
        (BAD_FIELD, rf"task\.py, line {line(BAD_FIELD, 'class Sentiment')}: NameError: name 'Nothing' is not defined"),
        (EXITS, rf"task\.py, line {line(EXITS, 'sys.exit')}: SystemExit: 3"),
        ("\0", r"task\.py.*: (SyntaxError|ValueError): "),
    ],
)
def test_a_file_s_mistake_is_told_in_one_line_with_its_place(content: str, words: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)
    with pytest.raises(LoadError, match=words) as caught:
        task_in(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"task\.py is missing; expected a Python file that defines a task"):
        find_task("own", tmp_path / "task.py")


FAULTY: dict[str, tuple[str, str]] = {
    "load": ("self.good = set(", "raise OSError('no weights'); set("),
    "model file": ("self.good = set(", "self.good = set("),
}


@pytest.mark.parametrize("old_new", FAULTY.values(), ids=FAULTY)
def test_a_load_that_raises_is_a_load_error_with_its_place(old_new: tuple[str, str], tmp_path: Path) -> None:
    written(tmp_path, HEAD + TASK.replace(*old_new))
    place = line(HEAD + TASK, "self.good = set(")
    with pytest.raises(LoadError, match=rf"Sentiment\.load raised \w+ \(task\.py, line {place}\): "):
        load(tmp_path, Model("mood", "1.0"), {"task": "own"})


def test_a_warm_up_that_raises_is_a_load_error(tmp_path: Path) -> None:
    warm_up = "\n    def warm_up(self):\n        self.predict([Text(3)], 0.0)\n"
    written(tmp_path, HEAD + TASK + warm_up)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "good.txt").write_text("")
    with pytest.raises(LoadError, match=r"Sentiment\.warm_up raised AttributeError \(task\.py, line \d+\): "):
        load(tmp_path, Model("mood", "1.0"), {"task": "own"})


def test_settings_of_a_task_s_own_are_checked(tmp_path: Path) -> None:
    settings = (
        "from marctl_handlers import Settings\n"
        "class MySettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):\n    depth: int = 1\n"
    )
    text = HEAD.replace("from marctl_handlers import Task\n", "from marctl_handlers import Task\n" + settings)
    written(tmp_path, text + TASK + "\n    settings_type = MySettings\n")
    with pytest.raises(LoadError, match=r"section `handler`: Expected `int`, got `str` - at `\$\.depth`"):
        load(tmp_path, Model("mood", "1.0"), {"task": "own", "depth": "deep"})


def test_explanations_of_a_task_that_explains_nothing_are_refused(tmp_path: Path) -> None:
    written(tmp_path, HEAD + TASK)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "good.txt").write_text("")
    handler: dict[str, Any] = json.loads('{"task": "own", "explanations": {}}')
    with pytest.raises(LoadError, match="Sentiment explains nothing; remove `explanations`"):
        load(tmp_path, Model("mood", "1.0"), handler)
