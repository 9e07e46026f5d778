"""The tasks that come with the package, and how a user's own is found."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any, TypeGuard

from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.task import Task

TASKS = {
    "embedding": "marctl_handlers.tasks.embedding.task:Embedding",
    "ensemble": "marctl_handlers.tasks.ensemble.task:Ensemble",
    "multiple_choice": "marctl_handlers.tasks.multiple_choice.task:MultipleChoice",
    "tabular": "marctl_handlers.tasks.tabular.classification:Classification",
    "tabular_regression": "marctl_handlers.tasks.tabular.regression:Regression",
}
"""Name in a recipe to module and class; a module is imported when its task is asked for."""
OWN_TASK = "own"
"""The name, inside an archive, of a task that its `task.py` defines."""
OWN_MODULE = "own_task"

_own: dict[str, type[Task[Any, Any]]] = {}
"""By the file's SHA-256: versions with the same file have one class, so that their questions are of one type."""


def find_task(name: str, file: Path | None = None) -> type[Task[Any, Any]]:
    """A task by its name, or from a user's own Python file. Raises LoadError."""
    if file is not None:
        return task_in(file)
    if name not in TASKS:
        raise LoadError(
            f"task is {name!r}; expected one of {', '.join(sorted(TASKS))}, or a Python file that defines a task, such "
            "as ./sentiment.py"
        )
    module, _, found = TASKS[name].partition(":")
    try:
        task: type[Task[Any, Any]] = getattr(importlib.import_module(module), found)
    except ImportError as err:
        raise LoadError(f"task {name} needs a library that is not installed: {err}; pip install {err.name}") from err
    return task


def task_in(file: Path) -> type[Task[Any, Any]]:
    """The one task that a Python file defines. Raises LoadError saying what is wrong with the file."""
    if not file.is_file():
        raise LoadError(f"{file.name} is missing; expected a Python file that defines a task")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest not in _own:
        _own[digest] = defined_in(file, f"{OWN_MODULE}_{digest[:16]}")
    return _own[digest]


def defined_in(file: Path, name: str) -> type[Task[Any, Any]]:
    """The same; the file is run as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Types that the file defines are looked up by their module's name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as err:
        del sys.modules[name]
        cure = "; write `from marctl_handlers import Task`" if getattr(err, "name", "") == "handlers" else ""
        raise LoadError(f"{file.name}{line_of(err, file)}: {type(err).__name__}: {err}{cure}") from err
    found = [kind for kind in vars(module).values() if is_task_of(kind, name)]
    ready = [kind for kind in found if not inspect.isabstract(kind)]
    if len(ready) == 1:
        return ready[0]
    if ready:
        names = ", ".join(kind.__name__ for kind in ready)
        raise LoadError(f"{file.name} defines {len(ready)} tasks ({names}); expected one")
    if found:
        lacking = ", ".join(sorted(getattr(found[0], "__abstractmethods__", ())))
        line = inspect.getsourcelines(found[0])[1]
        raise LoadError(
            f"{file.name}, line {line}: {found[0].__name__} does not define {lacking}; see handlers/core/task.py"
        )
    raise LoadError(
        f"{file.name} defines no task; expected a class like `class Sentiment(Task[Text, Label])`, "
        "with `from marctl_handlers import Task`"
    )


def is_task_of(kind: Any, module: str) -> TypeGuard[type[Task[Any, Any]]]:
    """Whether a module defines this task. (issubclass would go through all tasks that the process ever loaded.)"""
    return inspect.isclass(kind) and kind.__module__ == module and Task in kind.__mro__


def line_of(err: BaseException, file: Path) -> str:
    """`, line 12`: the last place in the file that an error went through."""
    if isinstance(err, SyntaxError) and err.lineno:
        return f", line {err.lineno}"
    number, trace = 0, err.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            number = trace.tb_lineno
        trace = trace.tb_next
    return f", line {number}" if number else ""
